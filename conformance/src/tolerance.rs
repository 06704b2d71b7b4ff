//! How far a result may be from the oracle's, by kind of op and dtype.
//!
//! The oracle computes in f64 and rounds once; a backend computes in f32 with sums in f32 or better, in any order, and rounds once.
//! Both roundings can fall either way, so 16-bit results may be one unit in the last place apart: 2⁻⁷ for bf16 (8 significant bits),
//! 2⁻¹⁰ for f16 (11 bits), relative to the value. What f32 arithmetic itself loses is absolute, relative to the size of what was
//! summed: that is the row's root mean square, and for linear layers that of the input's row, which weights of deviation 1/√K keep.
//! Numbers below the normal range of f32 may be taken for zero in products, as matrix units do (those of f16 are normal in f32).

use halyard_core::{DType, OpBuf, OpKind, Scheme};

use crate::opbuf;

/// Bounds for one output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// Every element: `|got - want| <= rtol |want| + atol scale`.
    pub(crate) rtol: f64,
    /// See `rtol`; the scale is the root mean square of the row, or what its inputs let expect if that is more.
    pub(crate) atol: f64,
    /// Errors up to this are none: matrix units may take numbers below the normal range of f32 for zero.
    pub(crate) tiny: f64,
    /// All together: `Σ (got - want)² <= nmse Σ want²`, and as much for `1 - cosine`.
    pub(crate) nmse: f64,
}

/// Same bits (NaN of any payload).
pub(crate) const EXACT: Bounds = Bounds { rtol: 0.0, atol: 0.0, tiny: 0.0, nmse: 0.0 };

/// Half a unit in the last place of 1: what one rounding to nearest loses at most, relative to the value.
pub(crate) fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

/// `Σ |w|` is about 0.8 √K where weights have a deviation of 1/√K: so much can be lost if each input is flushed to zero.
const FLUSHED: f64 = 64.0 * f32::MIN_POSITIVE as f64;

/// How an op arrives at its results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    /// Nothing is computed, or only integers come out.
    Moves,
    /// A product and a sum of exact numbers, each rounded.
    Arithmetic,
    /// Exponentials, roots, sums along a row.
    Functions,
    /// Sums over K products.
    Reduction,
    /// Reductions one after the other, with what is between them kept in the compute type by some hardware.
    Chain,
    /// Activations are quantised on purpose: only the whole is bounded.
    QuantisedActivations,
}

fn class(op: &OpBuf) -> Class {
    if opbuf::quantises_activations(op) {
        return Class::QuantisedActivations;
    }
    match op.kind() {
        OpKind::COPY
        | OpKind::GATHER_ROWS
        | OpKind::ARGMAX
        | OpKind::TOPK
        | OpKind::MOE_PERMUTE => Class::Moves,
        OpKind::EMBEDDING if op.weights().iter().all(|w| w.scheme == Scheme::DENSE) => {
            let plain = opbuf::attrs_of::<halyard_core::attrs::Embedding>(op).scale.to_bits()
                == 1f64.to_bits();
            if plain { Class::Moves } else { Class::Arithmetic }
        }
        OpKind::ADD | OpKind::MUL | OpKind::EMBEDDING => Class::Arithmetic,
        OpKind::LINEAR | OpKind::BATCHED_LINEAR | OpKind::GROUPED_LINEAR => Class::Reduction,
        OpKind::PAGED_ATTENTION
        | OpKind::MLA_ATTENTION
        | OpKind::VARLEN_ATTENTION
        | OpKind::MERGE_ATTENTION
        | OpKind::MLA_WRITE
        | OpKind::KV_GATHER
        | OpKind::QKV_POST
        | OpKind::LINEAR_ACT_MUL
        | OpKind::KV_WRITE
        | OpKind::KV_COPY_BLOCKS
        | OpKind::MOE_EXPERTS => Class::Chain,
        _ => Class::Functions,
    }
}

/// The bounds of an op's output of a dtype.
pub(crate) fn bounds(op: &OpBuf, dtype: DType) -> Bounds {
    if !crate::array::is_float(dtype) {
        return EXACT;
    }
    let ulp = match dtype {
        DType::BF16 => 2f64.powi(-7),
        DType::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-23),
    };
    // Mean square of one rounding: ulp² / 12 of values spread over a binade, where an ulp is between its half and itself.
    let noise = ulp * ulp / 12.0;
    let f32s = dtype == DType::F32;
    match class(op) {
        Class::Moves => EXACT,
        // f32: a product and a sum make two roundings, of numbers no larger than the row's typical ones.
        Class::Arithmetic => {
            Bounds { rtol: 2.0 * ulp, atol: 1e-6, tiny: 0.0, nmse: noise.max(1e-13) }
        }
        // exp, rsqrt and tanh of SIMD libraries are good to a few ulp; sums along a row lose √H of them.
        Class::Functions => {
            let rtol = if f32s { 1e-5 } else { ulp };
            Bounds { rtol, atol: 1e-5, tiny: 0.0, nmse: noise.max(1e-11) }
        }
        // Random-walk growth of f32 sums: √8192 roundings of 2⁻²⁵ are 1e-6 of the result's deviation, 5e-6 at worst among 10⁵
        // results; formats that sum scales and minima apart lose twice that.
        Class::Reduction => {
            let rtol = if f32s { 1e-5 } else { ulp };
            Bounds { rtol, atol: 2e-5, tiny: FLUSHED, nmse: (2.0 * noise).max(1e-10) }
        }
        // Probabilities and gated values may pass through the compute type on their way.
        Class::Chain => {
            let (rtol, atol, nmse) = match dtype {
                DType::BF16 => (2.0 * ulp, 2.0 * ulp, 1e-4),
                DType::F16 => (2.0 * ulp, 2.0 * ulp, 1e-5),
                _ => (2e-5, 5e-5, 1e-9),
            };
            Bounds { rtol, atol, tiny: FLUSHED, nmse }
        }
        Class::QuantisedActivations => Bounds { rtol: 0.1, atol: 0.2, tiny: FLUSHED, nmse: 1e-3 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_core::{TensorSpec, attrs::Copy};

    #[test]
    fn bounds_are_ordered_by_precision() {
        let op = |kind: OpKind| {
            let attrs = opbuf::default_attrs(kind).unwrap();
            opbuf::build(kind, &attrs, vec![TensorSpec::NONE], vec![]).unwrap()
        };
        for kind in [OpKind::ADD, OpKind::RMS_NORM, OpKind::LINEAR, OpKind::PAGED_ATTENTION] {
            let [f32, f16, bf16] =
                [DType::F32, DType::F16, DType::BF16].map(|d| bounds(&op(kind), d));
            assert!(f32.rtol < f16.rtol && f16.rtol < bf16.rtol, "{kind}");
            assert!(f32.nmse < f16.nmse && f16.nmse < bf16.nmse, "{kind}");
        }
        assert_eq!(bounds(&OpBuf::new(&Copy {}, [], []), DType::F32), EXACT);
        assert_eq!(bounds(&op(OpKind::LINEAR), DType::I32), EXACT);
    }
}
