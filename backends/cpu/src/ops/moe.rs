//! MOE_EXPERTS: tokens are grouped by expert, so that each expert's weights are read once.
//!
//! A *visit* is a token's `j`-th expert. Visits are sorted by expert, then token; between the two
//! products they live in f32 scratch memory, one row each.

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::{Act, attrs::MoeExperts},
};

use super::args::{Args, Table};
use super::elementwise::{Gate, GateRows};
use super::{Launch, Op, Prepared, for_rows, same, spec_dim};
use crate::device::Context;
use crate::elem::{Rows, RowsMut};
use crate::gemm::{Gemm, Layout, Output, Path, prep};
use crate::isa;
use crate::simd::{LANES, Simd};
use crate::weights::Packed;

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let attrs: MoeExperts = op.attrs()?;
    if attrs.act_quant != 0 {
        return Err(Error::unsupported(format!(
            "moe_experts: activation quantisation {}; supported: 0 (none)",
            attrs.act_quant
        )));
    }
    let x = op.elem(0)?;
    // The scaled input and what lies between the products are f32.
    let first = if attrs.weight_on_input { crate::elem::Elem::F32 } else { x };
    let experts = Experts {
        attrs,
        groups: op.desc.weights[0].groups as usize,
        layouts: [op.layouts[0], op.layouts[1]],
        paths: [op.path(0, first), op.path(1, crate::elem::Elem::F32)],
    };
    if attrs.act == Act::GeluErf {
        return Ok(Prepared::slow("the exact GELU is computed one element at a time", experts));
    }
    Ok(Prepared::tuned(experts))
}

struct Experts {
    attrs: MoeExperts,
    groups: usize,
    layouts: [Layout; 2],
    paths: [Path; 2],
}

/// Offsets of what the workspace holds.
struct Space {
    /// First visit of each expert, and the end: u32.
    first: usize,
    /// Token of each visit, in order of expert: u32.
    token: usize,
    /// Weight of each visit: f32.
    weight: usize,
    /// Place of token `t`'s `j`-th visit, or `u32::MAX`: u32.
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
    fn space(&self, context: &Context, tokens: usize, top: usize) -> Option<Space> {
        let visits = tokens.checked_mul(top)?;
        let mut end = 0usize;
        let mut take = |bytes: Option<usize>| -> Option<usize> {
            let at = end;
            end = at.checked_add(bytes?)?.checked_next_multiple_of(64)?;
            Some(at)
        };
        let words = |n: usize| n.checked_mul(4);
        let (twice, h) = (self.layouts[0].n(), self.layouts[0].k());
        let product = |i: usize| prep::bytes(context.isa, self.paths[i], &self.layouts[i], visits);
        Some(Space {
            first: take(words(self.groups + 1))?,
            token: take(words(visits))?,
            weight: take(words(visits))?,
            place: take(words(visits))?,
            gate_up: take(visits.checked_mul(twice).and_then(words))?,
            out: take(visits.checked_mul(h).and_then(words))?,
            scratch: take(Some(product(0).max(product(1))))?,
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
        let weights = [args.weight(0)?, args.weight(1)?];
        for (w, layout) in weights.iter().zip(&self.layouts) {
            if w.layout() != layout || w.groups() != self.groups {
                return Err(Error::invalid(
                    "a weight of another form than the kernel was prepared for",
                ));
            }
        }
        for (what, a, b) in [
            ("tokens", y_tokens, tokens),
            ("tokens", ids.rows, tokens),
            ("tokens", weight.rows, tokens),
            ("tokens", add.map_or(tokens, |a| a.1), tokens),
            ("columns", h, self.layouts[0].k()),
            ("columns", y_cols, h),
            ("columns", add.map_or(h, |a| a.2), h),
            ("chosen", ids.cols, weight.cols),
        ] {
            same(what, a, b)?;
        }
        let space = self.space(args.context, tokens, ids.cols);
        let space = space.ok_or_else(|| Error::invalid("too many tokens"))?;
        let base = args.workspace(space.end)?;
        let call =
            Call { experts: self, context: args.context, space, base, tokens, top: ids.cols };
        // SAFETY: the host has checked the views; sizes match as just checked; the workspace is as large
        // as `space` says and this launch's own.
        unsafe {
            call.group(&ids, &weight);
            let x = if self.attrs.weight_on_input { call.scale_inputs(&x) } else { x };
            call.products(x, &weights);
            call.sum(y, add.map(|a| a.0));
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
    tokens: usize,
    top: usize,
}

// SAFETY: tasks write disjoint rows of the workspace.
unsafe impl Sync for Call<'_> {}

impl Call<'_> {
    /// A part of the workspace; all methods below keep to the lengths in [`Space`].
    fn part<T>(&self, offset: usize) -> *mut T {
        self.base.wrapping_add(offset).cast()
    }

    fn visits(&self) -> usize {
        self.tokens * self.top
    }

    /// The local expert of an id.
    fn expert(&self, id: i32) -> Option<usize> {
        let local =
            i64::from(id).checked_sub(self.experts.attrs.expert_start).filter(|_| id >= 0)?;
        usize::try_from(local).ok().filter(|&e| e < self.experts.groups)
    }

    /// Sorts visits by expert (a counting sort: stable).
    ///
    /// # Safety
    /// The workspace has its parts; the tables have a row a token.
    unsafe fn group(&self, ids: &Table<i32>, weight: &Table<f32>) {
        let groups = self.experts.groups;
        // SAFETY: the caller's promise; any bytes are a u32 or f32.
        unsafe {
            let first =
                std::slice::from_raw_parts_mut(self.part::<u32>(self.space.first), groups + 1);
            let parts =
                |offset| std::slice::from_raw_parts_mut(self.part::<u32>(offset), self.visits());
            let (token, place) = (parts(self.space.token), parts(self.space.place));
            let weights =
                std::slice::from_raw_parts_mut(self.part::<f32>(self.space.weight), self.visits());
            first.fill(0);
            for t in 0..self.tokens {
                for e in ids.row(t).iter().filter_map(|&id| self.expert(id)) {
                    first[e + 1] += 1;
                }
            }
            for e in 0..groups {
                first[e + 1] += first[e];
            }
            // `first[e]` walks to the end of expert `e` while its visits are placed.
            for t in 0..self.tokens {
                for (j, (&id, &w)) in ids.row(t).iter().zip(weight.row(t)).enumerate() {
                    let at = &mut place[t * self.top + j];
                    *at = u32::MAX;
                    if let Some(e) = self.expert(id) {
                        *at = first[e];
                        token[first[e] as usize] = t as u32;
                        weights[first[e] as usize] = w;
                        first[e] += 1;
                    }
                }
            }
            first.copy_within(0..groups, 1);
            first[0] = 0;
        }
    }

    /// Inputs times weights, a row a visit.
    ///
    /// # Safety
    /// [`Self::group`] has run.
    unsafe fn scale_inputs(&self, x: &Rows) -> Rows {
        let h = self.experts.layouts[0].k();
        let scaled: *mut f32 = self.part(self.space.out);
        let (token, weight): (*const u32, *const f32) =
            (self.part(self.space.token), self.part(self.space.weight));
        // SAFETY: the caller's promise: every part has a row a visit.
        unsafe {
            let count = self.part::<u32>(self.space.first).add(self.experts.groups).read() as usize;
            for v in 0..count {
                let (t, w) = (token.add(v).read() as usize, weight.add(v).read());
                for col in 0..h {
                    scaled.add(v * h + col).write(x.get(t, col) * w);
                }
            }
        }
        Rows::dense(scaled, h)
    }

    /// Both products of every expert that has visits.
    ///
    /// # Safety
    /// [`Self::group`] has run; `x` has a row a token, or (weight on input) a row a visit.
    unsafe fn products(&self, x: Rows, weights: &[std::sync::Arc<Packed>; 2]) {
        let experts = self.experts;
        let (twice, h) = (experts.layouts[0].n(), experts.layouts[0].k());
        let inner = twice / 2;
        let gate_up: *mut f32 = self.part(self.space.gate_up);
        let out: *mut f32 = self.part(self.space.out);
        for e in 0..experts.groups {
            // SAFETY: the caller's promise.
            let [start, end] =
                unsafe { self.part::<u32>(self.space.first).add(e).cast::<[u32; 2]>().read() }
                    .map(|v| v as usize);
            if start == end {
                continue;
            }
            let gate_up = RowsMut::dense(gate_up.wrapping_add(start * twice), twice);
            let by_visit = experts.attrs.weight_on_input;
            let input = if by_visit {
                Rows { base: x.base.wrapping_add(start * x.row_stride), ..x }
            } else {
                x
            };
            let gather = (!by_visit)
                .then(|| self.part::<u32>(self.space.token).wrapping_add(start).cast_const());
            // SAFETY: the caller's promise: all parts have a row a visit.
            unsafe {
                self.product(0, weights, e, end - start, input, gather, gate_up);
                let gate = Gate { act: experts.attrs.act, limit: experts.attrs.limit as f32 };
                for_rows(&self.context.pool, end - start, 4 * inner, |rows| {
                    let gu = gate_up.as_rows();
                    self.context.isa.dispatch(GateRows { gate, gu, y: gate_up, n: inner, rows });
                });
                let out = RowsMut::dense(out.wrapping_add(start * h), h);
                self.product(1, weights, e, end - start, gate_up.as_rows(), None, out);
            }
        }
    }

    /// # Safety
    /// As [`Gemm::run`].
    #[expect(clippy::too_many_arguments, reason = "the parts of one product")]
    unsafe fn product(
        &self,
        i: usize,
        weights: &[std::sync::Arc<Packed>; 2],
        expert: usize,
        tokens: usize,
        x: Rows,
        gather: Option<*const u32>,
        y: RowsMut,
    ) {
        let gemm = Gemm {
            isa: self.context.isa,
            path: self.experts.paths[i],
            w: weights[i].matrix(expert),
            tokens,
            x,
            gather,
            out: Output { y, bias: None, accumulate: false },
            scratch: self.part(self.space.scratch),
        };
        // SAFETY: the caller's promise.
        unsafe { gemm.run(&self.context.pool) };
    }

    /// `y = add + Σ_j weight_j out_j`, ascending `j`.
    ///
    /// # Safety
    /// [`Self::products`] has run; `y` and `add` have a row a token.
    unsafe fn sum(&self, y: RowsMut, add: Option<Rows>) {
        let h = self.experts.layouts[0].k();
        for_rows(&self.context.pool, self.tokens, (self.top + 1) * h, |rows| {
            self.context.isa.dispatch(SumRows { call: self, y, add, h, rows });
        });
    }
}

struct SumRows<'a> {
    call: &'a Call<'a>,
    y: RowsMut,
    add: Option<Rows>,
    h: usize,
    rows: std::ops::Range<usize>,
}

impl isa::Op for SumRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let call = self.call;
        let out = Rows::dense(call.part(call.space.out), self.h);
        let place: *const u32 = call.part(call.space.place);
        let weight: *const f32 = call.part(call.space.weight);
        for t in self.rows {
            for col in (0..self.h).step_by(LANES) {
                // SAFETY: promised to `Call::sum`; places are below the number of visits.
                unsafe {
                    let mut v = self.add.map_or(s.splat(0.0), |a| a.load_upto(s, t, col, self.h));
                    for j in 0..call.top {
                        let at = place.add(t * call.top + j).read();
                        if at == u32::MAX {
                            continue;
                        }
                        let at = at as usize;
                        let x = out.load_upto(s, at, col, self.h);
                        let w = if call.experts.attrs.weight_on_input {
                            1.0
                        } else {
                            weight.add(at).read()
                        };
                        v = s.fma(x, s.splat(w), v);
                    }
                    self.y.store_upto(s, t, col, self.h, v);
                }
            }
        }
    }
}
