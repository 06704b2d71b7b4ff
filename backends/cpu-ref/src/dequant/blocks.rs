//! Formats with blocks of 32 values.

use super::f16_at;

/// The nibbles of 16 bytes: the low ones are values 0 to 15, the high ones 16 to 31.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes[..16].iter().map(|b| b & 15).chain(bytes[..16].iter().map(|b| b >> 4))
}

/// Nibbles with a fifth bit each: bit `i` of the four bytes before them belongs to value `i`.
fn five_bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..]).enumerate().map(move |(i, q)| q | ((fifth >> i & 1) as u8) << 4)
}

/// f16 d, nibbles: `w = d (q - 8)`.
pub(super) fn q4_0(block: &[u8]) -> Vec<f64> {
    let d = f16_at(block);
    nibbles(&block[2..]).map(|q| d * (f64::from(q) - 8.0)).collect()
}

/// f16 d, f16 m, nibbles: `w = d q + m`.
pub(super) fn q4_1(block: &[u8]) -> Vec<f64> {
    let (d, m) = (f16_at(block), f16_at(&block[2..]));
    nibbles(&block[4..]).map(|q| d * f64::from(q) + m).collect()
}

/// f16 d, fifth bits, nibbles: `w = d (q - 16)`.
pub(super) fn q5_0(block: &[u8]) -> Vec<f64> {
    let d = f16_at(block);
    five_bits(&block[2..]).map(|q| d * (f64::from(q) - 16.0)).collect()
}

/// f16 d, f16 m, fifth bits, nibbles: `w = d q + m`.
pub(super) fn q5_1(block: &[u8]) -> Vec<f64> {
    let (d, m) = (f16_at(block), f16_at(&block[2..]));
    five_bits(&block[4..]).map(|q| d * f64::from(q) + m).collect()
}

/// f16 d, 32 × i8: `w = d q`.
pub(super) fn q8_0(block: &[u8]) -> Vec<f64> {
    let d = f16_at(block);
    block[2..].iter().map(|q| d * f64::from(q.cast_signed())).collect()
}

/// f16 d, nibbles that index a table: `w = d table[q]`.
pub(super) fn iq4_nl(block: &[u8]) -> Vec<f64> {
    const TABLE: [i8; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let d = f16_at(block);
    nibbles(&block[2..]).map(|q| d * f64::from(TABLE[usize::from(q)])).collect()
}
