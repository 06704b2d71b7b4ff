//! `s = score(logits)`; `c = s + bias`; groups are chosen by the best, or the best two, of their `c`; `ids` are the largest `c` of
//! the chosen groups; `weight = s[ids]`; NORM: `weight /= Σ weight + 1e-20`; `weight *= SCALE`.

use halyard_sdk::{Result, abi::ops::attrs::MoeRouter};

use crate::{
    glue::Args,
    order::{log_sum_exp, ranked},
    rows,
};

pub(super) fn run(attrs: &MoeRouter, args: &Args) -> Result<()> {
    let (logits, bias) = (args.tensor(0)?, args.optional(1)?);
    let (ids, weight) = (args.tensor(2)?, args.tensor(3)?);
    let bias = bias.map(|b| rows::read(&b, &[]));
    for t in 0..logits.dim(0) {
        let scores = scores(attrs.sigmoid, &rows::read(&logits, &[t]));
        let mut choice = scores.clone();
        for (c, b) in choice.iter_mut().zip(bias.iter().flatten()) {
            *c += b;
        }
        let chosen = choose(attrs, &choice, ids.dim(1));
        let sum: f64 = chosen.iter().map(|&e| scores[e]).sum();
        let divisor = if attrs.norm { sum + 1e-20 } else { 1.0 };
        ids.set_row(&[t], chosen.iter().map(|&e| e as f64));
        weight.set_row(&[t], chosen.iter().map(|&e| scores[e] / divisor * attrs.scale));
    }
    Ok(())
}

fn scores(sigmoid: bool, logits: &[f64]) -> Vec<f64> {
    if sigmoid {
        return logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect();
    }
    let sum = log_sum_exp(logits);
    logits.iter().map(|l| (l - sum).exp()).collect()
}

/// The `top` best experts of the best groups.
fn choose(attrs: &MoeRouter, choice: &[f64], top: usize) -> Vec<usize> {
    let mut order = ranked(choice);
    if attrs.n_group > 1 {
        let size = choice.len() / rows::length(attrs.n_group);
        let best = if attrs.group_sum_of_two { 2 } else { 1 };
        let score =
            |group: &[f64]| -> f64 { ranked(group).iter().take(best).map(|&i| group[i]).sum() };
        let group_scores: Vec<f64> = choice.chunks(size).map(score).collect();
        let mut kept = ranked(&group_scores);
        kept.truncate(rows::length(attrs.topk_group));
        order.retain(|e| kept.contains(&(e / size)));
    }
    order.truncate(top);
    order
}
