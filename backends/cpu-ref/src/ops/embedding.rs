//! `y[t] = SCALE W[ids[t] - VOCAB_START]` if that row exists, else zeros.

use halyard_sdk::{Result, abi::ops::attrs::Embedding};

use crate::{glue::Args, rows};

pub(super) fn run(attrs: &Embedding, args: &Args) -> Result<()> {
    let (ids, y, w) = (args.tensor(0)?, args.tensor(1)?, args.weight(0)?);
    for (t, id) in rows::ints(&ids).into_iter().enumerate() {
        let local = id.checked_sub(attrs.vocab_start).and_then(|row| usize::try_from(row).ok());
        let row = match local.filter(|&row| id >= 0 && row < w.rows()) {
            Some(row) => w.row(0, row),
            None => vec![0.0; y.dim(1)],
        };
        y.set_row(&[t], row.into_iter().map(|w| attrs.scale * w));
    }
    Ok(())
}
