//! Compares what a device left with what the oracle left, and knows where more than one answer is right.

mod quantised;

use halyard_abi::ops::schema::Types;
use halyard_core::{
    OpBuf, OpKind,
    attrs::{MoeExperts, MoeRouter},
    ops::OpSchema,
};
use halyard_cpu_ref::sampling::{Rule, choose, uniform};

use crate::{
    array::Array,
    compare::{Comparison, Context, compare, root_mean_square},
    execute::Outputs,
    generate::Inputs,
    opbuf::attrs_of,
    tolerance::{EXACT, bounds, probe_bounds},
};

/// What the oracle gave.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) outputs: Outputs,
    /// For ops that change a cache of 8 bits: what it would hold with all its bits, keys and values apart.
    pub(crate) unrounded: Vec<Array>,
}

/// Compares every output. `columns` are those of the last dim that the oracle computed, if not all.
pub(crate) fn judge(
    op: &OpBuf,
    inputs: &Inputs,
    got: &Outputs,
    reference: &Reference,
    columns: Option<&[usize]>,
) -> Vec<Comparison> {
    let want = &reference.outputs;
    let slots = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
    let exempt = other_answers(op, inputs, got, want);
    let expected = expected_sizes(op, inputs);
    let slack = quantised::undecided(op, inputs);
    let context = Context { exempt: &exempt, expected: &expected, slack: &slack };
    let mut all = Vec::new();
    for (i, slot) in slots.iter().enumerate() {
        let pair =
            (got.slots.get(i).and_then(Option::as_ref), want.slots.get(i).and_then(Option::as_ref));
        let (Some(got), Some(want)) = pair else { continue };
        if slot.types == Types::Quantised || slot.name == "scale" {
            continue;
        }
        let got = columns.map_or_else(|| got.clone(), |c| got.columns(c));
        all.push(compare(slot.name, &got, want, bounds(op, inputs, want.dtype()), context));
    }
    all.extend(quantised::activations(op, inputs, got).into_iter().flatten());
    match &inputs.cache {
        Some(cache) if cache.read_back => {
            all.extend(quantised::cache(op, cache, (&got.probe, &reference.unrounded)));
        }
        _ => all.extend(got.probe.iter().zip(&want.probe).map(|(got, want)| {
            let bounds = probe_bounds(op, inputs, want.dtype());
            compare("the cache, seen by attention", got, want, bounds, Context::default())
        })),
    }
    all
}

/// What the inputs let expect of the size of results, row by row, where results may be much smaller by chance.
fn expected_sizes(op: &OpBuf, inputs: &Inputs) -> Vec<f64> {
    let of_rows = |x: &Array, of: fn(&[f64]) -> f64| -> Vec<f64> {
        (0..x.rows()).map(|row| of(&x.row(row))).collect()
    };
    let input = |name: &str| inputs.named(op, name);
    match op.kind() {
        // Weights of deviation 1/√K keep the inputs' size.
        OpKind::LINEAR | OpKind::BATCHED_LINEAR => {
            input("x").map_or(Vec::new(), |x| of_rows(x, size))
        }
        OpKind::GROUPED_LINEAR => {
            let mut sizes = input("x").map_or(Vec::new(), |x| of_rows(x, size));
            // Rows of no expert are zeros, exactly.
            let used = input("offsets").map_or(0, |o| o.int(o.len() - 1));
            sizes.iter_mut().skip(usize::try_from(used).unwrap_or(0)).for_each(|s| *s = 0.0);
            sizes
        }
        OpKind::LINEAR_ACT_MUL => input("x").map_or(Vec::new(), |x| of_rows(x, gated)),
        OpKind::MOE_EXPERTS => expert_sizes(op, inputs).unwrap_or_default(),
        // A difference of two numbers of the logits' size.
        OpKind::LOGPROBS => input("logits").map_or(Vec::new(), |l| of_rows(l, largest)),
        OpKind::SAMPLE => vec![largest_scaled(input("logits"), input("temperature"))],
        _ => Vec::new(),
    }
}

/// Of inputs of size s, gate and up have that size, and their product about s²/2 (for a gate of deviation 1).
fn gated(row: &[f64]) -> f64 {
    size(row).powi(2) / 2.0
}

/// The second layer keeps the size of what is gated, once for each expert of the slice, times its weight. A single intermediate value may
/// be much smaller.
fn expert_sizes(op: &OpBuf, inputs: &Inputs) -> Option<Vec<f64>> {
    let [x, ids, weight] = ["x", "ids", "weight"].map(|name| inputs.named(op, name));
    let (x, ids, weight) = (x?, ids?, weight?);
    let first = attrs_of::<MoeExperts>(op).expert_start;
    let local = first..first.saturating_add(i64::from(op.weights().first()?.groups));
    let of_token = |row: usize| {
        let choices = row * ids.width()..(row + 1) * ids.width();
        let squares =
            choices.filter(|&i| local.contains(&ids.int(i))).map(|i| weight.get(i).powi(2));
        gated(&x.row(row)) * squares.sum::<f64>().sqrt()
    };
    Some((0..ids.rows()).map(of_token).collect())
}

/// The largest logit over its row's temperature: of all rows, since one-dimensional results are one row.
fn largest_scaled(logits: Option<&Array>, temperature: Option<&Array>) -> f64 {
    let (Some(logits), Some(temperature)) = (logits, temperature) else { return 0.0 };
    let of_row = |row: usize| match temperature.get(row) {
        t if t > 0.0 => largest(&logits.row(row)) / t,
        _ => largest(&logits.row(row)),
    };
    (0..temperature.len()).map(of_row).fold(0.0, f64::max)
}

fn size(row: &[f64]) -> f64 {
    root_mean_square(row.iter().copied())
}

fn largest(row: &[f64]) -> f64 {
    row.iter().filter(|v| v.is_finite()).fold(0.0, |most, v| most.max(v.abs()))
}

/// Elements that may differ because the choice was a tie within rounding.
fn other_answers(op: &OpBuf, inputs: &Inputs, got: &Outputs, want: &Outputs) -> Vec<usize> {
    match op.kind() {
        OpKind::MOE_ROUTER => router_ties(op, inputs, got, want),
        OpKind::SAMPLE => sample_boundaries(inputs, got, want),
        _ => Vec::new(),
    }
}

/// Choices between experts whose scores differ by less than two units in the last place of an f32.
fn router_ties(op: &OpBuf, inputs: &Inputs, got: &Outputs, want: &Outputs) -> Vec<usize> {
    let ids = |o: &Outputs| o.slots.get(2).cloned().flatten();
    let (Some(got), Some(want)) = (ids(got), ids(want)) else { return Vec::new() };
    let Some(logits) = inputs.named(op, "logits") else { return Vec::new() };
    let bias = inputs.named(op, "bias");
    let sigmoid = attrs_of::<MoeRouter>(op).sigmoid;
    let mut exempt = Vec::new();
    for i in (0..want.len()).filter(|&i| got.int(i) != want.int(i)) {
        let row = logits.row(i / want.width().max(1));
        let choice = |id: i64| -> Option<f64> {
            let e = usize::try_from(id).ok().filter(|&e| e < row.len())?;
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|l| (l - largest).exp()).sum();
            let score = match sigmoid {
                true => 1.0 / (1.0 + (-row[e]).exp()),
                false => (row[e] - largest).exp() / sum,
            };
            Some(score + bias.map_or(0.0, |b| b.get(e)))
        };
        if let (Some(g), Some(w)) = (choice(got.int(i)), choice(want.int(i))) {
            let unit = f64::from(f32::EPSILON) * g.abs().max(w.abs());
            // Equal scores are no tie of rounding: the lower index has to win.
            if g.to_bits() != w.to_bits() && (g - w).abs() < 2.0 * unit {
                exempt.push(i);
            }
        }
    }
    exempt
}

/// How far f32 rounding may shift a cumulative probability.
const BOUNDARY: f64 = 1e-5;

/// Draws so close to a boundary of the rule that rounding decides.
fn sample_boundaries(inputs: &Inputs, got: &Outputs, want: &Outputs) -> Vec<usize> {
    let ids = |o: &Outputs| o.slots.get(7).cloned().flatten();
    let (Some(got), Some(want)) = (ids(got), ids(want)) else { return Vec::new() };
    let slot = |i: usize| inputs.slots.get(i).and_then(|s| s.array());
    let params: Option<Vec<&Array>> = (0..7).map(slot).collect();
    let Some(p) = params else { return Vec::new() };
    let word = |slot: usize, b: usize| p[slot].int(b).cast_unsigned();
    (0..want.len())
        .filter(|&b| got.int(b) != want.int(b))
        .filter(|&b| {
            let rule = Rule {
                temperature: p[1].get(b),
                top_k: p[2].int(b),
                top_p: p[3].get(b),
                min_p: p[4].get(b),
            };
            explains(&p[0].row(b), rule, uniform(word(5, b), word(6, b)), got.int(b))
        })
        .collect()
}

/// Whether a rule shifted by less than [`BOUNDARY`] draws `id`.
fn explains(logits: &[f64], rule: Rule, u: f64, id: i64) -> bool {
    let shifts = [-BOUNDARY, 0.0, BOUNDARY];
    shifts.iter().any(|du| {
        shifts.iter().any(|dp| {
            shifts.iter().any(|dm| {
                let rule = Rule { top_p: rule.top_p + dp, min_p: rule.min_p * (1.0 + dm), ..rule };
                i64::try_from(choose(logits, &rule, u + du)) == Ok(id)
            })
        })
    })
}

/// The first output whose bits differ, and where.
pub(crate) fn first_difference(op: &OpBuf, a: &Outputs, b: &Outputs) -> Option<String> {
    let schema = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
    let named = schema.iter().map(|s| s.name).zip(a.slots.iter().zip(&b.slots));
    let slots = named.filter_map(|(name, (a, b))| Some((name, a.as_ref()?, b.as_ref()?)));
    let probe = a.probe.iter().zip(&b.probe).map(|(a, b)| ("the cache", a, b));
    for (name, a, b) in slots.chain(probe) {
        let c = compare(name, a, b, EXACT, Context::default());
        // NaN of another payload counts as the same.
        if !c.passed {
            return Some(c.failure.unwrap_or_default());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_draws_at_a_boundary_have_two_answers() {
        // Probabilities 1/2, 1/4, 1/4.
        let logits = [2f64.ln(), 0.0, 0.0];
        let rule = Rule { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        assert!(explains(&logits, rule, 0.5 + 1e-7, 0));
        assert!(explains(&logits, rule, 0.5 - 1e-7, 1));
        assert!(!explains(&logits, rule, 0.6, 0));
        assert!(!explains(&logits, rule, 0.5, 2));
        // The second is kept by a hair.
        let nucleus = Rule { top_p: 0.5 + 1e-7, ..rule };
        assert!(explains(&logits, nucleus, 0.9, 1) && explains(&logits, nucleus, 0.9, 0));
    }
}
