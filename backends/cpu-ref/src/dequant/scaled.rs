//! Formats with the scales in a part of their own.

use halyard_sdk::{
    WeightDesc,
    abi::{
        fp8::e4m3_to_f32,
        scheme::FP8_BLOCK,
        types::{WEIGHT_PERM, WEIGHT_ZERO},
    },
};

use super::floats;

/// Codes f8e4m3, a scale for 128 columns of 128 rows: `w[j] = q[j] scale[j / 128]`.
pub(super) fn fp8_block(w: &WeightDesc<'_>, parts: &[&[u8]]) -> Vec<f64> {
    let scales = floats(w.dtype, parts[1]);
    let blocks = parts[0].chunks(usize::try_from(FP8_BLOCK).expect("128"));
    let values = blocks.zip(scales).map(|(codes, scale)| times(codes.iter().map(e4m3), scale));
    values.flatten().collect()
}

/// Codes f8e4m3 and the row's scale: `w = q scale`.
pub(super) fn fp8_channel(w: &WeightDesc<'_>, parts: &[&[u8]]) -> Vec<f64> {
    times(parts[0].iter().map(e4m3), floats(w.dtype, parts[1])[0])
}

/// Codes i8 and the row's scale: `w = q scale`.
pub(super) fn int8_channel(w: &WeightDesc<'_>, parts: &[&[u8]]) -> Vec<f64> {
    let codes = parts[0].iter().map(|q| f64::from(q.cast_signed()));
    times(codes, floats(w.dtype, parts[1])[0])
}

/// Nibbles, low one first, and a scale and a zero for each group of `G` columns: `w[j] = (q[j] - zero[j / G]) scale[j / G]`.
/// Without zeros they are 8; with a permutation, column `j` belongs to input `perm[j]`.
pub(super) fn int4_group(w: &WeightDesc<'_>, parts: &[&[u8]]) -> Vec<f64> {
    let group = w.group_size as usize;
    let scales = floats(w.dtype, parts[1]);
    let zeros: Vec<f64> = match w.flags & WEIGHT_ZERO {
        0 => vec![8.0; scales.len()],
        _ => parts[2].iter().map(|&z| f64::from(z)).collect(),
    };
    let codes = parts[0].iter().flat_map(|byte| [byte & 15, byte >> 4]);
    let value = |(j, q)| (f64::from(q) - zeros[j / group]) * scales[j / group];
    let values: Vec<f64> = codes.enumerate().map(value).collect();
    if w.flags & WEIGHT_PERM == 0 {
        return values;
    }
    let mut row = vec![0.0; values.len()];
    for (column, value) in columns(parts[parts.len() - 1]).zip(values) {
        row[column] += value;
    }
    row
}

/// The entries of a permutation; negative ones become larger than any column.
pub(crate) fn columns(perm: &[u8]) -> impl Iterator<Item = usize> {
    let (words, _) = perm.as_chunks();
    words.iter().map(|b| usize::try_from(i32::from_le_bytes(*b)).unwrap_or(usize::MAX))
}

fn e4m3(code: &u8) -> f64 {
    f64::from(e4m3_to_f32(*code))
}

fn times(codes: impl Iterator<Item = f64>, scale: f64) -> Vec<f64> {
    codes.map(|q| q * scale).collect()
}
