//! `y[t, g] = W_g x[t, g]`, one matrix a group.

use halyard_sdk::{Result, abi::ops::attrs::BatchedLinear};

use super::linear::product;
use crate::{glue::Args, rows};

pub(super) fn run(_: &BatchedLinear, args: &Args) -> Result<()> {
    let (x, y, w) = (args.tensor(0)?, args.tensor(1)?, args.weight(0)?);
    for g in 0..x.dim(1) {
        let xs: Vec<Vec<f64>> = (0..x.dim(0)).map(|t| rows::read(&x, &[t, g])).collect();
        for (t, row) in product(w, g, &xs).into_iter().enumerate() {
            y.set_row(&[t, g], row);
        }
    }
    Ok(())
}
