//! RMS_NORM.

use std::ops::Range;

use halyard_sdk::{Result, abi::ops::attrs::RmsNorm};

use super::args::{Args, LeadRows};
use super::{Launch, Op, Prepared, for_rows, same};
use crate::elem::Rows;
use crate::isa;
use crate::simd::{LANES, Simd};

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let RmsNorm { eps, plus_one } = op.attrs()?;
    Ok(Prepared::tuned(Norm { eps: eps as f32, plus: if plus_one { 1.0 } else { 0.0 } }))
}

/// `y = s rsqrt(mean(s²) + eps) (gamma + plus)`.
#[derive(Clone, Copy)]
struct Norm {
    eps: f32,
    plus: f32,
}

impl Launch for Norm {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y) = (args.lead_rows(0)?, args.lead_rows(2)?);
        let (gamma, n) = args.vector(1)?;
        let r = args.optional(3).map(|_| args.lead_rows(3)).transpose()?;
        for other in [Some(x), r].into_iter().flatten() {
            same("columns", other.cols, n)?;
            same("rows", other.rows(), y.rows())?;
        }
        same("columns", y.cols, n)?;
        for_rows(&args.context.pool, y.rows(), 2 * n, |rows| {
            args.context.isa.dispatch(NormRows { norm: *self, x, gamma, y, r, rows });
        });
        Ok(())
    }
}

struct NormRows {
    norm: Norm,
    x: LeadRows,
    gamma: Rows,
    y: LeadRows,
    r: Option<LeadRows>,
    rows: Range<usize>,
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
                let mean = f64::from(s.sum(squares)) / n as f64;
                let scale = s.splat((1.0 / (mean + f64::from(self.norm.eps)).sqrt()) as f32);
                let from = r.map_or(x, |r| r.as_rows());
                let y = self.y.row(row);
                for col in (0..n).step_by(LANES) {
                    let gamma = self.gamma.load_upto(s, 0, col, n);
                    let gamma = s.add(gamma, s.splat(self.norm.plus));
                    let v = s.mul(s.mul(from.load_upto(s, 0, col, n), scale), gamma);
                    y.store_upto(s, 0, col, n, v);
                }
            }
        }
    }
}
