//! The numbers of a product. Products are exact, sums in f32: 32 partial sums of every 32nd term, then these one after the other.

use half::{bf16, f16};

use crate::object::Type;

/// Partial sums of a dot product.
const PARTS: usize = 32;

/// Little-endian elements as f32, which has all of them.
pub(crate) fn widen(float: Type, bytes: &[u8]) -> Vec<f32> {
    let half = |two: &[u8]| u16::from_le_bytes([two[0], two[1]]);
    match float {
        Type::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Type::F16 => bytes.chunks_exact(2).map(|b| f16::from_bits(half(b)).to_f32()).collect(),
        Type::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_bits(half(b)).to_f32()).collect(),
    }
}

/// Stores a number at element `at`, rounded to nearest even.
pub(crate) fn store(float: Type, bytes: &mut [u8], at: usize, value: f32) {
    match float {
        Type::F32 => bytes[at * 4..][..4].copy_from_slice(&value.to_le_bytes()),
        Type::F16 => bytes[at * 2..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        Type::Bf16 => bytes[at * 2..][..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
    }
}

/// Columns of `terms` elements of what is stored by rows or columns: `at(column, term)` names an element.
pub(crate) fn columns(
    from: &[f32],
    count: usize,
    terms: usize,
    at: impl Fn(usize, usize) -> usize,
) -> Vec<f32> {
    (0..count)
        .flat_map(|column| (0..terms).map(move |term| (column, term)))
        .map(|(column, term)| from[at(column, term)])
        .collect()
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut parts = [0.0f32; PARTS];
    // A product of two f32 is exact in f64.
    let add = |sum: &mut f32, a: f32, b: f32| {
        *sum = (f64::from(*sum) + f64::from(a) * f64::from(b)) as f32;
    };
    let (a_whole, a_rest) = a.as_chunks::<PARTS>();
    let (b_whole, b_rest) = b.as_chunks::<PARTS>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for i in 0..PARTS {
            add(&mut parts[i], a[i], b[i]);
        }
    }
    for (sum, (&a, &b)) in parts.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        add(sum, a, b);
    }
    parts.iter().sum()
}
