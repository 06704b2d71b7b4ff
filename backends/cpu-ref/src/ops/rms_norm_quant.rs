//! Fusion: RMS_NORM, then QUANT_ACT. What lies between is not rounded.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{
        attrs::{RmsNorm, RmsNormQuant},
        check::Bindings,
    },
};

use super::rms_norm::{normed, summed};
use crate::{
    glue::Args,
    quant::{Outputs, check_mode},
    rows,
};

pub(super) fn check(attrs: &RmsNormQuant, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_mode(desc, attrs.mode)
}

pub(super) fn run(attrs: &RmsNormQuant, args: &Args) -> Result<()> {
    let (x, gamma, r) = (args.tensor(0)?, args.tensor(1)?, args.optional(4)?);
    let outputs = Outputs::open(attrs.mode, args, 2)?;
    let norm = RmsNorm { eps: attrs.eps, plus_one: attrs.plus_one };
    let gamma = rows::read(&gamma, &[]);
    for t in 0..x.dim(0) {
        outputs.store(t, &normed(&norm, &summed(&x, r.as_ref(), &[t]), &gamma));
    }
    Ok(())
}
