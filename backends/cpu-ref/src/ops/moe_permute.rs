//! Rows sorted by expert: the pairs `(t, j)` with `e = ids[t, j] - EXPERT_START` in the slice, by `e`, then `t`, then `j`. Pair `p` of
//! that order has `xp[p] = x[t]` and `inverse[t, j] = p`; other pairs have `inverse = -1`; further rows of `xp` are zeros.

use halyard_sdk::{Result, abi::ops::attrs::MoePermute};

use super::moe_experts::local_expert;
use crate::{glue::Args, rows};

pub(super) fn run(attrs: &MoePermute, args: &Args) -> Result<()> {
    let (x, ids, xp) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (offsets, inverse) = (args.tensor(3)?, args.tensor(4)?);
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
            xp.set_row(&[p], rows::read(&x, &[pair / top]));
            p += 1;
        }
    }
    offsets.set(&[experts], p as f64);
    for pair in (0..pairs).filter(|&pair| local(pair).is_none()) {
        inverse.set(&[pair / top, pair % top], -1.0);
    }
    for padding in p..xp.dim(0) {
        xp.set_row(&[padding], vec![0.0; xp.dim(1)]);
    }
    Ok(())
}
