//! `y = x Wᵀ + bias (+ y if ACCUMULATE)`

use halyard_sdk::{
    Error, OpDesc, Result,
    abi::ops::{attrs::Linear, check::Bindings},
};

use crate::{glue::Args, rows};

pub(super) fn check(attrs: &Linear, _: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    if attrs.act_quant != 0 {
        return Err(Error::unsupported("linear: quantised activations"));
    }
    Ok(())
}

pub(super) fn run(attrs: &Linear, args: &Args) -> Result<()> {
    let (x, bias, y) = (args.tensor(0)?, args.optional(1)?, args.tensor(2)?);
    let w = args.weight(0)?;
    let xs: Vec<Vec<f64>> = (0..x.dim(0)).map(|t| rows::read(&x, &[t])).collect();
    for n in 0..w.rows() {
        let w_n = w.row(0, n);
        let bias = bias.map_or(0.0, |b| b.get(&[n]));
        for (t, x_t) in xs.iter().enumerate() {
            let old = if attrs.accumulate { y.get(&[t, n]) } else { 0.0 };
            y.set(&[t, n], rows::dot(x_t, &w_n) + bias + old);
        }
    }
    Ok(())
}
