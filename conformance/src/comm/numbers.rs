//! Elements as numbers: filling, the reference's reductions and how far a device may be from them.

use half::{bf16, f16};
use halyard_abi::fp8;
use halyard_core::{DType, ReduceOp};

use crate::{
    compare::{Comparison, Worst},
    rng::Rng,
};

/// Bytes of an element.
pub(super) fn size_of(dtype: DType) -> usize {
    (dtype.bits().unwrap_or(8) / 8) as usize
}

/// A float dtype's unit roundoff, and half its smallest step.
fn rounding(dtype: DType) -> Option<(f64, f64)> {
    let (mantissa_bits, smallest) = match dtype {
        DType::F32 => (24, -149),
        DType::F16 => (11, -24),
        DType::BF16 => (8, -133),
        DType::F8E4M3 => (4, -9),
        DType::F8E5M2 => (3, -16),
        _ => return None,
    };
    Some((2f64.powi(-mantissa_bits), 2f64.powi(smallest - 1)))
}

/// Random elements. Floats are moderate, so that nothing overflows; bits of integers are arbitrary.
pub(super) fn random(dtype: DType, elements: usize, rng: &mut Rng) -> Vec<u8> {
    let size = size_of(dtype);
    let mut bytes = Vec::with_capacity(elements * size);
    for _ in 0..elements {
        // Sizes from 1/4 to 2: products of eight stay within every dtype.
        let value = rng.between(0.25, 2.0) * if rng.below(2) == 0 { 1.0 } else { -1.0 };
        match dtype {
            DType::F32 => bytes.extend((value as f32).to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f64(value).to_le_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f64(value).to_le_bytes()),
            DType::F8E4M3 => bytes.push(fp8::e4m3_from_f64(value)),
            DType::F8E5M2 => bytes.push(fp8::e5m2_from_f64(value)),
            _ => bytes.extend(&rng.next().to_le_bytes()[..size]),
        }
    }
    bytes
}

/// An element as a float.
fn float(dtype: DType, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        (DType::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
        (DType::F16, &[a, b]) => f64::from(f16::from_le_bytes([a, b])),
        (DType::BF16, &[a, b]) => f64::from(bf16::from_le_bytes([a, b])),
        (DType::F8E4M3, &[a]) => f64::from(fp8::e4m3_to_f32(a)),
        (DType::F8E5M2, &[a]) => f64::from(fp8::e5m2_to_f32(a)),
        _ => f64::NAN,
    }
}

/// An element as an integer.
fn integer(dtype: DType, bytes: &[u8]) -> i128 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let unused = 64 - 8 * bytes.len();
    match dtype {
        DType::I8 | DType::I32 | DType::I64 => {
            i128::from(i64::from_le_bytes(word) << unused >> unused)
        }
        _ => i128::from(u64::from_le_bytes(word)),
    }
}

/// What has to be there.
#[derive(Clone, Debug)]
pub(super) enum Want {
    /// Exactly this.
    Bytes(Vec<u8>),
    /// Floats within a bound each.
    Floats { dtype: DType, values: Vec<f64>, bounds: Vec<f64> },
}

/// The combination of equally long parts, one a rank.
pub(super) fn combined(dtype: DType, op: ReduceOp, parts: &[&[u8]]) -> Want {
    let size = size_of(dtype);
    let count = parts[0].len() / size;
    if let Some((unit, half_step)) = rounding(dtype) {
        let mut column = vec![0.0; parts.len()];
        let mut element = |i: usize| {
            for (x, part) in column.iter_mut().zip(parts) {
                *x = float(dtype, &part[i * size..][..size]);
            }
            of_floats(op, &column, unit, half_step)
        };
        let (values, bounds) = (0..count).map(&mut element).unzip();
        return Want::Floats { dtype, values, bounds };
    }
    let mut column = vec![0; parts.len()];
    let mut bytes = Vec::with_capacity(count * size);
    for i in 0..count {
        for (x, part) in column.iter_mut().zip(parts) {
            *x = integer(dtype, &part[i * size..][..size]);
        }
        bytes.extend_from_slice(&of_integers(op, &column).to_le_bytes()[..size]);
    }
    Want::Bytes(bytes)
}

/// Sums and products wrap: their low bits are those of the exact result modulo 2^128.
fn of_integers(op: ReduceOp, column: &[i128]) -> i128 {
    let all = column.iter().copied();
    match op {
        ReduceOp::PROD => all.fold(1, i128::wrapping_mul),
        ReduceOp::MIN => all.min().unwrap_or(0),
        ReduceOp::MAX => all.max().unwrap_or(0),
        _ => all.fold(0, i128::wrapping_add),
    }
}

/// The value in f64, and the bound of an f32 accumulation in any order with one rounding to the dtype after it.
///
/// A sum of n terms takes n - 1 additions, each off by at most `2^-24` of its result, which is at most `Σ |x|` (Higham, "Accuracy and
/// Stability of Numerical Algorithms", 4.2, to first order; the rest is in a factor of 1.01). A product is off by as much of itself, a mean
/// takes a division more. Rounding to the dtype adds a unit roundoff of what was accumulated, or half the smallest step.
fn of_floats(op: ReduceOp, column: &[f64], unit: f64, half_step: f64) -> (f64, f64) {
    let ranks = column.len() as f64;
    let sum: f64 = column.iter().sum();
    let sizes: f64 = column.iter().map(|x| x.abs()).sum();
    let product: f64 = column.iter().product();
    let f32_unit = 2f64.powi(-24);
    let (value, accumulated) = match op {
        ReduceOp::MIN => return (column.iter().copied().fold(f64::INFINITY, f64::min), 0.0),
        ReduceOp::MAX => return (column.iter().copied().fold(f64::NEG_INFINITY, f64::max), 0.0),
        ReduceOp::PROD => (product, (ranks - 1.0) * f32_unit * product.abs()),
        ReduceOp::AVG => (sum / ranks, ranks * f32_unit * sizes / ranks),
        _ => (sum, (ranks - 1.0) * f32_unit * sizes),
    };
    let accumulated = 1.01 * accumulated;
    // Unchanged by a reduction over one rank: it is in the dtype already.
    let rounded =
        if column.len() == 1 { 0.0 } else { unit * (value.abs() + accumulated) + half_step };
    // An f32 accumulation is in the dtype already.
    let rounded = if unit <= f32_unit && op != ReduceOp::AVG { half_step } else { rounded };
    (value, accumulated + rounded)
}

/// Adds what a rank got to a case's comparison. `what` says which rank and size.
pub(super) fn compare(total: &mut Comparison, what: &str, got: &[u8], want: &Want) {
    match want {
        Want::Bytes(want) => {
            total.elements += want.len();
            let wrong = |at: &usize| got.get(*at) != want.get(*at);
            if let Some(at) = (0..want.len().max(got.len())).find(wrong) {
                let byte = |b: Option<&u8>| b.map_or("none".into(), |b| format!("{b:#04x}"));
                let (got, want) = (byte(got.get(at)), byte(want.get(at)));
                fail(total, format!("{what}: byte {at} is {got}, expected {want}"), at, got, want);
            }
        }
        Want::Floats { dtype, values, bounds } => {
            total.elements += values.len();
            let size = size_of(*dtype);
            if got.len() != values.len() * size {
                let message = format!("{what}: {} bytes for {} elements", got.len(), values.len());
                return fail(total, message, 0, got.len().to_string(), values.len().to_string());
            }
            for (i, ((bytes, want), bound)) in
                got.chunks_exact(size).zip(values).zip(bounds).enumerate()
            {
                let got = float(*dtype, bytes);
                let error = (got - want).abs();
                let share = if error > 0.0 { error / bound.max(f64::MIN_POSITIVE) } else { 0.0 };
                total.max_abs = total.max_abs.max(error);
                total.max_of_bound = total.max_of_bound.max(share.min(f64::MAX));
                if error.is_nan() || error > *bound {
                    let message =
                        format!("{what}: element {i} is {got}, expected {want} within {bound:.2e}");
                    return fail(total, message, i, got.to_string(), want.to_string());
                }
            }
        }
    }
}

/// Only the first failure is told.
fn fail(total: &mut Comparison, message: String, at: usize, got: String, want: String) {
    if total.passed {
        total.passed = false;
        total.share = 0.0;
        total.worst = Some(Worst { index: vec![at], got, want });
        total.failure = Some(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn passes(got: &[u8], want: &Want) -> bool {
        let mut total = Comparison::empty("data");
        compare(&mut total, "test", got, want);
        total.passed
    }

    #[test]
    fn bounds_hold_any_order_and_no_other_sum() {
        let parts = [f32s(&[1.0]), f32s(&[2f32.powi(-24)]), f32s(&[2f32.powi(-24)])];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let want = combined(DType::F32, ReduceOp::SUM, &parts);
        assert!(passes(&f32s(&[1.0]), &want), "from left to right");
        assert!(passes(&f32s(&[1.0 + f32::EPSILON]), &want), "from right to left");
        assert!(!passes(&f32s(&[1.0 + 4.0 * f32::EPSILON]), &want));
        assert!(!passes(&f32s(&[f32::NAN]), &want));
        assert!(!passes(&f32s(&[1.0, 1.0]), &want));
    }

    #[test]
    fn short_floats_must_not_be_summed_in_short() {
        // In bf16, 256 + 1 is 256: summing three ones so loses them all.
        let part = |v: f32| bf16::from_f32(v).to_le_bytes().to_vec();
        let parts = [part(256.0), part(1.0), part(1.0), part(1.0)];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let want = combined(DType::BF16, ReduceOp::SUM, &parts);
        assert!(passes(&part(260.0), &want) && passes(&part(258.0), &want));
        assert!(!passes(&part(256.0), &want));
    }

    #[test]
    fn integers_wrap_and_keep_their_sign() {
        let want = |dtype, op, parts: &[&[u8]]| combined(dtype, op, parts);
        assert!(passes(&[44], &want(DType::U8, ReduceOp::SUM, &[&[200], &[100]])));
        assert!(passes(&[0x80], &want(DType::I8, ReduceOp::MIN, &[&[0x80], &[1]])));
        assert!(passes(&[0x80], &want(DType::U8, ReduceOp::MAX, &[&[0x80], &[1]])));
        assert!(!passes(&[45], &want(DType::U8, ReduceOp::SUM, &[&[200], &[100]])));
    }
}
