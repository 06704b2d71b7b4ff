//! Packed floating-point weights.
//!
//! Sixteen rows interleaved, columns in order. f32 and f16 store column after column; bf16 stores two
//! columns side by side in each lane, which is what the bf16 dot product instruction wants and costs
//! the other paths one shift. Columns are padded with zeros to an even number.

use crate::elem::{Elem, Rows};
use crate::simd::{LANES, Simd};

/// Where things are in a packed floating-point matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DenseLayout {
    pub(crate) elem: Elem,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) panel_bytes: usize,
}

impl DenseLayout {
    /// The layout of an `[n, k]` matrix; `None` if it is empty or sizes overflow.
    pub(crate) fn new(elem: Elem, n: usize, k: usize) -> Option<Self> {
        let columns = k.checked_next_multiple_of(2).filter(|&k| k > 0)?;
        let panel_bytes = columns.checked_mul(LANES * elem.bytes())?;
        n.div_ceil(LANES).checked_mul(panel_bytes)?;
        Some(Self { elem, n, k, panel_bytes })
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
        let element = match self.elem {
            Elem::F32 | Elem::F16 => col * LANES + lane,
            Elem::Bf16 => (col / 2 * LANES + lane) * 2 + col % 2,
        };
        panel * self.panel_bytes + element * self.elem.bytes()
    }

    /// Packs one row: row `at` of `src`, of the same element type, becomes row `row`.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout, writable for its bytes; `row < n`; nobody else
    /// touches that row meanwhile. Row `at` of `src` has `k` columns.
    pub(crate) unsafe fn pack_row(&self, base: *mut u8, row: usize, src: &Rows, at: usize) {
        debug_assert!(row < self.n && src.elem == self.elem);
        for col in 0..self.padded_k() {
            // SAFETY: the element is inside the matrix, and inside the source if it is a real column.
            unsafe {
                let to = base.add(self.offset(row, col));
                match (self.elem.bytes(), col < self.k) {
                    (4, true) => {
                        to.cast::<[u8; 4]>().write(src.at(at, col).cast::<[u8; 4]>().read());
                    }
                    (4, false) => to.cast::<[u8; 4]>().write([0; 4]),
                    (_, true) => {
                        to.cast::<[u8; 2]>().write(src.at(at, col).cast::<[u8; 2]>().read());
                    }
                    (_, false) => to.cast::<[u8; 2]>().write([0; 2]),
                }
            }
        }
    }

    /// Writes columns `col ..` of row `row` as floats.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout, readable for its bytes; `row < n`, and `out` has no more
    /// elements than there are columns from `col` on.
    pub(crate) unsafe fn unpack(&self, base: *const u8, row: usize, col: usize, out: &mut [f32]) {
        debug_assert!(row < self.n && col + out.len() <= self.k);
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: the element is inside the matrix.
            *out = unsafe { self.elem.read(base.add(self.offset(row, col + i))) };
        }
    }
}

/// How one element type leaves a panel.
pub(crate) trait Columns {
    /// Bytes of two columns.
    const PAIR_BYTES: usize;

    /// Two neighbouring columns, widened.
    ///
    /// # Safety
    /// `p` is a pair of columns of a panel, readable for [`Self::PAIR_BYTES`].
    unsafe fn pair<S: Simd>(s: S, p: *const u8) -> (S::F, S::F);
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_packing() {
        for elem in [Elem::F32, Elem::F16, Elem::Bf16] {
            for (n, k) in [(1, 1), (16, 8), (37, 51)] {
                let layout = DenseLayout::new(elem, n, k).unwrap();
                let mut packed = vec![0xaa; layout.bytes()];
                let mut src = vec![0u8; n * k * elem.bytes()];
                let value = |i: usize| (i % 251) as f32 - 100.0;
                for (i, p) in src.chunks_exact_mut(elem.bytes()).enumerate() {
                    // SAFETY: one element's bytes.
                    unsafe { elem.write(p.as_mut_ptr(), value(i)) };
                }
                let rows = Rows {
                    base: src.as_ptr(),
                    elem,
                    row_stride: k * elem.bytes(),
                    col_stride: elem.bytes(),
                };
                let mut out = vec![0.0; k];
                for i in 0..n {
                    // SAFETY: sizes as the layout says; `i < n`.
                    unsafe {
                        layout.pack_row(packed.as_mut_ptr(), i, &rows, i);
                        layout.unpack(packed.as_ptr(), i, 0, &mut out);
                    }
                    assert!(out.iter().enumerate().all(|(j, &x)| x == value(i * k + j)));
                }
            }
        }
    }
}
