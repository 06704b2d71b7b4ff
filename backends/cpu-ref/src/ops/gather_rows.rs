//! `y[b] = x[idx[b]]`; a negative index gives zeros.

use halyard_sdk::{Result, abi::ops::attrs::GatherRows};

use crate::{glue::Args, rows};

pub(super) fn run(_: &GatherRows, args: &Args) -> Result<()> {
    let (x, idx, y) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    for (b, id) in rows::ints(&idx).into_iter().enumerate() {
        let row = if id < 0 {
            vec![0.0; y.dim(1)]
        } else {
            rows::read(&x, &[rows::checked("gather_rows: idx", id, x.dim(0))?])
        };
        y.set_row(&[b], row);
    }
    Ok(())
}
