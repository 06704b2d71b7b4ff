//! Integers and 8-bit floats that stand for `x / scale`: right if they are the nearest code of a number within rounding of it.

use halyard_abi::fp8::{E4M3_MAX, e4m3_from_f64, e4m3_to_f32};
use halyard_core::{
    DType, OpBuf, OpKind,
    attrs::{QkvPost, RmsNormQuant},
};

use crate::{
    array::Array,
    compare::{Comparison, Context, compare},
    execute::Outputs,
    generate::{CacheContents, Inputs},
    opbuf::{act_quant, attrs_of},
    tolerance::{EXACT, unit_roundoff},
    weight::largest,
};

/// What one division, or a multiplication by the reciprocal, may move `x / scale` in f32: three roundings.
const DIVISION: f64 = 2.0 * f32::EPSILON as f64;

/// The number that the nearest code of a value stands for.
fn nearest(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::I8 => value.round_ties_even().clamp(-128.0, 127.0),
        _ => f64::from(e4m3_to_f32(e4m3_from_f64(value))),
    }
}

/// The code nearest to `x / scale`: what the device gave if it is the nearest one of a number within `error` of `x`, else the oracle's.
fn code(dtype: DType, got: f64, (x, error): (f64, f64), scale: f64) -> f64 {
    // Powers of two divide exactly: a tie is a tie.
    let exact = error <= 0.0 && scale.to_bits() & ((1 << 52) - 1) == 0;
    let slack = if exact { 0.0 } else { error + DIVISION * x.abs() };
    let ends = [(x - slack) / scale, (x + slack) / scale].map(|v| nearest(dtype, v));
    if ends[0] <= got && got <= ends[1] { got } else { nearest(dtype, x / scale) }
}

/// What each row of a product over quantised activations may be off by because some of its activations lie at a tie, within what a division
/// rounds: a step of each, times the largest weight.
pub(super) fn undecided(op: &OpBuf, inputs: &Inputs) -> Vec<f64> {
    let (dtype, group) = match act_quant(op) {
        1 => (DType::I8, usize::MAX),
        2 => (DType::F8E4M3, 128),
        _ => return Vec::new(),
    };
    let Some(x) = inputs.named(op, "x") else { return Vec::new() };
    let weight = op.weights().first().map_or(0.0, largest);
    let steps = |values: &[f64]| -> f64 {
        let scale = ideal_scale(dtype, values);
        let step = |&v: &f64| {
            let slack = DIVISION * v.abs();
            let [low, high] = [v - slack, v + slack].map(|v| nearest(dtype, v / scale));
            (high - low) * scale
        };
        values.iter().filter(|v| v.is_finite()).map(step).sum()
    };
    let row = |row: usize| -> f64 {
        let values = x.row(row);
        values.chunks(group.min(values.len().max(1))).map(steps).sum::<f64>() * weight
    };
    (0..x.rows()).map(row).collect()
}

/// The scale that makes the largest value the largest code; 1 if there is none.
fn ideal_scale(dtype: DType, values: &[f64]) -> f64 {
    let most = if dtype == DType::I8 { 127.0 } else { E4M3_MAX };
    let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    if largest > 0.0 { largest / most } else { 1.0 }
}

/// The codes and scales of QUANT_ACT and RMS_NORM_QUANT.
pub(super) fn activations(op: &OpBuf, inputs: &Inputs, got: &Outputs) -> Option<[Comparison; 2]> {
    let (values, relative) = quantised_values(op, inputs)?;
    let schema = halyard_core::ops::OpSchema::of(op.kind())?;
    let output = |name: &str| got.slots.get(schema.slot(name)?)?.as_ref();
    let (q, scale) = (output("q")?, output("scale")?);
    let (width, groups) = (q.width(), scale.width());
    let columns = if groups == 1 { width } else { 128 };
    let (mut want_q, mut want_scale) = (q.clone(), scale.clone());
    for at in 0..scale.len() {
        let (row, group) = (at / groups, at % groups);
        let elements =
            row * width + group * columns..row * width + ((group + 1) * columns).min(width);
        let zeros = values[elements.clone()].iter().all(|&v| v == 0.0);
        let ideal = ideal_scale(q.dtype(), &values[elements.clone()]);
        let slack = if zeros { 0.0 } else { ideal * (relative + DIVISION) };
        let given = scale.get(at);
        if (given - ideal).abs() <= slack {
            for i in elements {
                let error = relative * values[i].abs();
                let best = code(q.dtype(), q.get(i), (values[i], error), given);
                want_q.set(i, best);
            }
        } else {
            want_scale.set(at, ideal);
        }
    }
    Some([
        compare("q", &same_zero(q, &want_q), &want_q, EXACT, Context::default()),
        compare("scale", scale, &want_scale, EXACT, Context::default()),
    ])
}

/// `got` with the sign of its zeros as `want` has them.
fn same_zero(got: &Array, want: &Array) -> Array {
    let mut array = got.clone();
    for i in 0..got.len() {
        if got.get(i) == 0.0 && want.get(i) == 0.0 {
            array.set_int(i, want.int(i));
        }
    }
    array
}

/// What is quantised, and how far a device may be from it.
fn quantised_values(op: &OpBuf, inputs: &Inputs) -> Option<(Vec<f64>, f64)> {
    let x = inputs.named(op, "x")?;
    match op.kind() {
        OpKind::QUANT_ACT => Some(((0..x.len()).map(|i| x.get(i)).collect(), 0.0)),
        OpKind::RMS_NORM_QUANT => {
            let attrs: RmsNormQuant = attrs_of(op);
            let gamma = inputs.named(op, "gamma")?;
            // The residual is rounded before it is normalised.
            let mut sum = x.clone();
            if let Some(r) = inputs.named(op, "r") {
                (0..x.len()).for_each(|i| sum.set(i, x.get(i) + r.get(i)));
            }
            let width = x.width();
            let values = (0..x.len() / width.max(1)).flat_map(|row| {
                let row = sum.row(row);
                let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
                let factor = 1.0 / (mean + attrs.eps).sqrt();
                let one = f64::from(u8::from(attrs.plus_one));
                row.into_iter()
                    .enumerate()
                    .map(move |(c, v)| v * factor * (gamma.get(c) + one))
                    .collect::<Vec<f64>>()
            });
            // The norm as in RMS_NORM; what lies between may be rounded to the compute type.
            let norm = (0.5 * (width as f64).sqrt() + 8.0) * f64::from(f32::EPSILON);
            Some((values.collect(), norm + unit_roundoff(x.dtype())))
        }
        _ => None,
    }
}

/// What a cache of 8 bits holds. `unrounded` is what it would hold with all its bits, keys and values apart.
pub(super) fn cache(
    op: &OpBuf,
    contents: &CacheContents,
    (got, unrounded): (&[Array], &[Array]),
) -> Vec<Comparison> {
    let Some(scales) = &contents.scales else { return Vec::new() };
    // A fusion computes what it writes: a norm and a rotation, each perhaps rounded to the compute type.
    let computed = if op.kind() == OpKind::QKV_POST {
        let normed = attrs_of::<QkvPost>(op).eps > 0.0;
        2.0 * unit_roundoff(contents.compute) * (1.0 + f64::from(u8::from(normed)))
            + 32.0 * f64::from(f32::EPSILON)
    } else {
        0.0
    };
    let names = ["keys in the cache", "values in the cache"];
    let parts = names.into_iter().zip(got.iter().zip(unrounded)).zip(scales);
    let compare_part = |((name, (got, x)), scale): ((&str, (&Array, &Array)), &Array)| {
        let width = got.width();
        let mut want = got.clone();
        for i in 0..got.len() {
            let scale = scale.get(i / width % contents.heads);
            let row = x.row(i / width);
            let largest = row.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            // Keys alone are rotated: a pair shares its error.
            let error = computed * largest;
            // The code behind a number: scales times codes are exact to a rounding of f32.
            let stored = nearest(contents.cache_dtype, got.get(i) / scale);
            let best = code(contents.cache_dtype, stored, (x.get(i), error), scale);
            let of_code = (got.get(i) - best * scale).abs() <= DIVISION * got.get(i).abs();
            if !of_code {
                want.set(i, best * scale);
            }
        }
        compare(name, got, &want, EXACT, Context::default())
    };
    parts.map(compare_part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_at_a_tie_have_two_answers() {
        let is = |dtype, got, (x, scale), want: f64| {
            let best = code(dtype, got, (x, 0.0), scale);
            assert!((best - want).abs() < 1e-9, "{got} for {x}: {best}, expected {want}");
        };
        is(DType::I8, 3.0, (0.25, 0.1), 3.0);
        is(DType::I8, 2.0, (0.25, 0.1), 2.0);
        is(DType::I8, 3.0, (0.249_99, 0.1), 2.0);
        is(DType::I8, 127.0, (1e9, 0.1), 127.0);
        // With a scale of a power of two nothing is rounded on the way: ties go to even.
        is(DType::I8, 3.0, (0.625, 0.25), 2.0);
        // Half way between 1 and 1.125.
        is(DType::F8E4M3, 1.125, (1.0625, 1.0), 1.0);
        is(DType::F8E4M3, 1.125, (0.106_25, 0.1), 1.125);
    }
}
