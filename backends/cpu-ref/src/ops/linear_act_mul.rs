//! Fusion: `y = act_mul(x Wᵀ + bias)`; the rows of `w` are the gates, then the ups. What lies between is not rounded.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::LinearActMul, check::Bindings},
};

use super::{act_mul::act_mul, linear::affine};
use crate::{glue::Args, quant::check_activations};

pub(super) fn check(attrs: &LinearActMul, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_activations(desc, attrs.act_quant)
}

pub(super) fn run(attrs: &LinearActMul, args: &Args) -> Result<()> {
    let (x, bias, y) = (args.tensor(0)?, args.optional(1)?, args.tensor(2)?);
    let gate_up = affine(attrs.act_quant, &x, args.weight(0)?, bias.as_ref());
    for (t, gu) in gate_up.into_iter().enumerate() {
        y.set_row(&[t], act_mul(attrs.act, attrs.limit, &gu));
    }
    Ok(())
}
