//! RMS_NORM.

use std::ops::Range;

use halyard_sdk::{Result, abi::ops::attrs::RmsNorm};

use super::args::{Args, LeadRows};
use super::{Launch, Op, Prepared, for_rows, same};
use crate::elem::{Rows, RowsMut};
use crate::isa;
use crate::simd::{LANES, Simd};

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let RmsNorm { eps, plus_one } = op.attrs()?;
    Ok(Prepared::tuned(Norm::new(eps, plus_one)))
}

/// `y = s rsqrt(mean(s²) + eps) (gamma + plus)`.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    eps: f32,
    plus: f32,
}

impl Norm {
    pub(super) fn new(eps: f64, plus_one: bool) -> Self {
        Self { eps: eps as f32, plus: if plus_one { 1.0 } else { 0.0 } }
    }

    /// Row 0 of `x` to row 0 of `y`, `n` numbers.
    ///
    /// # Safety
    /// `x`, `gamma` and `y` have them.
    #[inline(always)]
    pub(super) unsafe fn row<S: Simd>(&self, s: S, x: &Rows, gamma: &Rows, y: &RowsMut, n: usize) {
        let mut squares = s.splat(0.0);
        for col in (0..n).step_by(LANES) {
            // SAFETY: the caller's promise.
            let v = unsafe { x.load_upto(s, 0, col, n) };
            squares = s.fma(v, v, squares);
        }
        // SAFETY: the caller's promise.
        unsafe { self.scale(s, squares, (x, gamma, y), n) };
    }

    /// The second half of [`Self::row`]: lanes of `squares` add up to those of the row.
    #[inline(always)]
    unsafe fn scale<S: Simd>(
        &self,
        s: S,
        squares: S::F,
        (x, gamma, y): (&Rows, &Rows, &RowsMut),
        n: usize,
    ) {
        let mean = f64::from(s.sum(squares)) / n as f64;
        let scale = s.splat((1.0 / (mean + f64::from(self.eps)).sqrt()) as f32);
        for col in (0..n).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let gamma = s.add(gamma.load_upto(s, 0, col, n), s.splat(self.plus));
                let v = s.mul(s.mul(x.load_upto(s, 0, col, n), scale), gamma);
                y.store_upto(s, 0, col, n, v);
            }
        }
    }
}

impl Launch for Norm {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let y = args.lead_rows(2)?;
        let all = NormRows::of(*self, args, [0, 1, 3], y)?;
        for_rows(&args.context.pool, y.rows(), 2 * y.cols, |rows| {
            args.context.isa.dispatch(all.part(rows));
        });
        Ok(())
    }
}

/// Some rows of a norm.
pub(super) struct NormRows {
    norm: Norm,
    x: LeadRows,
    gamma: Rows,
    y: LeadRows,
    r: Option<LeadRows>,
    rows: Range<usize>,
}

impl NormRows {
    /// All rows: `x`, `gamma` and, if it is there, the residual are in these slots.
    pub(super) fn of(norm: Norm, args: &Args<'_>, slots: [usize; 3], y: LeadRows) -> Result<Self> {
        let x = args.lead_rows(slots[0])?;
        let (gamma, n) = args.vector(slots[1])?;
        let r = args.optional(slots[2]).map(|_| args.lead_rows(slots[2])).transpose()?;
        for other in [Some(x), r].into_iter().flatten() {
            same("columns", other.cols, n)?;
            same("rows", other.rows(), y.rows())?;
        }
        same("columns", y.cols, n)?;
        Ok(Self { norm, x, gamma, y, r, rows: 0..y.rows() })
    }

    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        Self { rows, ..*self }
    }
}

impl isa::Op for NormRows {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.y.cols;
        for row in self.rows {
            let x = self.x.row(row).as_rows();
            let r = self.r.map(|r| r.row(row));
            // SAFETY: the host has checked the views; rows and columns are inside them.
            unsafe {
                let mut squares = s.splat(0.0);
                for col in (0..n).step_by(LANES) {
                    let mut v = x.load_upto(s, 0, col, n);
                    if let Some(r) = &r {
                        v = r.round(s, s.add(v, r.as_rows().load_upto(s, 0, col, n)));
                        r.store_upto(s, 0, col, n, v);
                    }
                    squares = s.fma(v, v, squares);
                }
                let from = r.map_or(x, |r| r.as_rows());
                self.norm.scale(s, squares, (&from, &self.gamma, &self.y.row(row)), n);
            }
        }
    }
}
