//! Blocks of GGUF files, taken apart into planes. The schemes are described beside [`Scheme`].

use halyard_sdk::Scheme;

use super::layout::{Content, Form};

/// Writes what a plane has of a row of blocks.
pub(super) fn write(scheme: Scheme, content: Content, row: &[u8], out: &mut [u8]) {
    let (Some((_, bytes)), Some(form)) = (scheme.gguf_block(), Form::of(scheme)) else { return };
    let blocks = row.chunks_exact(bytes as usize);
    match content {
        Content::Codes => write_bits(blocks.flat_map(|b| codes(scheme, b)), form.low, out),
        Content::High => {
            let high = blocks.flat_map(|b| codes(scheme, b)).map(|code| code >> form.low);
            write_bits(high, form.high, out);
        }
        Content::Scales => copy(blocks.flat_map(|b| scales(scheme, b)), out),
        Content::Blocks => copy(blocks.flat_map(|b| block(scheme, b).iter().copied()), out),
        Content::Zeros => {}
    }
}

fn copy(bytes: impl Iterator<Item = u8>, out: &mut [u8]) {
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = from;
    }
}

/// The low `bits` bits of each code, the first in the lowest bits.
pub(super) fn write_bits(codes: impl Iterator<Item = u8>, bits: u64, out: &mut [u8]) {
    let a_byte = 8 / bits as usize;
    let mask = u8::MAX >> (8 - bits);
    for (i, code) in codes.enumerate() {
        out[i / a_byte] |= (code & mask) << (i % a_byte * bits as usize);
    }
}

/// The nibble of value `i` of 32 in 16 bytes: the low ones are values 0 to 15, the high ones 16 to 31.
fn half_nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (i / 16 * 4) & 15
}

/// The same with a fifth bit, from the four bytes before them.
fn five_bits(bytes: &[u8], i: usize) -> u8 {
    half_nibble(&bytes[4..], i) | (bytes[i / 8] >> (i % 8) & 1) << 4
}

/// The two-bit code of value `i`, where every 32 bytes hold 128 of them in quarters.
fn two_bits(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// The nibble of value `i`, where every 64 bytes hold 128: the low ones first.
fn nibble_of_64(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15
}

/// The nibble of value `i`, where every 32 bytes hold 64: the low ones first.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// The code of value `i` of a block.
fn code(scheme: Scheme, b: &[u8], i: usize) -> u8 {
    match scheme {
        Scheme::GGUF_Q4_0 | Scheme::GGUF_IQ4_NL => half_nibble(&b[2..], i),
        Scheme::GGUF_Q4_1 => half_nibble(&b[4..], i),
        Scheme::GGUF_Q5_0 => five_bits(&b[2..], i),
        Scheme::GGUF_Q5_1 => five_bits(&b[4..], i),
        Scheme::GGUF_Q2_K => two_bits(&b[16..], i),
        Scheme::GGUF_Q3_K => two_bits(&b[32..], i) | (b[i % 32] >> (i / 32) & 1) << 2,
        Scheme::GGUF_Q4_K => nibble(&b[16..], i),
        Scheme::GGUF_Q5_K => nibble(&b[48..], i) | (b[16 + i % 32] >> (i / 32) & 1) << 4,
        Scheme::GGUF_Q6_K => nibble_of_64(b, i) | two_bits(&b[128..], i) << 4,
        _ => b[2 + i],
    }
}

/// The codes of a block, in order.
fn codes(scheme: Scheme, b: &[u8]) -> impl Iterator<Item = u8> {
    let values = scheme.gguf_block().map_or(0, |(values, _)| values as usize);
    (0..values).map(move |i| code(scheme, b, i))
}

/// The scale and the minimum of sub-block `s` of 32 values, six bits each.
fn scale_and_min(packed: &[u8], s: usize) -> [u8; 2] {
    if s < 4 {
        return [packed[s] & 63, packed[s + 4] & 63];
    }
    [packed[s + 4] & 15 | packed[s - 4] >> 6 << 4, packed[s + 4] >> 4 | packed[s] >> 6 << 4]
}

/// The scales (and minima) of a block's parts, a byte each.
fn scales(scheme: Scheme, b: &[u8]) -> Vec<u8> {
    match scheme {
        Scheme::GGUF_Q2_K => b[..16].iter().flat_map(|s| [s & 15, s >> 4]).collect(),
        Scheme::GGUF_Q3_K => {
            let packed = &b[96..108];
            let six_bits = |j: usize| {
                packed[j % 8] >> (j / 8 * 4) & 15 | (packed[8 + j % 4] >> (j / 4 * 2) & 3) << 4
            };
            (0..16).map(|j| six_bits(j).wrapping_sub(32)).collect()
        }
        Scheme::GGUF_Q4_K | Scheme::GGUF_Q5_K => {
            (0..8).flat_map(|s| scale_and_min(&b[4..16], s)).collect()
        }
        _ => b[192..208].to_vec(),
    }
}

/// The f16 scale (and minimum) of a block.
fn block(scheme: Scheme, b: &[u8]) -> &[u8] {
    match scheme {
        Scheme::GGUF_Q4_1 | Scheme::GGUF_Q5_1 | Scheme::GGUF_Q4_K | Scheme::GGUF_Q5_K => &b[..4],
        Scheme::GGUF_Q2_K => &b[80..84],
        Scheme::GGUF_Q3_K => &b[108..110],
        Scheme::GGUF_Q6_K => &b[208..210],
        _ => &b[..2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_fill_bytes_from_the_lowest_bits() {
        let mut out = [0; 3];
        write_bits([1, 2, 3, 4, 5].into_iter(), 4, &mut out);
        assert_eq!(out, [0x21, 0x43, 0x05]);
        let mut out = [0; 2];
        write_bits([3, 0, 1, 2, 7].into_iter(), 2, &mut out);
        assert_eq!(out, [0b10_01_00_11, 0b11]);
    }

    #[test]
    fn a_block_is_taken_apart() {
        // d = 0x3c00, then 32 nibbles: value i in byte i % 16.
        let mut row = vec![0x00, 0x3c];
        row.extend((0..16).map(|i| i | (15 - i) << 4));
        let mut codes = [0; 16];
        write(Scheme::GGUF_Q4_0, Content::Codes, &row, &mut codes);
        assert_eq!(codes[..2], [0x10, 0x32]);
        assert_eq!(codes[8..10], [0xef, 0xcd]);
        let mut blocks = [0; 2];
        write(Scheme::GGUF_Q4_0, Content::Blocks, &row, &mut blocks);
        assert_eq!(blocks, [0x00, 0x3c]);
    }
}
