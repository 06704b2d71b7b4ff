//! Packed floating-point weights.
//!
//! Sixteen rows interleaved, columns in order. f32, f16 and f8e4m3 store column after column; bf16 stores two
//! columns side by side in each lane, which is what the bf16 dot product instruction wants and costs
//! the other paths one shift. Columns are padded with zeros to an even number.
//!
//! A panel of f8e4m3 begins with its scales: sixteen f32, once or for every [`SCALE_COLUMNS`] columns.

use crate::elem::Elem;
use crate::fp8;
use crate::simd::{LANES, Simd};

/// Columns that share a scale, if not all do.
pub(crate) const SCALE_COLUMNS: usize = 128;

/// Bytes of a panel's scales of some columns.
const SCALE_BYTES: usize = 4 * LANES;

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// As floats.
    Float(Elem),
    /// As f8e4m3 times a scale.
    E4m3 {
        /// A scale for every [`SCALE_COLUMNS`] columns, not one a row.
        blocks: bool,
    },
}

impl Store {
    /// Bytes of an element.
    fn bytes(self) -> usize {
        match self {
            Self::Float(elem) => elem.bytes(),
            Self::E4m3 { .. } => 1,
        }
    }
}

/// Where things are in a packed floating-point matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DenseLayout {
    pub(crate) store: Store,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Bytes of a panel's scales, which precede its elements.
    pub(crate) aux_bytes: usize,
    pub(crate) panel_bytes: usize,
}

impl DenseLayout {
    /// The layout of an `[n, k]` matrix; `None` if it is empty or sizes overflow.
    pub(crate) fn new(store: Store, n: usize, k: usize) -> Option<Self> {
        let columns = k.checked_next_multiple_of(2).filter(|&k| k > 0)?;
        let scales = match store {
            Store::Float(_) => 0,
            Store::E4m3 { blocks: false } => 1,
            Store::E4m3 { blocks: true } => k.div_ceil(SCALE_COLUMNS),
        };
        let aux_bytes = scales.checked_mul(SCALE_BYTES)?;
        let panel_bytes = columns.checked_mul(LANES * store.bytes())?.checked_add(aux_bytes)?;
        n.div_ceil(LANES).checked_mul(panel_bytes)?;
        Some(Self { store, n, k, aux_bytes, panel_bytes })
    }

    /// Bytes from the scales of some [`SCALE_COLUMNS`] columns to those of the next.
    pub(crate) fn scale_step(&self) -> usize {
        if self.store == (Store::E4m3 { blocks: true }) { SCALE_BYTES } else { 0 }
    }

    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.panels() * self.panel_bytes
    }

    /// Columns rounded up to pairs.
    pub(crate) fn padded_k(&self) -> usize {
        self.k.next_multiple_of(2)
    }

    /// Byte offset of an element in its matrix.
    fn offset(&self, row: usize, col: usize) -> usize {
        let (panel, lane) = (row / LANES, row % LANES);
        let element = match self.store {
            Store::Float(Elem::Bf16) => (col / 2 * LANES + lane) * 2 + col % 2,
            _ => col * LANES + lane,
        };
        panel * self.panel_bytes + self.aux_bytes + element * self.store.bytes()
    }

    /// Packs one row: row `at` of `src`, whose elements have the layout's size, becomes row `row`.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout, writable for its bytes; `row < n`; nobody else
    /// touches that row meanwhile. `src` is readable for `k` elements.
    pub(crate) unsafe fn pack_row(&self, base: *mut u8, row: usize, src: *const u8) {
        debug_assert!(row < self.n);
        let bytes = self.store.bytes();
        for col in 0..self.padded_k() {
            // SAFETY: the element is inside the matrix, and inside the source if it is a real column.
            unsafe {
                let to = base.add(self.offset(row, col));
                let from = src.wrapping_add(col * bytes);
                match (bytes, col < self.k) {
                    (4, true) => to.cast::<[u8; 4]>().write(from.cast::<[u8; 4]>().read()),
                    (2, true) => to.cast::<[u8; 2]>().write(from.cast::<[u8; 2]>().read()),
                    (_, true) => to.write(from.read()),
                    (bytes, false) => to.write_bytes(0, bytes),
                }
            }
        }
    }

    /// Address of scale `i` of row `row`.
    fn scale(&self, base: *const u8, row: usize, i: usize) -> *const f32 {
        let panel = base.wrapping_add(row / LANES * self.panel_bytes);
        panel.cast::<f32>().wrapping_add(i * LANES + row % LANES)
    }

    /// Writes the scales of a row of f8e4m3, given as the bytes of f32s.
    ///
    /// # Safety
    /// As [`Self::pack_row`]; there are as many scales as the layout has for a row.
    pub(crate) unsafe fn pack_scales(&self, base: *mut u8, row: usize, scales: &[u8]) {
        debug_assert!(row < self.n && scales.len() * LANES == self.aux_bytes);
        for (i, scale) in scales.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: the scale is inside the panel of the row.
            unsafe { self.scale(base, row, i).cast_mut().cast::<[u8; 4]>().write(*scale) };
        }
    }

    /// Writes columns `col ..` of row `row` as floats; none of them is beyond a multiple of [`SCALE_COLUMNS`] after `col`.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout, readable for its bytes; `row < n`, and `out` has no more
    /// elements than there are columns from `col` on.
    pub(crate) unsafe fn unpack(&self, base: *const u8, row: usize, col: usize, out: &mut [f32]) {
        debug_assert!(row < self.n && col + out.len() <= self.k);
        let scale = match self.store {
            Store::Float(_) => 1.0,
            // SAFETY: the row has the scale.
            Store::E4m3 { blocks } => unsafe {
                let i = if blocks { col / SCALE_COLUMNS } else { 0 };
                self.scale(base, row, i).read_unaligned()
            },
        };
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the element is inside the matrix.
            *out = unsafe {
                let p = base.add(self.offset(row, col + i));
                match self.store {
                    Store::Float(elem) => elem.read(p),
                    Store::E4m3 { .. } => fp8::E4M3[usize::from(p.read())] * scale,
                }
            };
        }
    }
}

/// How one element type leaves a panel.
pub(crate) trait Columns {
    /// Bytes of two columns.
    const PAIR_BYTES: usize;
    /// Whether the panel has scales.
    const SCALED: bool = false;

    /// Two neighbouring columns, widened.
    ///
    /// # Safety
    /// `p` is a pair of columns of a panel, readable for [`Self::PAIR_BYTES`].
    unsafe fn pair<S: Simd>(s: S, p: *const u8) -> (S::F, S::F);
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;
pub(crate) struct E4m3;

impl Columns for F32 {
    const PAIR_BYTES: usize = 2 * LANES * 4;
    #[inline(always)]
    unsafe fn pair<S: Simd>(s: S, p: *const u8) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (s.load(p.cast()), s.load(p.cast::<f32>().add(LANES))) }
    }
}

impl Columns for F16 {
    const PAIR_BYTES: usize = 2 * LANES * 2;
    #[inline(always)]
    unsafe fn pair<S: Simd>(s: S, p: *const u8) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (s.load_f16(p.cast()), s.load_f16(p.cast::<u16>().add(LANES))) }
    }
}

impl Columns for Bf16 {
    const PAIR_BYTES: usize = 2 * LANES * 2;
    #[inline(always)]
    unsafe fn pair<S: Simd>(s: S, p: *const u8) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        let v = unsafe { s.iload(p) };
        let odd = s.iand(v, s.isplat(0xffff_0000_u32.cast_signed()));
        (s.from_bits(s.ishl::<16>(v)), s.from_bits(odd))
    }
}

impl Columns for E4m3 {
    const PAIR_BYTES: usize = 2 * LANES;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn pair<S: Simd>(s: S, p: *const u8) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (s.load_e4m3(p), s.load_e4m3(p.add(LANES))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_packing() {
        for elem in [Elem::F32, Elem::F16, Elem::Bf16] {
            for (n, k) in [(1, 1), (16, 8), (37, 51)] {
                let layout = DenseLayout::new(Store::Float(elem), n, k).unwrap();
                let mut packed = vec![0xaa; layout.bytes()];
                let mut src = vec![0u8; n * k * elem.bytes()];
                let value = |i: usize| (i % 251) as f32 - 100.0;
                for (i, p) in src.chunks_exact_mut(elem.bytes()).enumerate() {
                    // SAFETY: one element's bytes.
                    unsafe { elem.write(p.as_mut_ptr(), value(i)) };
                }
                let mut out = vec![0.0; k];
                for (i, row) in src.chunks_exact(k * elem.bytes()).enumerate() {
                    // SAFETY: sizes as the layout says; `i < n`.
                    unsafe {
                        layout.pack_row(packed.as_mut_ptr(), i, row.as_ptr());
                        layout.unpack(packed.as_ptr(), i, 0, &mut out);
                    }
                    assert!(out.iter().enumerate().all(|(j, &x)| x == value(i * k + j)));
                }
            }
        }
    }
}
