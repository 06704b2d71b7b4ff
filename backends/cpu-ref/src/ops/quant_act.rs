//! `q = round(x / scale)`: MODE 1 to i8 with a scale a row, MODE 2 to f8e4m3 with a scale a row and 128 columns.

use halyard_sdk::{
    OpDesc, OpKind, Result,
    abi::ops::{attrs::QuantAct, check::Bindings},
};

use crate::{
    glue::Args,
    quant::{Outputs, check_outputs},
    rows,
};

pub(super) fn check(attrs: &QuantAct, desc: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    check_outputs(desc, attrs.mode, 1, bindings)
}

pub(super) fn run(attrs: &QuantAct, args: &Args) -> Result<()> {
    let x = args.tensor(0)?;
    let outputs = Outputs::open(OpKind::QUANT_ACT, attrs.mode, args, 1)?;
    for t in 0..x.dim(0) {
        outputs.store(t, &rows::read(&x, &[t]));
    }
    Ok(())
}
