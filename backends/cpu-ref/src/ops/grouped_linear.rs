//! `y[p] = W_e x[p]` for `offsets[e] <= p < offsets[e + 1]`; rows at or after `offsets[E]` are zeros.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::GroupedLinear, check::Bindings},
};

use super::linear::product;
use crate::{
    glue::Args,
    quant::{activations, check_activations},
    rows,
};

pub(super) fn check(attrs: &GroupedLinear, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_activations(desc, attrs.act_quant)
}

pub(super) fn run(attrs: &GroupedLinear, args: &Args) -> Result<()> {
    let (x, y, w) = (args.tensor(0)?, args.tensor(2)?, args.weight(0)?);
    let groups = rows::ranges("grouped_linear: offsets", &args.tensor(1)?, x.dim(0))?;
    for (expert, pairs) in groups.iter().enumerate() {
        let input = |p| activations(attrs.act_quant, rows::read(&x, &[p]));
        let xs: Vec<Vec<f64>> = pairs.clone().map(input).collect();
        for (p, row) in pairs.clone().zip(product(w, expert, &xs)) {
            y.set_row(&[p], row);
        }
    }
    for padding in rows::end(&groups)..y.dim(0) {
        y.set_row(&[padding], vec![0.0; y.dim(1)]);
    }
    Ok(())
}
