//! `ids[b]` is the largest logit's index; ties to the lowest, NaN counts as -inf.

use halyard_sdk::{Result, abi::ops::attrs::Argmax};

use crate::{glue::Args, order::best, rows};

pub(super) fn run(_: &Argmax, args: &Args) -> Result<()> {
    let (logits, ids) = (args.tensor(0)?, args.tensor(1)?);
    for b in 0..logits.dim(0) {
        ids.set(&[b], best(&rows::read(&logits, &[b])) as f64);
    }
    Ok(())
}
