//! Rows sorted by expert: the pairs `(t, j)` with `e = ids[t, j] - EXPERT_START` in the slice, by `e`, then `t`, then `j`. Pair `p` of
//! that order has `xp[p] = x[t]` and `inverse[t, j] = p`; other pairs have `inverse = -1`; further rows of `xp` are zeros.

use halyard_sdk::{
    Error, OpDesc, Result,
    abi::ops::{Sym, attrs::MoePermute, check::Bindings},
};

use super::moe_experts::local_expert;
use crate::{glue::Args, rows};

pub(super) fn check(_: &MoePermute, _: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    match [Sym::T, Sym::Top, Sym::P].map(|sym| bindings.get(sym).unwrap_or(-1)) {
        [t, top, p] if t >= 0 && top >= 0 && p >= 0 => check_pairs(t, top, p),
        _ => Ok(()),
    }
}

fn check_pairs(tokens: i64, top: i64, pairs: i64) -> Result<()> {
    if tokens.checked_mul(top) == Some(pairs) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "moe_permute: xp has {pairs} rows, expected those of {tokens} tokens × {top} experts"
    )))
}

pub(super) fn run(attrs: &MoePermute, args: &Args) -> Result<()> {
    let (x, ids, xp) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (offsets, inverse) = (args.tensor(3)?, args.tensor(4)?);
    check_pairs(ids.dim(0) as i64, ids.dim(1) as i64, xp.dim(0) as i64)?;
    let experts = offsets.dim(0) - 1;
    let pairs = rows::leads(&xp).len();
    let top = ids.dim(1);
    let local = |pair: usize| {
        local_expert(ids.get_int(&[pair / top, pair % top]), attrs.expert_start, experts)
    };
    let mut p = 0;
    for expert in 0..experts {
        offsets.set(&[expert], p as f64);
        for pair in (0..pairs).filter(|&pair| local(pair) == Some(expert)) {
            inverse.set(&[pair / top, pair % top], p as f64);
            rows::write(&xp, &[p], rows::read(&x, &[pair / top]));
            p += 1;
        }
    }
    offsets.set(&[experts], p as f64);
    for pair in (0..pairs).filter(|&pair| local(pair).is_none()) {
        inverse.set(&[pair / top, pair % top], -1.0);
    }
    for padding in p..xp.dim(0) {
        rows::write(&xp, &[padding], vec![0.0; xp.dim(1)]);
    }
    Ok(())
}
