//! `lse = ln(e^lse1 + e^lse2)`, `o = e^(lse1 - lse) o1 + e^(lse2 - lse) o2`; both empty (`-inf`): `o = 0`, `lse = -inf`.

use halyard_sdk::{Result, abi::ops::attrs::MergeAttention};

use crate::{glue::Args, order::log_sum_exp, rows};

pub(super) fn run(_: &MergeAttention, args: &Args) -> Result<()> {
    let (o1, lse1, o2, lse2) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.tensor(3)?);
    let (o, lse) = (args.tensor(4)?, args.tensor(5)?);
    for at in rows::leads(&o) {
        let parts = [lse1.get(&at), lse2.get(&at)];
        let sum = log_sum_exp(&parts);
        let share = |part: f64| if sum == f64::NEG_INFINITY { 0.0 } else { (part - sum).exp() };
        let [first, second] = parts.map(share);
        let merged = rows::read(&o1, &at).into_iter().zip(rows::read(&o2, &at));
        o.set_row(&at, merged.map(|(a, b)| first * a + second * b));
        lse.set(&at, sum);
    }
    Ok(())
}
