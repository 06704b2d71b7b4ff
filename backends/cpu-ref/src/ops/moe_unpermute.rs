//! `y[t] = add[t] + Σ_j weight[t, j] yp[inverse[t, j]]`; a negative `inverse` adds nothing.

use halyard_sdk::{Result, abi::ops::attrs::MoeUnpermute};

use crate::{glue::Args, rows};

pub(super) fn run(_: &MoeUnpermute, args: &Args) -> Result<()> {
    let (yp, inverse, weight) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (y, add) = (args.tensor(3)?, args.optional(4)?);
    for t in 0..y.dim(0) {
        let mut sum = add.map_or_else(|| vec![0.0; y.dim(1)], |a| rows::read(&a, &[t]));
        for j in 0..inverse.dim(1) {
            let p = inverse.get_int(&[t, j]);
            if p < 0 {
                continue;
            }
            let p = rows::checked("moe_unpermute: inverse", p, yp.dim(0))?;
            let weight = weight.get(&[t, j]);
            sum.iter_mut().zip(rows::read(&yp, &[p])).for_each(|(s, out)| *s += weight * out);
        }
        y.set_row(&[t], sum);
    }
    Ok(())
}
