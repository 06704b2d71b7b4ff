//! MOE_EXPERTS: visits are sorted by expert ([`routing`](super::routing)); between the two products they live in f32 scratch
//! memory, one row each.

use std::sync::Arc;

use halyard_sdk::{
    Result, TensorSpec,
    abi::ops::{Act, attrs::MoeExperts},
};

use super::args::{Args, Table};
use super::elementwise::{Gate, GateRows};
use super::product::{Inputs, Product};
use super::routing::{Slice, Sum, visits};
use super::{Launch, Op, Prepared, for_rows, same, spec_dim};
use crate::device::Context;
use crate::elem::{Elem, Rows, RowsMut};
use crate::gemm::Output;
use crate::weights::Packed;

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let attrs: MoeExperts = op.attrs()?;
    // The scaled input and what lies between the products are f32.
    let first = if attrs.weight_on_input { Elem::F32 } else { op.elem(0)? };
    let experts = Experts {
        attrs,
        up: Product::new(op, 0, first, attrs.act_quant)?,
        down: Product::new(op, 1, Elem::F32, attrs.act_quant)?,
    };
    if attrs.act == Act::GeluErf {
        return Ok(Prepared::slow("the exact GELU is computed one element at a time", experts));
    }
    Ok(Prepared::tuned(experts))
}

struct Experts {
    attrs: MoeExperts,
    /// Gate and up.
    up: Product,
    down: Product,
}

/// Offsets of what the workspace holds.
struct Space {
    /// First visit of each expert, and the end: i32.
    offsets: usize,
    /// Token of each visit, in order of expert: u32.
    token: usize,
    /// Place of token `t`'s `j`-th visit, or -1: i32.
    place: usize,
    /// Gate and up values of each visit, then the gated value in the first half: f32.
    gate_up: usize,
    /// Scaled inputs, then outputs of each visit: f32.
    out: usize,
    /// Of the products.
    scratch: usize,
    end: usize,
}

impl Experts {
    fn space(&self, context: &Context, tokens: usize, top: usize) -> Result<Space> {
        let visits = visits(tokens, top)?;
        let mut end = 0usize;
        let mut take = |bytes: usize| {
            let at = end;
            end = end.saturating_add(bytes).div_ceil(64).saturating_mul(64);
            at
        };
        let floats = |cols: usize| visits.saturating_mul(cols).saturating_mul(4);
        Ok(Space {
            offsets: take(4 * (self.up.groups() + 1)),
            token: take(floats(1)),
            place: take(floats(1)),
            gate_up: take(floats(self.up.n())),
            out: take(floats(self.up.k())),
            scratch: take(
                self.up
                    .scratch_bytes(context, visits)
                    .max(self.down.scratch_bytes(context, visits)),
            ),
            end,
        })
    }
}

impl Launch for Experts {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        let (tokens, top) = (spec_dim(shapes, 0, 0), spec_dim(shapes, 1, 1));
        self.space(context, tokens, top).map_or(usize::MAX, |s| s.end)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, tokens, h) = args.rows(0)?;
        let (ids, weight) = (args.table::<i32>(1)?, args.table::<f32>(2)?);
        let (y, y_tokens, y_cols) = args.rows_mut(3)?;
        let add = args.optional(4).map(|_| args.rows(4)).transpose()?;
        let weights = [self.up.weight(args, 0)?, self.down.weight(args, 1)?];
        for (what, a, b) in [
            ("tokens", y_tokens, tokens),
            ("tokens", ids.rows, tokens),
            ("tokens", weight.rows, tokens),
            ("tokens", add.map_or(tokens, |a| a.1), tokens),
            ("columns", h, self.up.k()),
            ("columns", y_cols, h),
            ("columns", add.map_or(h, |a| a.2), h),
            ("chosen", ids.cols, weight.cols),
        ] {
            same(what, a, b)?;
        }
        let space = self.space(args.context, tokens, ids.cols)?;
        let base = args.workspace(space.end)?;
        let place = Table::dense(base.wrapping_add(space.place).cast(), tokens, ids.cols);
        let call = Call { experts: self, context: args.context, space, base, place };
        // SAFETY: the host has checked the views; sizes match as just checked; the workspace is as large
        // as `space` says and this launch's own.
        unsafe {
            call.sort(&ids);
            let scaled = self.attrs.weight_on_input.then(|| call.scale_inputs(&x, &weight));
            call.products(x, scaled, &weights);
            let sum = Sum {
                yp: Rows::dense(call.part(call.space.out), h),
                place,
                weight: (!self.attrs.weight_on_input).then_some(weight),
                add: add.map(|a| a.0),
                y,
                h,
            };
            sum.run(args.context);
        }
        Ok(())
    }
}

/// A launch with its workspace.
struct Call<'a> {
    experts: &'a Experts,
    context: &'a Context,
    space: Space,
    base: *mut u8,
    place: Table<i32>,
}

impl Call<'_> {
    /// A part of the workspace; all methods below keep to the lengths in [`Space`].
    fn part<T>(&self, offset: usize) -> *mut T {
        self.base.wrapping_add(offset).cast()
    }

    /// Sorts visits by expert and notes their tokens.
    ///
    /// # Safety
    /// The workspace has its parts; `ids` has a row a token.
    unsafe fn sort(&self, ids: &Table<i32>) {
        let experts = self.experts.up.groups();
        let slice = Slice { start: self.experts.attrs.expert_start, experts };
        let token: *mut u32 = self.part(self.space.token);
        // SAFETY: the caller's promise; any bytes are an i32.
        unsafe {
            let offsets = self.part(self.space.offsets);
            slice.sort(ids, std::slice::from_raw_parts_mut(offsets, experts + 1), &self.place);
            for t in 0..ids.rows {
                for at in self.place.row(t).iter().filter_map(|&at| usize::try_from(at).ok()) {
                    token.add(at).write(t as u32);
                }
            }
        }
    }

    /// Inputs times weights, a row a visit.
    ///
    /// # Safety
    /// [`Self::sort`] has run; the views have a row a token.
    unsafe fn scale_inputs(&self, x: &Rows, weight: &Table<f32>) -> Rows {
        let h = self.experts.up.k();
        let scaled = RowsMut::dense(self.part(self.space.out), h);
        for t in 0..self.place.rows {
            // SAFETY: the caller's promise: the workspace has a row a visit.
            unsafe {
                for (&at, w) in self.place.row(t).iter().zip(weight.row(t)) {
                    let Ok(at) = usize::try_from(at) else { continue };
                    for col in 0..h {
                        scaled.set(at, col, x.get(t, col) * w);
                    }
                }
            }
        }
        scaled.as_rows()
    }

    /// Both products of every expert that has visits.
    ///
    /// # Safety
    /// [`Self::sort`] has run; `x` has a row a token, `scaled` (if it is to be taken) one a visit.
    unsafe fn products(&self, x: Rows, scaled: Option<Rows>, weights: &[Arc<Packed>; 2]) {
        let Experts { attrs, up, down } = self.experts;
        let (twice, h) = (up.n(), up.k());
        let gate = Gate { act: attrs.act, limit: attrs.limit as f32 };
        let scratch = self.part(self.space.scratch);
        for e in 0..up.groups() {
            // SAFETY: the caller's promise.
            let [start, end] =
                unsafe { self.part::<i32>(self.space.offsets).add(e).cast::<[i32; 2]>().read() }
                    .map(|v| v as usize);
            if start == end {
                continue;
            }
            let tokens = end - start;
            let rows_at = |offset, cols: usize| {
                RowsMut::dense(self.part::<f32>(offset).wrapping_add(start * cols), cols)
            };
            let (gate_up, out) = (rows_at(self.space.gate_up, twice), rows_at(self.space.out, h));
            let list = self.part::<u32>(self.space.token).wrapping_add(start).cast_const();
            let inputs = match scaled {
                Some(x) => {
                    let x = Rows { base: x.base.wrapping_add(start * x.row_stride), ..x };
                    Inputs { x, gather: None, tokens }
                }
                None => Inputs { x, gather: Some(list), tokens },
            };
            let to = |y| Output { y, bias: None, accumulate: false };
            // SAFETY: the caller's promise: all parts have a row a visit.
            unsafe {
                up.run(self.context, weights[0].matrix(e), inputs, to(gate_up), scratch);
                for_rows(&self.context.pool, tokens, 2 * twice, |rows| {
                    let (gu, n) = (gate_up.as_rows(), twice / 2);
                    self.context.isa.dispatch(GateRows { gate, gu, y: gate_up, n, rows });
                });
                let between = Inputs { x: gate_up.as_rows(), gather: None, tokens };
                down.run(self.context, weights[1].matrix(e), between, to(out), scratch);
            }
        }
    }
}
