//! The `Top` largest logits of each row and their ids, in the order of ARGMAX.

use halyard_sdk::{
    Error, OpDesc, Result,
    abi::ops::{Sym, attrs::Topk, check::Bindings},
};

use crate::{
    glue::Args,
    order::{ranked, value},
    rows,
};

pub(super) fn check(_: &Topk, _: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    let (top, v) = (bindings.get(Sym::Top).unwrap_or(-1), bindings.get(Sym::V).unwrap_or(-1));
    if top >= 0 && v >= 0 && top > v {
        return Err(Error::invalid(format!("topk: the {top} largest of {v}")));
    }
    Ok(())
}

pub(super) fn run(_: &Topk, args: &Args) -> Result<()> {
    let (logits, values, ids) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let top = ids.dim(1);
    if top > logits.dim(1) {
        return Err(Error::invalid(format!("topk: the {top} largest of {}", logits.dim(1))));
    }
    for b in 0..logits.dim(0) {
        let row = rows::read(&logits, &[b]);
        let chosen = &ranked(&row)[..top];
        values.set_row(&[b], chosen.iter().map(|&i| value(row[i])));
        ids.set_row(&[b], chosen.iter().map(|&i| i as f64));
    }
    Ok(())
}
