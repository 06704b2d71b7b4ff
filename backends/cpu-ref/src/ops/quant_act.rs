//! `q = round(x / scale)`: MODE 1 to i8 with a scale a row, MODE 2 to f8e4m3 with a scale a row and 128 columns.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::QuantAct, check::Bindings},
};

use crate::{
    glue::Args,
    quant::{Outputs, check_mode},
    rows,
};

pub(super) fn check(attrs: &QuantAct, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_mode(desc, attrs.mode)
}

pub(super) fn run(attrs: &QuantAct, args: &Args) -> Result<()> {
    let x = args.tensor(0)?;
    let outputs = Outputs::open(attrs.mode, args, 1)?;
    for t in 0..x.dim(0) {
        outputs.store(t, &rows::read(&x, &[t]));
    }
    Ok(())
}
