//! Formats with blocks of 256 values and scales of 16 or 32 of them.
//!
//! Codes of two bits lie in quarters: of each 128 values, value `r` has the bits `2 (r / 32)` of byte `r % 32`.

use super::f16_at;

/// The two-bit code of value `i`, where every 32 bytes hold 128 of them.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// The nibble of value `i`, where every 32 bytes hold 64: the low ones first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// 16 bytes of scale (low nibble) and minimum (high), 64 of two-bit codes, f16 d, f16 dmin: `w = d sc q - dmin m`.
pub(super) fn q2_k(block: &[u8]) -> Vec<f64> {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, dmin) = (f16_at(&block[80..]), f16_at(&block[82..]));
    let value = |i: usize| {
        let scale = scales[i / 16];
        d * f64::from(scale & 15) * f64::from(two_bits(codes, i)) - dmin * f64::from(scale >> 4)
    };
    (0..256).map(value).collect()
}

/// 32 bytes of third bits, 64 of two-bit codes, 12 of scales, f16 d: `w = d (sc - 32) (q - 4)` with `q` of three bits.
pub(super) fn q3_k(block: &[u8]) -> Vec<f64> {
    let (thirds, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = f16_at(&block[108..]);
    // Scale j: four low bits from nibble j of the first 8 bytes (low nibbles first), two high bits from the last 4.
    let scale = |j: usize| {
        let low = scales[j % 8] >> (j / 8 * 4) & 15;
        let high = scales[8 + j % 4] >> (j / 4 * 2) & 3;
        f64::from(low | high << 4) - 32.0
    };
    let value = |i: usize| {
        let third = thirds[i % 32] >> (i / 32) & 1;
        d * scale(i / 16) * (f64::from(two_bits(codes, i) | third << 2) - 4.0)
    };
    (0..256).map(value).collect()
}

/// The 6-bit scale and minimum of sub-block `s` of 32 values, from 12 bytes.
///
/// Sub-blocks 0 to 3 have theirs in the low six bits of bytes `s` and `s + 4`. Those of 4 to 7 have four low bits in byte `s + 4`
/// (scale in the low nibble, minimum in the high) and two high bits on top of bytes `s - 4` and `s`.
fn scale_and_min(packed: &[u8], s: usize) -> (f64, f64) {
    let (scale, min) = if s < 4 {
        (packed[s] & 63, packed[s + 4] & 63)
    } else {
        (packed[s + 4] & 15 | packed[s - 4] >> 6 << 4, packed[s + 4] >> 4 | packed[s] >> 6 << 4)
    };
    (f64::from(scale), f64::from(min))
}

/// f16 d, f16 dmin, 12 bytes of scales and minima, nibbles: `w = d sc q - dmin m`.
pub(super) fn q4_k(block: &[u8]) -> Vec<f64> {
    let (d, dmin) = (f16_at(block), f16_at(&block[2..]));
    let value = |i: usize| {
        let (scale, min) = scale_and_min(&block[4..16], i / 32);
        d * scale * f64::from(nibble(&block[16..], i)) - dmin * min
    };
    (0..256).map(value).collect()
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `s` of byte `i % 32` for sub-block `s`.
pub(super) fn q5_k(block: &[u8]) -> Vec<f64> {
    let (d, dmin) = (f16_at(block), f16_at(&block[2..]));
    let value = |i: usize| {
        let (scale, min) = scale_and_min(&block[4..16], i / 32);
        let fifth = block[16 + i % 32] >> (i / 32) & 1;
        d * scale * f64::from(nibble(&block[48..], i) | fifth << 4) - dmin * min
    };
    (0..256).map(value).collect()
}

/// 128 bytes of low nibbles, 64 of two high bits, 16 × i8 scales, f16 d: `w = d sc (q - 32)`.
///
/// Of each 128 values, `r` has its nibble in byte `r % 64`: the low one for `r < 64`.
pub(super) fn q6_k(block: &[u8]) -> Vec<f64> {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16_at(&block[208..]);
    let value = |i: usize| {
        let low = low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        let q = f64::from(low | two_bits(high, i) << 4) - 32.0;
        d * f64::from(scales[i / 16].cast_signed()) * q
    };
    (0..256).map(value).collect()
}
