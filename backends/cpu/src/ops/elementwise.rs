//! ADD, MUL and ACT_MUL.

use std::ops::Range;

use halyard_sdk::{
    Error, Result,
    abi::ops::{
        Act,
        attrs::{ActMul, Add, Mul},
    },
};

use super::args::{Args, LeadRows};
use super::{Launch, Op, Prepared, for_rows, same};
use crate::elem::{Rows, RowsMut};
use crate::isa;
use crate::simd::{LANES, Simd, math};

pub(super) fn add(op: &Op<'_>) -> Result<Prepared> {
    let Add { alpha } = op.attrs()?;
    Ok(Prepared::tuned(Binary { alpha: Some(alpha as f32) }))
}

pub(super) fn mul(op: &Op<'_>) -> Result<Prepared> {
    let Mul {} = op.attrs()?;
    Ok(Prepared::tuned(Binary { alpha: None }))
}

/// `y = a + alpha b`, or `y = a b` without `alpha`.
struct Binary {
    alpha: Option<f32>,
}

impl Launch for Binary {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (a, b, y) = (args.lead_rows(0)?, args.lead_rows(1)?, args.lead_rows(2)?);
        same("columns", a.cols, y.cols)?;
        same("columns", b.cols, y.cols)?;
        same("rows", a.rows(), y.rows())?;
        let repeat = b.rows();
        if y.rows() == 0 {
            return Ok(());
        }
        if repeat == 0 || !y.rows().is_multiple_of(repeat) {
            return Err(Error::invalid(format!("{repeat} rows for {}", y.rows())));
        }
        for_rows(&args.context.pool, y.rows(), y.cols, |rows| {
            args.context.isa.dispatch(BinaryRows { alpha: self.alpha, a, b, y, repeat, rows });
        });
        Ok(())
    }
}

struct BinaryRows {
    alpha: Option<f32>,
    a: LeadRows,
    b: LeadRows,
    y: LeadRows,
    /// Rows of `b`, which is repeated over the leading dims it lacks.
    repeat: usize,
    rows: Range<usize>,
}

impl isa::Op for BinaryRows {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.y.cols;
        for row in self.rows {
            let (a, b) = (self.a.row(row).as_rows(), self.b.row(row % self.repeat).as_rows());
            let y = self.y.row(row);
            for col in (0..n).step_by(LANES) {
                // SAFETY: the host has checked the views; rows and columns are inside them.
                unsafe {
                    let (a, b) = (a.load_upto(s, 0, col, n), b.load_upto(s, 0, col, n));
                    let v = match self.alpha {
                        Some(alpha) => s.fma(b, s.splat(alpha), a),
                        None => s.mul(a, b),
                    };
                    y.store_upto(s, 0, col, n, v);
                }
            }
        }
    }
}

pub(super) fn act_mul(op: &Op<'_>) -> Result<Prepared> {
    let ActMul { act, limit } = op.attrs()?;
    let gate = Gate { act, limit: limit as f32 };
    if act == Act::GeluErf {
        return Ok(Prepared::slow("the exact GELU is computed one element at a time", gate));
    }
    Ok(Prepared::tuned(gate))
}

/// `act(min(g, L)) clamp(u, -L, L)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    pub(super) act: Act,
    /// 0: none.
    pub(super) limit: f32,
}

impl Launch for Gate {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (gu, tokens, twice) = args.rows(0)?;
        let (y, y_tokens, n) = args.rows_mut(1)?;
        same("tokens", tokens, y_tokens)?;
        same("gate and up columns", twice, 2 * n)?;
        for_rows(&args.context.pool, tokens, 4 * n, |rows| {
            args.context.isa.dispatch(GateRows { gate: *self, gu, y, n, rows });
        });
        Ok(())
    }
}

/// Some rows of a gated activation: `gu` has `2 n` columns, `y` has `n`.
pub(super) struct GateRows {
    pub(super) gate: Gate,
    pub(super) gu: Rows,
    pub(super) y: RowsMut,
    pub(super) n: usize,
    pub(super) rows: Range<usize>,
}

impl isa::Op for GateRows {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let up = Rows { base: self.gu.base.wrapping_add(self.n * self.gu.col_stride), ..self.gu };
        for row in self.rows {
            for col in (0..self.n).step_by(LANES) {
                // SAFETY: the views have `n` columns from their starts on, and these rows.
                unsafe {
                    let g = self.gu.load_upto(s, row, col, self.n);
                    let u = up.load_upto(s, row, col, self.n);
                    self.y.store_upto(s, row, col, self.n, self.gate.apply(s, g, u));
                }
            }
        }
    }
}

impl Gate {
    #[inline(always)]
    fn apply<S: Simd>(&self, s: S, g: S::F, u: S::F) -> S::F {
        let (mut g, mut u) = (g, u);
        if self.limit > 0.0 {
            let limit = s.splat(self.limit);
            g = s.min(limit, g);
            u = s.max(s.splat(-self.limit), s.min(limit, u));
        }
        let a = match self.act {
            Act::Silu => math::silu(s, g),
            Act::GeluTanh => math::gelu_tanh(s, g),
            Act::GeluErf => s.from_array(s.to_array(g).map(math::gelu_erf)),
        };
        s.mul(a, u)
    }
}
