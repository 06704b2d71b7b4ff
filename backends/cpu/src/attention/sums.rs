//! Partial results of a task's rows, and how they are put together.

use super::ROWS;
use crate::simd::{LANES, Simd, math};

/// Results of some rows: the largest score, the sum of exponentials, the weighted values.
///
/// Laid out as `ROWS` maxima, `ROWS` sums, then rows of `dim` floats.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) base: *mut f32,
    pub(super) dim: usize,
}

impl Sums {
    /// # Safety (all methods)
    /// `row < ROWS`.
    #[inline(always)]
    pub(super) unsafe fn max(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(row) }
    }
    #[inline(always)]
    pub(super) unsafe fn sum(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(ROWS + row) }
    }
    #[inline(always)]
    pub(super) unsafe fn values(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(2 * ROWS + row * self.dim) }
    }

    /// Nothing seen yet.
    #[inline(always)]
    pub(super) unsafe fn clear<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.max(row).write(f32::NEG_INFINITY);
            self.sum(row).write(0.0);
            for d in (0..self.dim).step_by(LANES) {
                s.store(self.values(row).add(d), s.splat(0.0));
            }
        }
    }

    /// Takes another result of the same row in. One that has seen nothing changes nothing.
    #[inline(always)]
    pub(super) unsafe fn merge<S: Simd>(&self, s: S, row: usize, other: &Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let (old, new) = (self.max(row).read(), other.max(row).read());
            if new == f32::NEG_INFINITY {
                return;
            }
            let max = if new > old { new } else { old };
            let (keep, add) = (exp1(s, old - max), exp1(s, new - max));
            self.max(row).write(max);
            self.sum(row).write(self.sum(row).read() * keep + other.sum(row).read() * add);
            let (to, from) = (self.values(row), other.values(row));
            for d in (0..self.dim).step_by(LANES) {
                let scaled = s.mul(s.load(to.add(d)), s.splat(keep));
                s.store(to.add(d), s.fma(s.load(from.add(d)), s.splat(add), scaled));
            }
        }
    }
}

/// `e^x` of one number.
#[inline(always)]
pub(super) fn exp1<S: Simd>(s: S, x: f32) -> f32 {
    s.to_array(math::exp(s, s.splat(x)))[0]
}
