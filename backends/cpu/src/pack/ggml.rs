//! From the file's blocks to packed panels.
//!
//! A block is first taken apart ([`Parts`]): one byte a code, scales as stored. Then its codes go to
//! their planes and its scales to the panel's aux area, lane by lane.

use super::formats::{
    self, Format as _, SUPER_MIN_SCALES, SUPER_NIBBLE_SCALES, SUPER_SIGNED_SCALES, with_format,
};
use super::{BLOCK, Quant, QuantLayout};
use crate::simd::LANES;

/// Bytes of one vector of sixteen 32-bit lanes.
const V: usize = 64;

/// A row's places in a panel, at some block.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// The block's unit of scales.
    pub(super) aux: *mut u8,
    /// The block's codes.
    pub(super) codes: *mut u8,
    /// The row's.
    pub(super) lane: usize,
}

/// Packs one row given in the file format.
///
/// # Safety
/// `base` is a packed matrix of `layout`, writable for its bytes; `row < layout.n`; nobody else
/// touches that row meanwhile. `src` has `layout.file_row_bytes()` bytes.
pub(crate) unsafe fn pack_row(layout: &QuantLayout, base: *mut u8, row: usize, src: &[u8]) {
    debug_assert!(row < layout.n && src.len() == layout.file_row_bytes());
    let (columns, bytes) = layout.quant.file_block();
    let (code_bytes, (unit, unit_bytes)) =
        with_format!(layout.quant, F => (F::CODE_BYTES, F::UNIT));
    for (i, block) in src.chunks_exact(bytes).enumerate() {
        let b = i * columns / BLOCK;
        // SAFETY: `row < n`, so the panel is inside the matrix; block `b` is inside the panel.
        let panel = unsafe {
            let start = base.add(row / LANES * layout.panel_bytes);
            Panel {
                aux: start.add(b / unit * unit_bytes),
                codes: start.add(layout.aux_bytes + b * code_bytes),
                lane: row % LANES,
            }
        };
        // SAFETY: the panel has room for this block, as the layout says.
        unsafe { panel.put_block(layout.quant, block) };
    }
}

impl Panel {
    /// # Safety
    /// The panel has a whole block of `quant` at `aux` and `codes`; `block` is one in the file format.
    unsafe fn put_block(self, quant: Quant, block: &[u8]) {
        // SAFETY: every offset below is inside the block that the caller promises.
        unsafe {
            match quant {
                Quant::Q4_0 | Quant::IQ4_NL => {
                    self.half(0, block, 0);
                    self.words(&block[2..18], 0);
                }
                Quant::Q4_1 => {
                    self.half(0, block, 0);
                    self.half(2 * LANES, block, 2);
                    self.words(&block[4..20], 0);
                }
                Quant::Q5_0 => {
                    self.half(0, block, 0);
                    self.words(&block[6..22], 0);
                    self.word(4, transpose_bits(&block[2..6]));
                }
                Quant::Q5_1 => {
                    self.half(0, block, 0);
                    self.half(2 * LANES, block, 2);
                    self.words(&block[8..24], 0);
                    self.word(4, transpose_bits(&block[4..8]));
                }
                Quant::Q8_0 => {
                    self.half(0, block, 0);
                    self.words(&block[2..34], 0x8080_8080);
                }
                Quant::Q2_K => self.put_q2_k(block),
                Quant::Q3_K => self.put_q3_k(block),
                Quant::Q4_K | Quant::Q5_K => self.put_q45_k(quant, block),
                Quant::Q6_K => self.put_q6_k(block),
                Quant::INT4 | Quant::INT8 => unreachable!("packed by `grouped`"),
            }
        }
    }

    /// Copies the f16 at `from` of the block to lane of the halves at `to`.
    unsafe fn half(self, to: usize, block: &[u8], from: usize) {
        // SAFETY: `to` is the offset of sixteen halves inside the unit.
        unsafe {
            self.aux
                .add(to + 2 * self.lane)
                .cast::<[u8; 2]>()
                .write([block[from], block[from + 1]]);
        }
    }

    /// Byte of lane in the sixteen bytes at `to` of the unit.
    unsafe fn scale(self, to: usize, value: u8) {
        // SAFETY: `to` is the offset of sixteen bytes inside the unit.
        unsafe { self.aux.add(to + self.lane).write(value) };
    }

    unsafe fn word(self, vector: usize, value: u32) {
        // SAFETY: `vector` counts vectors inside the block's planes.
        unsafe {
            self.codes.add(vector * V + 4 * self.lane).cast::<[u8; 4]>().write(value.to_le_bytes());
        }
    }

    /// Writes the codes of a block, four bytes a vector, with some bits flipped.
    ///
    /// # Safety
    /// `src` has four bytes a vector of the block's plane.
    pub(super) unsafe fn words(self, src: &[u8], flip: u32) {
        for (i, w) in src.chunks_exact(4).enumerate() {
            // SAFETY: as many words as the plane has vectors.
            unsafe { self.word(i, u32::from_le_bytes([w[0], w[1], w[2], w[3]]) ^ flip) };
        }
    }

    /// Packs 32 codes of `4 + high` bits (`high` 0, 1 or 2) as a nibble plane and a plane above it.
    ///
    /// # Safety
    /// The panel has these planes at `sub`.
    pub(super) unsafe fn put_nibble_codes(self, sub: usize, codes: &[u8], high: u32) {
        let vectors = 4 + high as usize;
        let to = Self { codes: self.codes.wrapping_add(sub * vectors * V), ..self };
        for v in 0..4 {
            let w = word(|i| (codes[4 * v + i] & 15) | (codes[16 + 4 * v + i] & 15) << 4);
            // SAFETY: inside block `sub` of the super-block.
            unsafe { to.word(v, w) };
        }
        // SAFETY: as above; the planes above the nibbles.
        unsafe { to.put_low_codes(4, codes, 4, high) };
    }

    /// Packs bits `at ..at + bits` (0, 1 or 2 of them) of 32 codes as one plane from `vector` on.
    unsafe fn put_low_codes(self, vector: usize, codes: &[u8], at: u32, bits: u32) {
        if bits == 1 {
            let w = word(|i| (0..8).fold(0, |a, s| a | ((codes[4 * s + i] >> at) & 1) << s));
            // SAFETY: the caller gives the vector of a 1-bit plane.
            unsafe { self.word(vector, w) };
        } else if bits == 2 {
            for v in 0..2 {
                let w = word(|i| {
                    (0..4).fold(0, |a, s| a | ((codes[4 * (2 * s + v) + i] >> at) & 3) << (2 * s))
                });
                // SAFETY: the caller gives the two vectors of a 2-bit plane.
                unsafe { self.word(vector + v, w) };
            }
        }
    }

    unsafe fn put_q2_k(self, block: &[u8]) {
        let (scales, qs) = (&block[..16], &block[16..80]);
        // SAFETY: offsets of a `SuperNibble` unit and of eight 2-bit blocks.
        unsafe {
            self.half(0, block, 80);
            self.half(2 * LANES, block, 82);
            for (i, &s) in scales.iter().enumerate() {
                self.scale(SUPER_NIBBLE_SCALES + i * LANES, s);
            }
            for sub in 0..8 {
                let codes = two_bits(qs, sub);
                let to = Self { codes: self.codes.add(sub * formats::Q2K::CODE_BYTES), ..self };
                to.put_low_codes(0, &codes, 0, 2);
            }
        }
    }

    unsafe fn put_q3_k(self, block: &[u8]) {
        let (mask, qs, packed) = (&block[..32], &block[32..96], &block[96..108]);
        // SAFETY: offsets of a `SuperSigned` unit and of eight 3-bit blocks.
        unsafe {
            self.half(0, block, 108);
            for i in 0..16 {
                let low = (packed[i % 8] >> (4 * (i / 8))) & 15;
                let high = (packed[8 + i % 4] >> (2 * (i / 4))) & 3;
                self.scale(SUPER_SIGNED_SCALES + i * LANES, (low | high << 4).wrapping_sub(32));
            }
            for sub in 0..8 {
                let mut codes = two_bits(qs, sub);
                for (c, m) in codes.iter_mut().zip(mask) {
                    *c |= ((m >> sub) & 1) << 2;
                }
                let to = Self { codes: self.codes.add(sub * formats::Q3K::CODE_BYTES), ..self };
                to.put_low_codes(0, &codes, 0, 2);
                to.put_low_codes(2, &codes, 2, 1);
            }
        }
    }

    unsafe fn put_q45_k(self, quant: Quant, block: &[u8]) {
        let packed = &block[4..16];
        let high = (quant == Quant::Q5_K).then(|| &block[16..48]);
        let qs = if high.is_some() { &block[48..176] } else { &block[16..144] };
        // SAFETY: offsets of a `SuperMin` unit and of eight 4- or 5-bit blocks.
        unsafe {
            self.half(0, block, 0);
            self.half(2 * LANES, block, 2);
            for sub in 0..8 {
                let (sc, m) = six_bits(packed, sub);
                self.scale(SUPER_MIN_SCALES + 2 * sub * LANES, sc);
                self.scale(SUPER_MIN_SCALES + (2 * sub + 1) * LANES, m);
                let codes: [u8; BLOCK] = std::array::from_fn(|i| {
                    let q = (qs[32 * (sub / 2) + i] >> (4 * (sub % 2))) & 15;
                    q | high.map_or(0, |h| ((h[i] >> sub) & 1) << 4)
                });
                self.put_nibble_codes(sub, &codes, u32::from(high.is_some()));
            }
        }
    }

    unsafe fn put_q6_k(self, block: &[u8]) {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        // SAFETY: offsets of a `SuperSigned` unit and of eight 6-bit blocks.
        unsafe {
            self.half(0, block, 208);
            for (i, &s) in scales.iter().enumerate() {
                self.scale(SUPER_SIGNED_SCALES + i * LANES, s);
            }
            for sub in 0..8 {
                let (half, quarter) = (sub / 4, sub % 4);
                let codes: [u8; BLOCK] = std::array::from_fn(|i| {
                    let l = low[64 * half + 32 * (quarter % 2) + i] >> (4 * (quarter / 2));
                    let h = high[32 * half + i] >> (2 * quarter);
                    (l & 15) | (h & 3) << 4
                });
                self.put_nibble_codes(sub, &codes, 2);
            }
        }
    }
}

/// Four bytes as one lane.
fn word(f: impl Fn(usize) -> u8) -> u32 {
    u32::from_le_bytes(std::array::from_fn(f))
}

/// Bit `4 s + i` moved to bit `8 i + s`.
fn transpose_bits(src: &[u8]) -> u32 {
    let bits = u32::from_le_bytes([src[0], src[1], src[2], src[3]]);
    (0..32).fold(0, |a, j| a | ((bits >> j) & 1) << (8 * (j % 4) + j / 4))
}

/// Codes of 32 columns `sub` of the 2-bit field that Q2_K and Q3_K share.
fn two_bits(qs: &[u8], sub: usize) -> [u8; BLOCK] {
    std::array::from_fn(|i| (qs[32 * (sub / 4) + i] >> (2 * (sub % 4))) & 3)
}

/// Scale and minimum `sub` of the twelve bytes that Q4_K and Q5_K share.
fn six_bits(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        return (packed[sub] & 63, packed[sub + 4] & 63);
    }
    let (low, sc, m) = (packed[sub + 4], packed[sub - 4] >> 6, packed[sub] >> 6);
    (low & 15 | sc << 4, low >> 4 | m << 4)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{noise::noise, pack::formats::IQ4_NL_LEVELS};
    use half::f16;

    /// Random rows in the file format with sensible scales.
    pub(crate) fn random_rows(quant: Quant, n: usize, k: usize, seed: u64) -> Vec<u8> {
        let (cols, bytes) = quant.file_block();
        let mut out = noise(seed, n * k / cols * bytes);
        let halves: &[usize] = match quant {
            Quant::Q4_0 | Quant::IQ4_NL | Quant::Q5_0 | Quant::Q8_0 => &[0],
            Quant::Q4_1 | Quant::Q5_1 | Quant::Q4_K | Quant::Q5_K => &[0, 2],
            Quant::Q2_K => &[80, 82],
            Quant::Q3_K => &[108],
            Quant::Q6_K => &[208],
            Quant::INT4 | Quant::INT8 => unreachable!("no file format"),
        };
        for block in out.chunks_exact_mut(bytes) {
            for &at in halves {
                let v = f32::from(block[at]) / 256.0 * 0.02 - if at == 0 { 0.0 } else { 0.01 };
                block[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
            }
        }
        out
    }

    /// One row dequantised straight from the formats' definitions.
    pub(crate) fn dequantise(quant: Quant, row: &[u8]) -> Vec<f64> {
        let (_, bytes) = quant.file_block();
        row.chunks_exact(bytes).flat_map(|b| dequantise_block(quant, b)).collect()
    }

    fn dequantise_block(quant: Quant, b: &[u8]) -> Vec<f64> {
        let h = |at: usize| f64::from(f16::from_le_bytes([b[at], b[at + 1]]).to_f32());
        let nib = |at: usize, j: usize| f64::from((b[at + j % 16] >> (4 * (j / 16))) & 15);
        let bit = |at: usize, j: usize| f64::from((b[at + j / 8] >> (j % 8)) & 1);
        let simple = |f: &dyn Fn(usize) -> f64| (0..32).map(f).collect();
        match quant {
            Quant::Q4_0 => simple(&|j| h(0) * (nib(2, j) - 8.0)),
            Quant::Q4_1 => simple(&|j| h(0) * nib(4, j) + h(2)),
            Quant::Q5_0 => simple(&|j| h(0) * (nib(6, j) + 16.0 * bit(2, j) - 16.0)),
            Quant::Q5_1 => simple(&|j| h(0) * (nib(8, j) + 16.0 * bit(4, j)) + h(2)),
            Quant::Q8_0 => simple(&|j| h(0) * f64::from(b[2 + j].cast_signed())),
            Quant::IQ4_NL => simple(&|j| h(0) * f64::from(IQ4_NL_LEVELS[nib(2, j) as usize])),
            Quant::Q2_K => (0..256)
                .map(|e| {
                    let q = (b[16 + 32 * (e / 128) + e % 32] >> (2 * (e / 32 % 4))) & 3;
                    let s = b[e / 16];
                    h(80) * f64::from(s & 15) * f64::from(q) - h(82) * f64::from(s >> 4)
                })
                .collect(),
            Quant::Q3_K => (0..256)
                .map(|e| {
                    let q = (b[32 + 32 * (e / 128) + e % 32] >> (2 * (e / 32 % 4))) & 3;
                    let set = b[e % 32] & (1 << (e / 32)) != 0;
                    let (j, sc) = (e / 16, &b[96..108]);
                    let low = if j < 8 { sc[j] & 15 } else { sc[j - 8] >> 4 };
                    let s = i32::from(low | ((sc[8 + j % 4] >> (2 * (j / 4))) & 3) << 4) - 32;
                    h(108) * f64::from(s) * (f64::from(q) - if set { 0.0 } else { 4.0 })
                })
                .collect(),
            Quant::Q4_K | Quant::Q5_K => (0..256)
                .map(|e| {
                    let j = e / 32;
                    let s = &b[4..16];
                    let (sc, m) = if j < 4 {
                        (s[j] & 63, s[j + 4] & 63)
                    } else {
                        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
                    };
                    let five = quant == Quant::Q5_K;
                    let at = if five { 48 } else { 16 };
                    let mut q = (b[at + e / 64 * 32 + e % 32] >> (4 * (j % 2))) & 15;
                    if five && b[16 + e % 32] & (1 << j) != 0 {
                        q += 16;
                    }
                    h(0) * f64::from(sc) * f64::from(q) - h(2) * f64::from(m)
                })
                .collect(),
            Quant::Q6_K => (0..256)
                .map(|e| {
                    let (n, r, l) = (e / 128, e % 128 / 32, e % 32);
                    let ql = b[64 * n + 32 * (r % 2) + l];
                    let low = if r < 2 { ql & 15 } else { ql >> 4 };
                    let q = i32::from(low | ((b[128 + 32 * n + l] >> (2 * r)) & 3) << 4) - 32;
                    h(208) * f64::from(b[192 + e / 16].cast_signed()) * f64::from(q)
                })
                .collect(),
            Quant::INT4 | Quant::INT8 => unreachable!("no file format"),
        }
    }

    pub(crate) fn pack(layout: &QuantLayout, rows: &[u8]) -> Vec<u8> {
        let mut packed = vec![0u8; layout.bytes()];
        for (i, row) in rows.chunks_exact(layout.file_row_bytes()).enumerate() {
            // SAFETY: `packed` has the layout's bytes and `i < n`.
            unsafe { pack_row(layout, packed.as_mut_ptr(), i, row) };
        }
        packed
    }

    #[test]
    fn unpacking_gives_the_exact_dequantisation() {
        for quant in Quant::GGUF {
            for (n, k) in [(1, 256), (16, 512), (37, 768)] {
                let layout = QuantLayout::new(quant, n, k).unwrap();
                let rows = random_rows(quant, n, k, 7 + n as u64);
                let packed = pack(&layout, &rows);
                let mut out = vec![0.0; k];
                for (i, row) in rows.chunks_exact(layout.file_row_bytes()).enumerate() {
                    for (b, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                        // SAFETY: `packed` has the layout's bytes; row and block exist.
                        unsafe { layout.unpack_block(packed.as_ptr(), i, b, out) };
                    }
                    for (j, (a, b)) in out.iter().zip(dequantise(quant, row)).enumerate() {
                        assert_eq!(*a, b as f32, "{quant:?} row {i} column {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn packed_size_stays_near_the_file_size() {
        for quant in Quant::GGUF {
            let layout = QuantLayout::new(quant, 4096, 4096).unwrap();
            let ratio = layout.bytes() as f64 / (4096 * layout.file_row_bytes()) as f64;
            let limit = match quant {
                Quant::Q4_1 | Quant::Q8_0 | Quant::Q4_0 => 1.005,
                _ => 1.05,
            };
            assert!(ratio <= limit, "{quant:?}: {ratio}");
        }
    }

    #[test]
    fn columns_must_be_whole_blocks() {
        assert!(QuantLayout::new(Quant::Q4_0, 4, 48).is_none());
        assert!(QuantLayout::new(Quant::Q6_K, 4, 128).is_none());
        assert!(QuantLayout::new(Quant::Q6_K, usize::MAX / 2, 256).is_none());
    }
}
