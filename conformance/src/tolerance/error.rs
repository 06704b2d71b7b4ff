//! What each op may lose before its result is rounded: the derivations.
//!
//! `u` is the unit roundoff of f32. Rows are independent of mean zero unless said otherwise; the *scale* of a row is its root mean square.

use halyard_core::{
    DType, OpBuf, OpKind, Scheme,
    attrs::{Embedding, MoeExperts, QkvPost},
};

use super::{Error, unit_roundoff};
use crate::{
    array::is_float,
    generate::Inputs,
    opbuf::{self, Attention, act_quant, attention, attrs_of},
};

/// The largest element of a row over the row's scale: of normal rows it is 6, of rows with outliers (one in 32 fifty times as large, so
/// the scale is 9) it is 50 · 3.6 / 9.
const PEAK: f64 = 20.0;

/// `exp`, `rsqrt`, `tanh`, `ln` and divisions of SIMD libraries and special function units are good to 4 units in the last place: 8 u.
const FUNCTION: f64 = 8.0;

/// An exponential's argument is rounded, perhaps a second time by a multiplication with `log2 e`: `|δ e^z| = 2 u |z| e^z`. Arguments are
/// differences of numbers of a few units, below 16.
const ARGUMENT: f64 = 32.0;

/// What an op's float outputs may lose; `None`: nothing is computed, the bits are given.
pub(super) fn of_output(op: &OpBuf, inputs: &Inputs) -> Option<Error> {
    let error = match op.kind() {
        OpKind::COPY | OpKind::GATHER_ROWS | OpKind::TOPK | OpKind::MOE_PERMUTE => return None,
        OpKind::EMBEDDING => return embedding(op),
        // One rounding in f32 before that to the dtype.
        OpKind::MUL => Error::relative(1.0),
        // The product is rounded, unless it is fused with the sum; where the two cancel it is up to PEAK times what is left.
        OpKind::ADD => Error::relative(1.0).and(Error::shift(PEAK)),
        // The residual is a sum of two numbers, rounded once: within the norm's bound.
        OpKind::RMS_NORM | OpKind::RMS_NORM_QUANT => norm(op.width("x")),
        OpKind::ROPE => rotation(),
        OpKind::ACT_MUL => activation(),
        OpKind::LINEAR
        | OpKind::BATCHED_LINEAR
        | OpKind::GROUPED_LINEAR
        | OpKind::LINEAR_ALL_REDUCE => linear(op, 0),
        OpKind::PAGED_ATTENTION | OpKind::VARLEN_ATTENTION | OpKind::MLA_ATTENTION => {
            weighted(scores(op), longest(inputs), op.dtype("o"))
        }
        OpKind::MERGE_ATTENTION => merge(),
        OpKind::KV_GATHER => return gather(op),
        OpKind::MOE_ROUTER => router(op.width("logits")),
        OpKind::MOE_EXPERTS => experts(op),
        // `Top` products and sums in f32, of which any may be cancelled by the others.
        OpKind::MOE_UNPERMUTE => Error::shift(PEAK + 2.0 * op.width("weight")),
        OpKind::LOGPROBS | OpKind::SAMPLE => log_softmax(op.width("logits")),
        // Up to three steps, each with a product and a sum.
        OpKind::LOGITS_PROCESS => Error::relative(1.0).and(Error::shift(3.0 * PEAK)),
        OpKind::QKV_POST => query_of_fusion(op),
        OpKind::LINEAR_ACT_MUL => linear_act_mul(op),
        _ => Error::NONE,
    };
    Some(error)
}

/// What attention may lose that looks at a cache after an op changed it: its own error over one block, and that of what was written.
pub(super) fn of_cache(op: &OpBuf, inputs: &Inputs) -> Error {
    let Some(cache) = &inputs.cache else { return Error::NONE };
    let dims = cache.dim_k + if cache.latent { cache.dim_v } else { 0 };
    // Queries of deviation 1, scores scaled by 1/√dim_k.
    let deviation = (dims as f64 / cache.dim_k.max(1) as f64).sqrt();
    let scores = Scores { products: dims as f64, deviation };
    let seen = weighted(scores, cache.block as f64, cache.compute);
    if op.kind() != OpKind::QKV_POST {
        return seen;
    }
    // A key is off by as much as a query, and its score (deviation 1) by as much of itself: the row's weights follow.
    let written = query_of_fusion(op);
    let score = unit_roundoff(cache.cache_dtype).powi(2) / 3.0 + written.variance;
    seen.and(Error::random(score)).and(Error { variance: 0.0, ..written })
}

/// Sizes of an op's slots, by name.
trait Sizes {
    fn width(&self, slot: &str) -> f64;
    fn dtype(&self, slot: &str) -> DType;
}

impl Sizes for OpBuf {
    /// The last dim of a slot.
    fn width(&self, slot: &str) -> f64 {
        opbuf::spec(self, slot).and_then(|s| s.dims().last()).map_or(1.0, |&d| d.max(1) as f64)
    }

    fn dtype(&self, slot: &str) -> DType {
        opbuf::spec(self, slot).map_or(DType::F32, |s| s.dtype)
    }
}

/// So many roundings to a dtype on the way, of variance u²/3 each. Those to f32 are part of what the sums lose.
fn rounded(dtype: DType, times: f64) -> Error {
    match dtype {
        DType::F16 | DType::BF16 => Error::random(times * unit_roundoff(dtype).powi(2) / 3.0),
        _ => Error::NONE,
    }
}

/// A sum of k products in f32.
///
/// After j terms the partial sum has a deviation of √(j/k) of the result's; adding the next rounds it, with a variance of u²/3 of its
/// square: `Σ_j u²/3 · j/k = u² k/6`. Matrix units that take 16-bit numbers sum groups of 4 or more products at once and cut off what
/// does not fit, up to 2u of the partial sum, u on average, always towards zero: `k/4 · u · 2/3` of the result at most (2/3 being the
/// mean of √(j/k)).
fn products(k: f64, inputs: DType) -> Error {
    let sum = Error { products: true, ..Error::walk(k / 6.0 * super::F32 * super::F32) };
    match inputs {
        DType::F16 | DType::BF16 => sum.and(Error::shift(k / 6.0)),
        _ => sum,
    }
}

/// A weight `d q - m` costs three roundings if it is computed; if scales and minima are summed apart, the parts are up to twice the result.
/// The first is nothing beside the second: one rounding a term against one of the whole sum a term.
fn scaled(in_parts: bool, sum: Error) -> Error {
    if in_parts { Error { shift: sum.shift, ..sum.doubled() } } else { sum }
}

/// The layer's sum; a bias and what was in `y` before add a rounding each.
fn linear(op: &OpBuf, slot: usize) -> Error {
    let Some(w) = op.weights().get(slot) else { return Error::NONE };
    // Activations of 8 bits are multiplied by the row's scale, or the group's, after a sum of their own: as for weights with scales.
    let in_parts = w.scheme != Scheme::DENSE || act_quant(op) != 0;
    scaled(in_parts, products(w.k as f64, op.dtype("x"))).and(Error::shift(4.0))
}

/// Weights that are not computed, times 1, are the bits of the file; else a scale, a minimum and SCALE make three roundings, and where
/// a minimum cancels what is left may be PEAK times smaller.
fn embedding(op: &OpBuf) -> Option<Error> {
    let stored = op.weights().iter().all(|w| w.scheme == Scheme::DENSE);
    let scaled = attrs_of::<Embedding>(op).scale.to_bits() != 1f64.to_bits();
    match (stored, scaled) {
        (true, false) => None,
        (true, true) => Some(Error::relative(1.0)),
        _ => Some(Error::relative(3.0).and(Error::shift(PEAK))),
    }
}

/// A sum of n squares grows all the time, its roundings like √n u / 3, six of their deviations 2 √n u; the root halves that. Then a root,
/// the mean's division, gamma's sum, two products.
fn norm(n: f64) -> Error {
    Error::relative(n.sqrt() + FUNCTION + 4.0)
}

/// Two products and a sum that may cancel: u of each product, which is at most PEAK scales.
fn rotation() -> Error {
    Error::shift(2.0 * PEAK)
}

/// The gate's function and the product. In tails (`1 + tanh`, `e^-|g|`) what is left of 1 is small: the error is absolute there, up to
/// u times the gate times the up, which is at most PEAK scales.
fn activation() -> Error {
    Error::relative(2.0 * FUNCTION).and(Error::shift(FUNCTION + PEAK))
}

/// The scores `SCALE q·k` of an attention.
#[derive(Clone, Copy)]
struct Scores {
    /// Products of each.
    products: f64,
    /// Their standard deviation.
    deviation: f64,
}

/// Queries have a deviation of 2, keys of 1; a soft-cap bounds what comes out.
fn scores(op: &OpBuf) -> Scores {
    let Attention { scale, softcap, .. } = attention(op);
    let products = match op.kind() {
        OpKind::MLA_ATTENTION => op.width("qc") + op.width("qr"),
        _ => op.width("q"),
    };
    let deviation = 2.0 * scale.abs() * products.sqrt();
    Scores { products, deviation: if softcap > 0.0 { deviation.min(softcap) } else { deviation } }
}

/// Attention over n keys.
///
/// - A score's error makes the weight wrong by as much of itself; errors of different keys are independent, so the output's is the
///   score's, relative to the row (whose scale is that of `Σ p² v²`). The keys that count have scores of up to 3 deviations s, to which the
///   sum of k products grows in proportion: `Σ_j u²/3 · (3 s j/k)² = u² k s²`; cut off by matrix units: `k/4 · u · 3 s / 2`.
/// - Scores, up to 8 deviations, are rounded as arguments of the exponential; this and [`FUNCTION`] and the weights' sum (positive: 2 √n u)
///   are relative to the weights.
/// - The weighted sum of values is one of `products`; a rescaling a chunk is one product more, with as few chunks as sums.
/// - Weights may pass through the compute type, as matrix units want them: independent roundings again.
fn weighted(scores: Scores, n: f64, compute: DType) -> Error {
    let cut = match compute {
        DType::F16 | DType::BF16 => 0.375 * scores.products * scores.deviation,
        _ => 0.0,
    };
    Error {
        variance: scores.products * (scores.deviation * super::F32).powi(2),
        ..Error::shift(cut)
    }
    .and(Error::relative(FUNCTION + 2.0 * n.sqrt()))
    .and(Error::shift(2.0 * 8.0 * scores.deviation))
    .and(products(2.0 * n, compute))
    .and(rounded(compute, 1.0))
}

/// Keys of the longest sequence.
fn longest(inputs: &Inputs) -> f64 {
    inputs.batch.iter().map(|&[_, len]| len).max().unwrap_or(1).max(1) as f64
}

/// Two exponentials of differences of logarithms (up to 16 in size), two products, a sum.
fn merge() -> Error {
    Error::shift(ARGUMENT + FUNCTION + PEAK)
}

/// An element as it is, or a code times its scale: one rounding before that to the dtype.
fn gather(op: &OpBuf) -> Option<Error> {
    (!is_float(op.dtype("k_cache"))).then(|| Error::relative(1.0))
}

/// Exponentials of differences (up to 32: two roundings of them), a positive sum, a division; the same again for NORM, and SCALE.
fn router(experts: f64) -> Error {
    Error::relative(2.0 * ARGUMENT + 2.0 * FUNCTION + 2.0 * experts.sqrt())
}

/// `ln Σ e^l` of a positive sum: its relative error becomes an absolute one; results have a size of several units, but for a single
/// likely id. The difference of two numbers of the largest logit's size is rounded, and the temperature divides.
fn log_softmax(vocabulary: f64) -> Error {
    Error::shift(ARGUMENT + 2.0 * FUNCTION + vocabulary.sqrt())
}

/// A norm (or none) and a rotation, with the norm perhaps rounded to the compute type: both members of a pair are, each with its share of
/// the result.
fn query_of_fusion(op: &OpBuf) -> Error {
    let normed = attrs_of::<QkvPost>(op).eps > 0.0;
    let between = if normed { rounded(op.dtype("qkv"), 2.0) } else { Error::NONE };
    norm(op.width("q")).and(rotation()).and(between)
}

/// Gate and up are off by what their sums are; an activation amplifies a relative error of the gate by `|g act' / act| <= 1 + |g|`, which
/// counts where `|g|` is small, and the product is bilinear. Rounded to the compute type the up costs u, the gate 2 u of the result, and
/// in the tail half a u of the scale.
fn linear_act_mul(op: &OpBuf) -> Error {
    let compute = op.dtype("x");
    let sums = linear(op, 0);
    let between = match compute {
        DType::F16 | DType::BF16 => unit_roundoff(compute),
        _ => 0.0,
    };
    sums.doubled().and(activation()).and(Error {
        relative: 3.0 * between,
        shift: between,
        ..Error::NONE
    })
}

/// Two layers with an activation between them. Gate, up, their product, and each expert's result may pass through the compute type:
/// gates count twice (see [`linear_act_mul`]), which makes 4 + 1 + 1 + 1 variances of one rounding, and a weighted input one more. In the
/// second layer they are independent terms of a sum. The weighted sum over experts rounds once a term.
fn experts(op: &OpBuf) -> Error {
    let compute = op.dtype("x");
    let attrs: MoeExperts = attrs_of(op);
    let first = linear(op, 0);
    let roundings = 7.0 + f64::from(u8::from(attrs.weight_on_input));
    first
        .doubled()
        .and(activation())
        .and(linear(op, 1))
        .and(Error::shift(2.0 * op.width("ids")))
        .and(rounded(compute, roundings))
        .and(quantised_between(op, compute))
}

/// Activations of the second layer are quantised after they were computed: a code is another where its number, off by δ, lies that close
/// to the middle between two codes. A share of `2 δ / step` of the codes is then off by a step; one alone is `step · 4/√I`.
fn quantised_between(op: &OpBuf, compute: DType) -> Error {
    let step = match act_quant(op) {
        0 => return Error::NONE,
        // Of i8: the largest of a row (4 scales) over 127.
        1 => 4.0 / 127.0,
        // Of f8e4m3: 2⁻³ of a number, which is one scale on average.
        _ => 0.125,
    };
    let off = match compute {
        DType::F16 | DType::BF16 => 3.0 * unit_roundoff(compute),
        _ => 64.0 * super::F32,
    };
    let share = (2.0 * off / step).min(1.0);
    let width = op.weights().get(1).map_or(1.0, |w| w.k.max(1) as f64);
    let one = step * 4.0 / width.sqrt();
    Error { shift: one, ..Error::random(share * step * step) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: OpKind) -> Option<Error> {
        let attrs = opbuf::default_attrs(kind).unwrap();
        let op = opbuf::build(kind, &attrs, vec![halyard_core::TensorSpec::NONE], vec![]).unwrap();
        let inputs = Inputs {
            slots: Vec::new(),
            scalars: Vec::new(),
            host: Vec::new(),
            cache: None,
            batch: vec![[1, 64]],
        };
        of_output(&op, &inputs)
    }

    #[test]
    fn what_only_moves_is_exact() {
        assert!(error(OpKind::COPY).is_none() && error(OpKind::GATHER_ROWS).is_none());
        assert!(error(OpKind::ADD).is_some() && error(OpKind::PAGED_ATTENTION).is_some());
    }

    #[test]
    fn every_op_of_floats_has_a_derivation() {
        for schema in halyard_abi::ops::catalogue::CATALOGUE {
            let moves = [
                OpKind::COPY,
                OpKind::GATHER_ROWS,
                OpKind::EMBEDDING,
                OpKind::TOPK,
                OpKind::MOE_PERMUTE,
                OpKind::KV_GATHER,
            ];
            assert_eq!(
                error(schema.kind).is_none(),
                moves.contains(&schema.kind),
                "{}",
                schema.kind
            );
        }
    }

    /// Of as many sums as this, one in 20 000 is off by more than six deviations.
    #[test]
    fn errors_of_sums_are_as_far_from_normal_as_derived() {
        const K: u32 = 256;
        const SUMS: u32 = 60_000;
        let mut rng = crate::rng::Rng::new(2, "walks");
        let unit = products(f64::from(K), DType::F32).walk.sqrt();
        let (mut square, mut beyond_4) = (0.0, 0u32);
        for _ in 0..SUMS {
            let (mut exact, mut sum) = (0.0, 0.0f32);
            for _ in 0..K {
                let term = rng.normal() / f64::from(K).sqrt();
                exact += term;
                sum = (f64::from(sum) + term) as f32;
            }
            let error = (f64::from(sum) - exact).abs() / unit;
            assert!(error < crate::tolerance::WALK_DEVIATIONS);
            square += error * error / f64::from(SUMS);
            beyond_4 += u32::from(error > 4.0);
        }
        // 3/(8 ln 2), and 0.72 e^{-π x/2} / √x of x = 4/√(2 · 0.54): normal errors were beyond 4 in 4 of 60 000 sums.
        assert!((0.5..0.6).contains(&square), "{square}");
        assert!((30..75).contains(&beyond_4), "{beyond_4}");
    }

    /// Sums of products in f32, in f32 with 16-bit inputs' accumulator, and in f16: only the first two are within the bound.
    #[test]
    fn sums_in_half_precision_are_outside() {
        for k in [64, 768, 4096] {
            let mut rng = crate::rng::Rng::new(1, "sums");
            let bound = products(f64::from(k), DType::BF16).bounds(DType::F32);
            let (mut worst_f32, mut worst_f16) = (0.0f64, 0.0f64);
            for _ in 0..64 {
                let (mut exact, mut f32s, mut f16s) = (0.0, 0.0f32, half::f16::ZERO);
                for _ in 0..k {
                    let term = rng.normal() * rng.normal() / f64::from(k).sqrt();
                    exact += term;
                    f32s += term as f32;
                    f16s = half::f16::from_f64(f16s.to_f64() + term);
                }
                worst_f32 = worst_f32.max((f64::from(f32s) - exact).abs());
                worst_f16 = worst_f16.max((f16s.to_f64() - exact).abs());
            }
            assert!(worst_f32 <= bound.atol, "{k}: {worst_f32:e} of {:e}", bound.atol);
            assert!(worst_f16 > 4.0 * bound.atol, "{k}: {worst_f16:e} of {:e}", bound.atol);
        }
    }
}
