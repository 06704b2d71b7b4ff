//! Quantised activations: QUANT_ACT and RMS_NORM_QUANT, and what ACT_QUANT makes of a linear layer's inputs.

use std::ops::Range;

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::attrs::{QuantAct, RmsNormQuant},
};

use super::args::{Args, LeadRows, Table};
use super::norm::{Norm, NormRows};
use super::{Launch, Op, Prepared, for_rows, same, spec_dim};
use crate::device::Context;
use crate::elem::{Rows, RowsMut};
use crate::fp8;
use crate::isa;
use crate::simd::{LANES, Simd};

/// Columns that share a scale in mode 2.
const GROUP: usize = 128;

/// Cost of quantising an element, in simple operations.
const COST: usize = 4;

/// What activations are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// 1: i8, a scale a row.
    Int8Row,
    /// 2: f8e4m3, a scale for every 128 columns of a row.
    Fp8Groups,
}

impl Mode {
    fn of(op: &Op<'_>, mode: i64) -> Result<Self> {
        match mode {
            1 => Ok(Self::Int8Row),
            2 => Ok(Self::Fp8Groups),
            _ => Err(Error::unsupported(format!(
                "{}: quantised activations of mode {mode}; supported: 1 (i8 a row), 2 (f8e4m3 a group of 128)",
                op.desc.kind
            ))),
        }
    }

    /// The mode of an ACT_QUANT; none if that is 0.
    pub(super) fn of_inputs(op: &Op<'_>, act_quant: i64) -> Result<Option<Self>> {
        if act_quant == 0 { Ok(None) } else { Self::of(op, act_quant).map(Some) }
    }

    /// Columns that share a scale.
    fn group(self, k: usize) -> usize {
        match self {
            Self::Int8Row => k.max(1),
            Self::Fp8Groups => GROUP,
        }
    }

    fn largest(self) -> f32 {
        match self {
            Self::Int8Row => 127.0,
            Self::Fp8Groups => fp8::E4M3_MAX,
        }
    }

    /// The code nearest to a quotient; an i8 has no NaN, it gets 0. Quotients of f32 are never rounded to a tie in f64.
    #[inline(always)]
    fn code(self, quotient: f64) -> u8 {
        match self {
            Self::Int8Row => (quotient.round_ties_even() as i8).cast_unsigned(),
            Self::Fp8Groups => fp8::nearest_e4m3(quotient),
        }
    }

    #[inline(always)]
    fn value(self, code: u8) -> f32 {
        match self {
            Self::Int8Row => f32::from(code.cast_signed()),
            Self::Fp8Groups => fp8::E4M3[usize::from(code)],
        }
    }
}

/// Where quantised rows go.
#[derive(Clone, Copy)]
enum Target {
    /// Codes and scales.
    Codes(Table<u8>, Table<f32>),
    /// Codes times scales; they may be the rows themselves.
    Values(RowsMut),
}

/// Quantises some rows: row `i` is row `i` of `x`, or row `gather[i]`.
struct QuantRows {
    mode: Mode,
    x: Rows,
    gather: Option<*const u32>,
    k: usize,
    to: Target,
    rows: Range<usize>,
}

// SAFETY: views and a list that is only read; tasks write different rows.
unsafe impl Sync for QuantRows {}

impl isa::Op for QuantRows {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // One copy of the loops a mode.
        match self.mode {
            Mode::Int8Row => self.all(s, Mode::Int8Row),
            Mode::Fp8Groups => self.all(s, Mode::Fp8Groups),
        }
    }
}

impl QuantRows {
    fn part(&self, rows: Range<usize>) -> Self {
        Self { rows, ..*self }
    }

    fn run_all(&self, context: &Context) {
        for_rows(&context.pool, self.rows.len(), COST * self.k, |rows| {
            context.isa.dispatch(self.part(rows));
        });
    }

    #[inline(always)]
    fn all<S: Simd>(self, s: S, mode: Mode) {
        let size = mode.group(self.k);
        for row in self.rows.clone() {
            // SAFETY: whoever made this promises rows, columns and targets.
            let from = unsafe { self.gather.map_or(row, |g| g.add(row).read_unaligned() as usize) };
            for (i, start) in (0..self.k).step_by(size).enumerate() {
                let columns = start..(start + size).min(self.k);
                // SAFETY: as above.
                unsafe { self.group(s, mode, [from, row], i, columns) };
            }
        }
    }

    /// Quantises group `i` of a row.
    ///
    /// # Safety
    /// The columns are those of the group; both rows exist, and this task alone writes the second.
    #[inline(always)]
    unsafe fn group<S: Simd>(
        &self,
        s: S,
        mode: Mode,
        [from, row]: [usize; 2],
        i: usize,
        columns: Range<usize>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut largest = s.isplat(0);
            for col in columns.clone().step_by(LANES) {
                let v = self.x.load_upto(s, from, col, columns.end);
                largest = s.umax(largest, s.iand(s.bits(v), s.isplat(0x7fff_ffff)));
            }
            // As integers NaN is above all numbers, and stays.
            let amax = f32::from_bits(s.umax_lane(largest));
            let scale = (f64::from(amax) / f64::from(mode.largest())) as f32;
            let scale = if scale == 0.0 { 1.0 } else { scale };
            if let Target::Codes(_, scales) = &self.to {
                scales.row_mut(row)[i] = scale;
            }
            for col in columns.clone().step_by(LANES) {
                let v = s.to_array(self.x.load_upto(s, from, col, columns.end));
                let codes = v.map(|x| mode.code(f64::from(x) / f64::from(scale)));
                match &self.to {
                    Target::Codes(q, _) => {
                        let n = LANES.min(columns.end - col);
                        q.row_mut(row)[col..col + n].copy_from_slice(&codes[..n]);
                    }
                    Target::Values(y) => {
                        let values = s.from_array(codes.map(|code| mode.value(code) * scale));
                        y.store_upto(s, row, col, columns.end, values);
                    }
                }
            }
        }
    }
}

/// Replaces inputs of a product by what quantising them leaves: `tokens` rows of `k` at `to`.
///
/// # Safety
/// `x` has the rows, or those that the gather list names; `to` has room for the new ones and is this call's own.
pub(super) unsafe fn quantise_inputs(
    context: &Context,
    mode: Mode,
    (x, gather): (Rows, Option<*const u32>),
    (tokens, k): (usize, usize),
    to: *mut f32,
) -> Rows {
    let to = RowsMut::dense(to, k);
    QuantRows { mode, x, gather, k, to: Target::Values(to), rows: 0..tokens }.run_all(context);
    to.as_rows()
}

pub(super) fn quant_act(op: &Op<'_>) -> Result<Prepared> {
    let QuantAct { mode } = op.attrs()?;
    let mode = Mode::of(op, mode)?;
    Ok(Prepared::tuned(Quantise { mode }))
}

/// `q = round(x / scale)`.
struct Quantise {
    mode: Mode,
}

impl Launch for Quantise {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, tokens, k) = args.rows(0)?;
        let to = outputs(self.mode, args, 1, tokens, k)?;
        QuantRows { mode: self.mode, x, gather: None, k, to, rows: 0..tokens }
            .run_all(args.context);
        Ok(())
    }
}

/// Codes and scales of `tokens` rows of `k`, in slots `q` and `q + 1`.
fn outputs(mode: Mode, args: &Args<'_>, q: usize, tokens: usize, k: usize) -> Result<Target> {
    let (codes, scales) = (args.codes(q)?, args.table::<f32>(q + 1)?);
    for (what, a, b) in [
        ("tokens", codes.rows, tokens),
        ("tokens", scales.rows, tokens),
        ("columns", codes.cols, k),
        ("scales a row", scales.cols, k.div_ceil(mode.group(k))),
    ] {
        same(what, a, b)?;
    }
    Ok(Target::Codes(codes, scales))
}

pub(super) fn rms_norm_quant(op: &Op<'_>) -> Result<Prepared> {
    let RmsNormQuant { eps, plus_one, mode } = op.attrs()?;
    let mode = Mode::of(op, mode)?;
    Ok(Prepared::tuned(NormQuantise { norm: Norm::new(eps, plus_one), mode }))
}

/// RMS_NORM, kept in f32, then QUANT_ACT.
struct NormQuantise {
    norm: Norm,
    mode: Mode,
}

impl Launch for NormQuantise {
    fn workspace_bytes(&self, shapes: &[TensorSpec], _context: &Context) -> usize {
        spec_dim(shapes, 0, 0).saturating_mul(spec_dim(shapes, 0, 1)).saturating_mul(4)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (_, tokens, k) = args.rows(0)?;
        let to = outputs(self.mode, args, 2, tokens, k)?;
        let space = args.workspace(4 * tokens * k)?.cast::<f32>();
        let normed = LeadRows::dense(space, tokens, k);
        let rows = NormRows::of(self.norm, args, [0, 1, 4], normed)?;
        let quantised = QuantRows {
            mode: self.mode,
            x: Rows::dense(space, k),
            gather: None,
            k,
            to,
            rows: 0..tokens,
        };
        for_rows(&args.context.pool, tokens, (2 + COST) * k, |range| {
            args.context.isa.dispatch(rows.part(range.clone()));
            args.context.isa.dispatch(quantised.part(range));
        });
        Ok(())
    }
}
