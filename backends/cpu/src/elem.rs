//! Floating-point element types, and rows of them in memory.
//!
//! [`Rows`] and [`RowsMut`] are views that have passed validation: reading inside their extent is the
//! only promise their users still have to keep.

use crate::simd::{LANES, Simd, bf16_bits};
use half::f16;

/// A floating-point storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Elem {
    F32,
    F16,
    Bf16,
}

impl Elem {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// One element, widened.
    ///
    /// # Safety
    /// `p` is readable for [`Self::bytes`]; it need not be aligned.
    #[inline(always)]
    pub(crate) unsafe fn read(self, p: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::F32 => p.cast::<f32>().read_unaligned(),
                Self::F16 => f16::from_bits(p.cast::<u16>().read_unaligned()).to_f32(),
                Self::Bf16 => f32::from_bits(u32::from(p.cast::<u16>().read_unaligned()) << 16),
            }
        }
    }

    /// Writes one element, rounded to nearest even.
    ///
    /// # Safety
    /// `p` is writable for [`Self::bytes`]; it need not be aligned.
    #[inline(always)]
    pub(crate) unsafe fn write(self, p: *mut u8, x: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::F32 => p.cast::<f32>().write_unaligned(x),
                Self::F16 => p.cast::<u16>().write_unaligned(f16::from_f32(x).to_bits()),
                Self::Bf16 => p.cast::<u16>().write_unaligned(bf16_bits(x)),
            }
        }
    }
}

/// Rows of floats to read. Strides are in bytes; a stride of 0 repeats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) base: *const u8,
    pub(crate) elem: Elem,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

/// Rows of floats to write, and to read back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowsMut {
    pub(crate) base: *mut u8,
    pub(crate) elem: Elem,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

// SAFETY: a view is an address with a shape; whoever reads or writes through it keeps the rules.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}
// SAFETY: as above.
unsafe impl Send for RowsMut {}
// SAFETY: as above; tasks that share one write disjoint rows or columns.
unsafe impl Sync for RowsMut {}

impl Rows {
    /// Contiguous rows of `cols` floats at `base`.
    pub(crate) fn dense(base: *const f32, cols: usize) -> Self {
        Self { base: base.cast(), elem: Elem::F32, row_stride: 4 * cols, col_stride: 4 }
    }

    /// One row, as a view of its own.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> Self {
        Self { base: self.base.wrapping_add(row * self.row_stride), ..*self }
    }

    /// Whether the elements of a row follow each other.
    #[inline(always)]
    pub(crate) fn is_contiguous(&self) -> bool {
        self.col_stride == self.elem.bytes()
    }

    /// Address of an element.
    ///
    /// # Safety
    /// The element is inside the view.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, row: usize, col: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(row * self.row_stride + col * self.col_stride) }
    }

    /// # Safety
    /// The element is inside the view.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, row: usize, col: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.elem.read(self.at(row, col)) }
    }

    /// Columns `col .. col + 16` of a row, widened.
    ///
    /// # Safety
    /// They are inside the view.
    #[inline(always)]
    pub(crate) unsafe fn load<S: Simd>(&self, s: S, row: usize, col: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            if !self.is_contiguous() {
                return self.load_part(s, row, col, LANES);
            }
            let p = self.at(row, col);
            match self.elem {
                Elem::F32 => s.load(p.cast()),
                Elem::F16 => s.load_f16(p.cast()),
                Elem::Bf16 => s.load_bf16(p.cast()),
            }
        }
    }

    /// Columns `col .. col + n` of a row, widened; the other lanes are 0.
    ///
    /// # Safety
    /// They are inside the view; `n <= 16`.
    #[inline(always)]
    pub(crate) unsafe fn load_part<S: Simd>(&self, s: S, row: usize, col: usize, n: usize) -> S::F {
        let mut v = [0.0; LANES];
        for (i, v) in v.iter_mut().enumerate().take(n) {
            // SAFETY: the caller's promise.
            *v = unsafe { self.get(row, col + i) };
        }
        s.from_array(v)
    }

    /// [`Self::load`] or [`Self::load_part`] of up to 16 columns before `end`.
    ///
    /// # Safety
    /// Columns `col .. min(col + 16, end)` are inside the view.
    #[inline(always)]
    pub(crate) unsafe fn load_upto<S: Simd>(
        &self,
        s: S,
        row: usize,
        col: usize,
        end: usize,
    ) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            if col + LANES <= end {
                self.load(s, row, col)
            } else {
                self.load_part(s, row, col, end - col)
            }
        }
    }
}

impl RowsMut {
    /// Contiguous rows of `cols` floats at `base`.
    pub(crate) fn dense(base: *mut f32, cols: usize) -> Self {
        Self { base: base.cast(), elem: Elem::F32, row_stride: 4 * cols, col_stride: 4 }
    }

    /// The same rows, to read.
    #[inline(always)]
    pub(crate) fn as_rows(&self) -> Rows {
        Rows {
            base: self.base,
            elem: self.elem,
            row_stride: self.row_stride,
            col_stride: self.col_stride,
        }
    }

    /// Address of an element.
    ///
    /// # Safety
    /// The element is inside the view.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, row: usize, col: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(row * self.row_stride + col * self.col_stride) }
    }

    /// # Safety
    /// The element is inside the view.
    #[inline(always)]
    pub(crate) unsafe fn set(&self, row: usize, col: usize, x: f32) {
        // SAFETY: the caller's promise.
        unsafe { self.elem.write(self.at(row, col), x) };
    }

    /// Writes up to 16 columns before `end`, rounded to nearest even.
    ///
    /// # Safety
    /// Columns `col .. min(col + 16, end)` are inside the view.
    #[inline(always)]
    pub(crate) unsafe fn store_upto<S: Simd>(
        &self,
        s: S,
        row: usize,
        col: usize,
        end: usize,
        x: S::F,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if col + LANES <= end && self.as_rows().is_contiguous() {
                let p = self.at(row, col);
                match self.elem {
                    Elem::F32 => s.store(p.cast(), x),
                    Elem::F16 => s.store_f16(p.cast(), x),
                    Elem::Bf16 => s.store_bf16(p.cast(), x),
                }
            } else {
                for (i, x) in s.to_array(x).into_iter().enumerate().take(end - col) {
                    self.set(row, col + i, x);
                }
            }
        }
    }

    /// The value `x` has after being stored here and read back.
    #[inline(always)]
    pub(crate) fn round<S: Simd>(&self, s: S, x: S::F) -> S::F {
        let mut h = [0u16; LANES];
        // SAFETY: `h` is 32 bytes.
        unsafe {
            match self.elem {
                Elem::F32 => x,
                Elem::F16 => {
                    s.store_f16(h.as_mut_ptr(), x);
                    s.load_f16(h.as_ptr())
                }
                Elem::Bf16 => {
                    s.store_bf16(h.as_mut_ptr(), x);
                    s.load_bf16(h.as_ptr())
                }
            }
        }
    }
}
