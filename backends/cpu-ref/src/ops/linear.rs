//! `y = x Wᵀ + bias (+ y if ACCUMULATE)`

use halyard_sdk::{
    HostTensor, OpDesc, Result,
    abi::ops::{attrs::Linear, check::Bindings},
};

use crate::{
    glue::Args,
    quant::{activations, check_activations},
    rows,
    weights::RefWeight,
};

pub(super) fn check(attrs: &Linear, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_activations(desc, attrs.act_quant)
}

pub(super) fn run(attrs: &Linear, args: &Args) -> Result<()> {
    let (x, bias, y) = (args.tensor(0)?, args.optional(1)?, args.tensor(2)?);
    let rows = affine(attrs.act_quant, &x, args.weight(0)?, bias.as_ref());
    for (t, mut row) in rows.into_iter().enumerate() {
        if attrs.accumulate {
            row.iter_mut().zip(rows::read(&y, &[t])).for_each(|(new, old)| *new += old);
        }
        y.set_row(&[t], row);
    }
    Ok(())
}

/// `x Wᵀ + bias`, the inputs passed through ACT_QUANT; LINEAR_ACT_MUL begins with it.
pub(super) fn affine(
    act_quant: i64,
    x: &HostTensor,
    w: &RefWeight,
    bias: Option<&HostTensor>,
) -> Vec<Vec<f64>> {
    let xs = (0..x.dim(0)).map(|t| activations(act_quant, rows::read(x, &[t]))).collect::<Vec<_>>();
    let mut ys = product(w, 0, &xs);
    if let Some(bias) = bias {
        let bias = rows::read(bias, &[]);
        ys.iter_mut().for_each(|y| y.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
    }
    ys
}

/// `W_g x` for each row.
pub(super) fn product(w: &RefWeight, group: usize, xs: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut ys = vec![Vec::with_capacity(w.rows()); xs.len()];
    if xs.is_empty() {
        return ys;
    }
    for n in 0..w.rows() {
        let w_n = w.row(group, n);
        for (y, x) in ys.iter_mut().zip(xs) {
            y.push(rows::dot(x, &w_n));
        }
    }
    ys
}
