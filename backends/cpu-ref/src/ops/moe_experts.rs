//! `y = add + Σ_j weight_j W1_e act_mul(W0_e x)`, `e = ids_j - EXPERT_START`; ids outside the slice add nothing.
//! WEIGHT_ON_INPUT: `y = add + Σ_j W1_e act_mul(W0_e (weight_j x))`.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::MoeExperts, check::Bindings},
};

use super::{act_mul::act_mul, linear::product};
use crate::{
    glue::Args,
    quant::{activations, check_activations},
    rows,
    weights::RefWeight,
};

pub(super) fn check(attrs: &MoeExperts, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_activations(desc, attrs.act_quant)
}

/// A token's `j`-th expert, its input, and what comes out.
struct Visit {
    t: usize,
    expert: usize,
    weight: f64,
    value: Vec<f64>,
}

pub(super) fn run(attrs: &MoeExperts, args: &Args) -> Result<()> {
    let (x, y, add) = (args.tensor(0)?, args.tensor(3)?, args.optional(4)?);
    let (w0, w1) = (args.weight(0)?, args.weight(1)?);
    // In order of token, then j.
    let mut visits = visits(attrs, args, w0.groups())?;
    for expert in 0..w0.groups() {
        let mut here: Vec<&mut Visit> = visits.iter_mut().filter(|v| v.expert == expert).collect();
        if here.is_empty() {
            continue;
        }
        apply(attrs.act_quant, w0, expert, &mut here);
        for v in &mut here {
            v.value = act_mul(attrs.act, attrs.limit, &v.value);
        }
        apply(attrs.act_quant, w1, expert, &mut here);
    }
    for t in 0..x.dim(0) {
        let mut sum = add.map_or_else(|| vec![0.0; y.dim(1)], |a| rows::read(&a, &[t]));
        for v in visits.iter().filter(|v| v.t == t) {
            let weight = if attrs.weight_on_input { 1.0 } else { v.weight };
            for (s, out) in sum.iter_mut().zip(&v.value) {
                *s += weight * out;
            }
        }
        y.set_row(&[t], sum);
    }
    Ok(())
}

fn visits(attrs: &MoeExperts, args: &Args, experts: usize) -> Result<Vec<Visit>> {
    let (x, ids, weights) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let mut visits = Vec::new();
    for t in 0..x.dim(0) {
        for j in 0..ids.dim(1) {
            let id = ids.get_int(&[t, j]);
            let Some(expert) = local_expert(id, attrs.expert_start, experts) else { continue };
            let weight = weights.get(&[t, j]);
            let mut value = rows::read(&x, &[t]);
            if attrs.weight_on_input {
                value.iter_mut().for_each(|x| *x *= weight);
            }
            visits.push(Visit { t, expert, weight, value });
        }
    }
    Ok(visits)
}

/// Where in a slice of experts an id is.
pub(super) fn local_expert(id: i64, start: i64, experts: usize) -> Option<usize> {
    let local = id.checked_sub(start).filter(|_| id >= 0)?;
    usize::try_from(local).ok().filter(|&e| e < experts)
}

/// `value := W_e value` for each visit of expert `e`, the inputs passed through ACT_QUANT.
fn apply(act_quant: i64, w: &RefWeight, expert: usize, visits: &mut [&mut Visit]) {
    let input = |v: &mut &mut Visit| activations(act_quant, std::mem::take(&mut v.value));
    let xs: Vec<Vec<f64>> = visits.iter_mut().map(input).collect();
    for (v, y) in visits.iter_mut().zip(product(w, expert, &xs)) {
        v.value = y;
    }
}
