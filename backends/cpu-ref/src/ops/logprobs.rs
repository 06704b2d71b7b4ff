//! `out[b, m] = logits[b, ids[b, m]] - ln Σ_v e^logits[b, v]`; a negative id gives 0.

use halyard_sdk::{Result, abi::ops::attrs::Logprobs};

use crate::{glue::Args, order::log_sum_exp, rows};

pub(super) fn run(_: &Logprobs, args: &Args) -> Result<()> {
    let (logits, ids, out) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    for b in 0..logits.dim(0) {
        let row = rows::read(&logits, &[b]);
        let sum = log_sum_exp(&row);
        for m in 0..ids.dim(1) {
            let id = ids.get_int(&[b, m]);
            let value =
                if id < 0 { 0.0 } else { row[rows::checked("logprobs: id", id, row.len())?] - sum };
            out.set(&[b, m], value);
        }
    }
    Ok(())
}
