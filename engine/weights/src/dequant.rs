//! Exact `f32` values of stored elements: the definition that faster code is tested against.
//!
//! The products and sums are those of GGUF's reference, in `f32` and in its order, so the results are equal to its
//! to the last bit.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "unpacking small integers is nothing but casts"
)]

use half::{bf16, f16};

use crate::format::TensorFormat;

/// Elements that can't be turned into `f32`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DequantError {
    /// Not a whole number of blocks.
    #[error("{num_bytes} bytes of {format:?} are not whole blocks of {block_bytes}")]
    PartialBlock {
        /// The format.
        format: TensorFormat,
        /// How many bytes there are.
        num_bytes: usize,
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// Output and input differ in length.
    #[error("{format:?} bytes hold {num_elements} elements, the output has {num_outputs}")]
    Length {
        /// The format.
        format: TensorFormat,
        /// How many the bytes hold.
        num_elements: usize,
        /// How many the output holds.
        num_outputs: usize,
    },
    /// Integers and truth values are not weights.
    #[error("{0:?} elements are not numbers of a weight; supported: floats and GGUF's block types")]
    NotAWeight(TensorFormat),
}

/// The values of `bytes`, which must be whole blocks.
///
/// # Errors
/// See [`DequantError`].
pub fn dequantize(format: TensorFormat, bytes: &[u8]) -> Result<Vec<f32>, DequantError> {
    let mut out = vec![0.0; num_elements(format, bytes)?];
    dequantize_into(format, bytes, &mut out)?;
    Ok(out)
}

/// As [`dequantize`], into a buffer of the right length.
///
/// # Errors
/// See [`DequantError`].
pub fn dequantize_into(
    format: TensorFormat,
    bytes: &[u8],
    out: &mut [f32],
) -> Result<(), DequantError> {
    let num_elements = num_elements(format, bytes)?;
    if num_elements != out.len() {
        return Err(DequantError::Length { format, num_elements, num_outputs: out.len() });
    }
    match format {
        TensorFormat::F32 => blocks(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| {
            o[0] = f32::from_le_bytes(*b);
        }),
        TensorFormat::F16 => blocks(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
            o[0] = half_at(b, 0);
        }),
        TensorFormat::BF16 => blocks(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
            o[0] = bf16::from_le_bytes(*b).to_f32();
        }),
        TensorFormat::F64 => blocks(bytes, out, |b: &[u8; 8], o: &mut [f32; 1]| {
            o[0] = f64::from_le_bytes(*b) as f32;
        }),
        TensorFormat::Q4_0 => blocks(bytes, out, q4_0),
        TensorFormat::Q4_1 => blocks(bytes, out, q4_1),
        TensorFormat::Q5_0 => blocks(bytes, out, q5_0),
        TensorFormat::Q5_1 => blocks(bytes, out, q5_1),
        TensorFormat::Q8_0 => blocks(bytes, out, q8_0),
        TensorFormat::Q2_K => blocks(bytes, out, q2_k),
        TensorFormat::Q3_K => blocks(bytes, out, q3_k),
        TensorFormat::Q4_K => blocks(bytes, out, q4_k),
        TensorFormat::Q5_K => blocks(bytes, out, q5_k),
        TensorFormat::Q6_K => blocks(bytes, out, q6_k),
        TensorFormat::IQ4_NL => blocks(bytes, out, iq4_nl),
        _ => return Err(DequantError::NotAWeight(format)),
    }
    Ok(())
}

fn num_elements(format: TensorFormat, bytes: &[u8]) -> Result<usize, DequantError> {
    let block_bytes = format.block_bytes();
    let partial = DequantError::PartialBlock { format, num_bytes: bytes.len(), block_bytes };
    let block = usize::try_from(block_bytes).map_err(|_| partial.clone())?;
    if !bytes.len().is_multiple_of(block) {
        return Err(partial);
    }
    let per_block = usize::try_from(format.block_elements()).map_err(|_| partial)?;
    Ok(bytes.len() / block * per_block)
}

fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    unpack: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (outs, _) = out.as_chunks_mut::<N>();
    for (block, out) in blocks.iter().zip(outs) {
        unpack(block, out);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `w = d (q - 8)`: f16 d, then 16 bytes with elements 0..16 in the low nibbles and 16..32 in the high ones.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = d * f32::from((byte & 15) as i8 - 8);
        out[i + 16] = d * f32::from((byte >> 4) as i8 - 8);
    }
}

/// `w = d q + m`: f16 d, f16 m, nibbles as above.
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, byte) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

/// `w = d (q - 16)`: f16 d, 32 fifth bits, nibbles as above.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (i, byte) in block[6..].iter().enumerate() {
        out[i] = d * f32::from(five_bits(byte & 15, fifth, i) as i8 - 16);
        out[i + 16] = d * f32::from(five_bits(byte >> 4, fifth, i + 16) as i8 - 16);
    }
}

/// `w = d q + m`: f16 d, f16 m, 32 fifth bits, nibbles as above.
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (i, byte) in block[8..].iter().enumerate() {
        out[i] = d * f32::from(five_bits(byte & 15, fifth, i)) + m;
        out[i + 16] = d * f32::from(five_bits(byte >> 4, fifth, i + 16)) + m;
    }
}

fn five_bits(nibble: u8, fifth: u32, i: usize) -> u8 {
    nibble | (((fifth >> i) & 1) as u8) << 4
}

/// `w = d q`: f16 d, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = d * f32::from(*byte as i8);
    }
}

/// `w = d sc q - dmin m`, 16 sub-blocks of 16: 16 bytes (sc low, m high nibble), 64 bytes of 2-bit q, f16 d, f16 dmin.
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, out) in out.iter_mut().enumerate() {
        let scales = block[i / 16];
        let q = block[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        *out = d * f32::from(scales & 15) * f32::from(q) - dmin * f32::from(scales >> 4);
    }
}

/// `w = d (sc - 32) (q - 4)`, 16 sub-blocks of 16: 32 bytes of third bits, 64 of 2-bit q, 12 of 6-bit sc, f16 d.
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    for (i, out) in out.iter_mut().enumerate() {
        let scale = q3_k_scale(&block[96..108], i / 16);
        let low = block[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let third = block[i % 32] >> (i / 32) & 1;
        *out = d * f32::from(scale - 32) * f32::from((low | third << 2) as i8 - 4);
    }
}

/// Four low bits of scale `j` lie in nibbles of the first 8 bytes, the two high ones in the last 4 bytes.
fn q3_k_scale(scales: &[u8], j: usize) -> i8 {
    let low = scales[j % 8] >> (j / 8 * 4) & 15;
    let high = scales[8 + j % 4] >> (j / 4 * 2) & 3;
    (low | high << 4) as i8
}

/// `w = d sc q - dmin m`, 8 sub-blocks of 32: f16 d, f16 dmin, 12 bytes of 6-bit sc and m, 128 bytes of nibbles.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let (scale, min) = k_scale_min(&block[4..16], i / 32);
        let q = block[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        *out = d * f32::from(scale) * f32::from(q) - dmin * f32::from(min);
    }
}

/// As Q4_K with 32 bytes of fifth bits before the nibbles.
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        let (scale, min) = k_scale_min(&block[4..16], i / 32);
        let low = block[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
        let fifth = block[16 + i % 32] >> (i / 32) & 1;
        *out = d * f32::from(scale) * f32::from(low | fifth << 4) - dmin * f32::from(min);
    }
}

/// Scales and mins 0..4 lie in the low 6 bits of bytes 0..4 and 4..8; those of 4..8 have their low nibbles in bytes
/// 8..12 and their high bits in the top of bytes 0..4 and 4..8.
fn k_scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        return (packed[j] & 63, packed[j + 4] & 63);
    }
    let scale = packed[j + 4] & 15 | packed[j - 4] >> 6 << 4;
    let min = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    (scale, min)
}

/// `w = d sc (q - 32)`, 16 sub-blocks of 16: 128 bytes of low nibbles, 64 of 2-bit tops, 16 signed sc, f16 d.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let low = block[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        let high = block[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let scale = block[192 + i / 16] as i8;
        *out = d * f32::from(scale) * f32::from((low | high << 4) as i8 - 32);
    }
}

/// `w = d table[q]`: f16 d, nibbles as in Q4_0, values spaced more finely around zero.
fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    const TABLE: [i8; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let d = half_at(block, 0);
    for (i, byte) in block[2..].iter().enumerate() {
        out[i] = d * f32::from(TABLE[usize::from(byte & 15)]);
        out[i + 16] = d * f32::from(TABLE[usize::from(byte >> 4)]);
    }
}
