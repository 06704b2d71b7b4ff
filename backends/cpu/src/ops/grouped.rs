//! The parts of MOE_EXPERTS as ops of their own: MOE_PERMUTE, GROUPED_LINEAR and MOE_UNPERMUTE.

use std::ops::Range;

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::attrs::{GroupedLinear, MoePermute, MoeUnpermute},
};

use super::args::Args;
use super::product::{Inputs, Product};
use super::routing::{Slice, Sum, visits};
use super::{Launch, Op, Prepared, checked_row, for_rows, same, spec_dim};
use crate::device::Context;
use crate::elem::{Rows, RowsMut};
use crate::gemm::Output;

pub(super) fn permute(op: &Op<'_>) -> Result<Prepared> {
    let MoePermute { expert_start } = op.attrs()?;
    Ok(Prepared::tuned(Permute { expert_start }))
}

/// Rows sorted by expert.
struct Permute {
    expert_start: i64,
}

impl Launch for Permute {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, tokens, h) = args.rows(0)?;
        let (ids, inverse) = (args.table::<i32>(1)?, args.table::<i32>(4)?);
        let (xp, pairs, xp_cols) = args.rows_mut(2)?;
        // SAFETY: the host has checked the view, and that it overlaps no other.
        let offsets: &mut [i32] = unsafe { args.slice_mut(3)? };
        let Some(experts) = offsets.len().checked_sub(1) else {
            return Err(Error::invalid("offsets are empty"));
        };
        for (what, a, b) in [
            ("tokens", ids.rows, tokens),
            ("tokens", inverse.rows, tokens),
            ("chosen", inverse.cols, ids.cols),
            ("pairs", visits(tokens, ids.cols)?, pairs),
            ("columns", xp_cols, h),
        ] {
            same(what, a, b)?;
        }
        // SAFETY: the tables have the same shape, as just checked.
        unsafe { Slice { start: self.expert_start, experts }.sort(&ids, offsets, &inverse) };
        let used = offsets[experts] as usize;
        let bytes = h * xp.elem.bytes();
        for_rows(&args.context.pool, tokens, ids.cols * h, |rows| {
            for t in rows {
                // SAFETY: the host has checked the views; places are below the number of pairs, each of a token of its own.
                unsafe {
                    for at in inverse.row(t).iter().filter_map(|&at| usize::try_from(at).ok()) {
                        std::ptr::copy_nonoverlapping(x.at(t, 0), xp.at(at, 0), bytes);
                    }
                }
            }
        });
        // SAFETY: the host has checked the view.
        unsafe { clear(&xp, used..pairs, h) };
        Ok(())
    }
}

/// Writes rows of zeros.
///
/// # Safety
/// The rows have `cols` columns, contiguous, and are the caller's.
unsafe fn clear(y: &RowsMut, rows: Range<usize>, cols: usize) {
    for row in rows {
        // SAFETY: the caller's promise.
        unsafe { y.at(row, 0).write_bytes(0, cols * y.elem.bytes()) };
    }
}

pub(super) fn linear(op: &Op<'_>) -> Result<Prepared> {
    let GroupedLinear { act_quant } = op.attrs()?;
    let product = Product::new(op, 0, op.elem(0)?, act_quant)?;
    Ok(Prepared::tuned(Grouped { product }))
}

/// `y[p] = W_e x[p]`, `offsets[e] <= p < offsets[e + 1]`.
struct Grouped {
    product: Product,
}

impl Launch for Grouped {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        self.product.scratch_bytes(context, spec_dim(shapes, 0, 0))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, pairs, k) = args.rows(0)?;
        // SAFETY: the host has checked the view.
        let offsets: &[i32] = unsafe { args.slice(1)? };
        let (y, y_pairs, n) = args.rows_mut(2)?;
        for (what, a, b) in [
            ("pairs", pairs, y_pairs),
            ("x columns", k, self.product.k()),
            ("y columns", n, self.product.n()),
            ("experts", offsets.len(), self.product.groups() + 1),
        ] {
            same(what, a, b)?;
        }
        let experts = ranges(offsets, pairs)?;
        let w = self.product.weight(args, 0)?;
        let scratch = args.workspace(self.product.scratch_bytes(args.context, pairs))?;
        let mut end = 0;
        for (e, range) in experts.enumerate().filter(|(_, range)| !range.is_empty()) {
            end = range.end;
            let x = Rows { base: x.base.wrapping_add(range.start * x.row_stride), ..x };
            let y = RowsMut { base: y.base.wrapping_add(range.start * y.row_stride), ..y };
            let inputs = Inputs { x, gather: None, tokens: range.len() };
            let out = Output { y, bias: None, accumulate: false };
            // SAFETY: the host has checked the views, sizes and rows are as just checked, and the workspace is this launch's own.
            unsafe { self.product.run(args.context, w.matrix(e), inputs, out, scratch) };
        }
        // SAFETY: the host has checked the view.
        unsafe { clear(&y, end..pairs, n) };
        Ok(())
    }
}

/// The rows of each expert.
fn ranges(offsets: &[i32], rows: usize) -> Result<impl Iterator<Item = Range<usize>> + '_> {
    let rising = offsets.windows(2).all(|w| w[0] <= w[1]);
    let last = offsets.last().and_then(|&end| usize::try_from(end).ok());
    if offsets.first() != Some(&0) || !rising || last.is_none_or(|end| end > rows) {
        return Err(Error::invalid(format!(
            "offsets {offsets:?} for {rows} rows, expected to rise from 0"
        )));
    }
    Ok(offsets.windows(2).map(|w| w[0] as usize..w[1] as usize))
}

pub(super) fn unpermute(op: &Op<'_>) -> Result<Prepared> {
    let MoeUnpermute {} = op.attrs()?;
    Ok(Prepared::tuned(Unpermute))
}

/// `y[t] = add[t] + Σ_j weight[t, j] yp[inverse[t, j]]`.
struct Unpermute;

impl Launch for Unpermute {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (yp, pairs, h) = args.rows(0)?;
        let (place, weight) = (args.table::<i32>(1)?, args.table::<f32>(2)?);
        let (y, tokens, y_cols) = args.rows_mut(3)?;
        let add = args.optional(4).map(|_| args.rows(4)).transpose()?;
        for (what, a, b) in [
            ("tokens", place.rows, tokens),
            ("tokens", weight.rows, tokens),
            ("tokens", add.map_or(tokens, |a| a.1), tokens),
            ("chosen", place.cols, weight.cols),
            ("columns", y_cols, h),
            ("columns", add.map_or(h, |a| a.2), h),
        ] {
            same(what, a, b)?;
        }
        for t in 0..tokens {
            // SAFETY: the host has checked the view.
            for &at in unsafe { place.row(t) }.iter().filter(|&&at| at >= 0) {
                checked_row("inverse", i64::from(at), pairs)?;
            }
        }
        let sum = Sum { yp, place, weight: Some(weight), add: add.map(|a| a.0), y, h };
        // SAFETY: the host has checked the views; sizes and places as just checked.
        unsafe { sum.run(args.context) };
        Ok(())
    }
}
