//! `y = x W^T`: activations are brought into a tile-friendly form ([`prep`]), then every thread takes
//! some panels of sixteen rows and some tokens and runs the quantised ([`quant`]) or dense ([`dense`])
//! kernel on them.
//!
//! One output element is one lane of one chain along `k`, in the same order in every tile width, so
//! its bits do not depend on the other tokens, on the partition or on the number of threads.

pub(crate) mod dense;
pub(crate) mod prep;
pub(crate) mod quant;
#[cfg(test)]
mod tests;

use crate::elem::{Elem, Rows, RowsMut};
use crate::isa::Isa;
use crate::pack::dense::{DenseLayout, Store};
use crate::pack::{BLOCK, QuantLayout};
use crate::pool::Pool;
use crate::simd::{LANES, Simd};
use std::ops::Range;

/// Form of one packed `[n, k]` matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Quant(QuantLayout),
    Dense(DenseLayout),
}

impl Layout {
    pub(crate) fn n(&self) -> usize {
        match self {
            Self::Quant(q) => q.n,
            Self::Dense(d) => d.n,
        }
    }

    pub(crate) fn k(&self) -> usize {
        match self {
            Self::Quant(q) => q.k,
            Self::Dense(d) => d.k,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Quant(q) => q.bytes(),
            Self::Dense(d) => d.bytes(),
        }
    }

    pub(crate) fn panels(&self) -> usize {
        self.n().div_ceil(LANES)
    }

    pub(crate) fn panel_bytes(&self) -> usize {
        match self {
            Self::Quant(q) => q.panel_bytes,
            Self::Dense(d) => d.panel_bytes,
        }
    }

    /// Blocks that [`Self::unpack`] takes a row apart into.
    pub(crate) fn blocks(&self) -> usize {
        match self {
            Self::Quant(q) => q.blocks(),
            Self::Dense(d) => d.k.div_ceil(BLOCK),
        }
    }

    /// Columns of block `b`: up to [`BLOCK`] of them.
    pub(crate) fn columns(&self, b: usize) -> Range<usize> {
        match self {
            Self::Quant(q) => q.columns(b),
            Self::Dense(d) => b * BLOCK..(b * BLOCK + BLOCK).min(d.k),
        }
    }

    /// Whether column `j` of a matrix need not multiply activation `j`.
    pub(crate) fn is_ordered(&self) -> bool {
        matches!(self, Self::Quant(q) if q.ordered)
    }

    /// Writes the columns of block `b` of row `row` of the matrix at `base` as floats.
    ///
    /// # Safety
    /// `base` is a packed matrix of this layout; `row < n` and `b < blocks`.
    pub(crate) unsafe fn unpack(
        &self,
        base: *const u8,
        row: usize,
        b: usize,
        out: &mut [f32; BLOCK],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Quant(q) => q.unpack_block(base, row, b, out),
                Self::Dense(d) => {
                    let columns = self.columns(b);
                    d.unpack(base, row, columns.start, &mut out[..columns.len()]);
                }
            }
        }
    }
}

/// A packed matrix in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) layout: Layout,
    pub(crate) base: *const u8,
}

// SAFETY: packed weights are only read.
unsafe impl Send for Matrix {}
// SAFETY: packed weights are only read.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// [`Layout::unpack`] of this matrix.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn unpack(&self, row: usize, b: usize, out: &mut [f32; BLOCK]) {
        // SAFETY: the caller's promise.
        unsafe { self.layout.unpack(self.base, row, b, out) };
    }
}

/// Which arithmetic a matrix and an activation type call for; fixed when a kernel is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Exact integer products of codes and block-fixed-point activations.
    Quant,
    /// f32 fused multiply-add.
    Fma,
    /// Pairs of bfloat16.
    Bf16Dot,
}

impl Path {
    pub(crate) fn new(isa: Isa, layout: &Layout, x: Elem) -> Self {
        match layout {
            Layout::Quant(_) => Self::Quant,
            Layout::Dense(d)
                if d.store == Store::Float(Elem::Bf16) && x == Elem::Bf16 && isa.has_bf16_dot() =>
            {
                Self::Bf16Dot
            }
            Layout::Dense(_) => Self::Fma,
        }
    }
}

/// What becomes of the products: `y = products + bias`, plus `y` itself if it accumulates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) y: RowsMut,
    pub(crate) bias: Option<Rows>,
    pub(crate) accumulate: bool,
}

impl Output {
    /// Rounds and writes the sixteen columns from `16 * panel` of a token's row.
    ///
    /// # Safety
    /// Row `token` of `y` (and the bias) has `n` columns, and this task alone writes these.
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, s: S, token: usize, panel: usize, n: usize, products: S::F) {
        let col = panel * LANES;
        let mut v = products;
        // SAFETY: `col < n`, since the panel is one of the matrix.
        unsafe {
            if let Some(bias) = &self.bias {
                v = s.add(v, bias.load_upto(s, 0, col, n));
            }
            if self.accumulate {
                v = s.add(v, self.y.as_rows().load_upto(s, token, col, n));
            }
            self.y.store_upto(s, token, col, n, v);
        }
    }
}

/// One matrix product, ready to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    pub(crate) isa: Isa,
    pub(crate) path: Path,
    pub(crate) w: Matrix,
    /// Tokens; row `t` of `x` is token `t`, or row `rows[t]` if there is a gather list.
    pub(crate) tokens: usize,
    pub(crate) x: Rows,
    pub(crate) gather: Option<*const u32>,
    pub(crate) out: Output,
    /// [`prep::bytes`] of scratch memory, aligned to 64.
    pub(crate) scratch: *mut u8,
}

// SAFETY: views and scratch are shared by tasks that write disjoint parts.
unsafe impl Send for Gemm {}
// SAFETY: as above.
unsafe impl Sync for Gemm {}

/// Multiply-adds below which a task is not worth handing to another thread.
const TASK_WORK: usize = 96 * 1024;

/// Bytes of prepared activations that a task works through per panel: a share of the L2 cache.
const CHUNK_BYTES: usize = 384 * 1024;

impl Gemm {
    /// Computes the product.
    ///
    /// # Safety
    /// The views span `tokens` rows of `k` and `n` columns, the gather list (if any) names rows of
    /// `x`, `y` overlaps no input, and the scratch memory is this call's own.
    pub(crate) unsafe fn run(&self, pool: &Pool) {
        if self.tokens == 0 {
            return;
        }
        // SAFETY: the caller's promise, here and below.
        unsafe { self.prepare(pool) };
        let (groups, chunk, chunks) = self.partition(pool.threads());
        let per_group = self.w.layout.panels().div_ceil(groups);
        pool.run(groups * chunks, &|task| {
            let (group, part) = (task % groups, task / groups);
            let end = self.w.layout.panels();
            let work = Work {
                gemm: self,
                panels: (group * per_group).min(end)..((group + 1) * per_group).min(end),
                tokens: part * chunk..((part + 1) * chunk).min(self.tokens),
            };
            // SAFETY: tasks cover disjoint panels or tokens.
            unsafe { work.run() };
        });
    }

    /// Brings all activations into the form the kernels read.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn prepare(&self, pool: &Pool) {
        let widest = prep::widest_tile(self.isa, self.path);
        let tiles = self.tokens.div_ceil(widest);
        // A thread switch costs as much as preparing some thousands of elements.
        let per_task = (32 * 1024 / (self.w.layout.k() * widest)).max(1);
        pool.run(tiles.div_ceil(per_task), &|task| {
            let start = task * per_task * widest;
            let end = (start + per_task * widest).min(self.tokens);
            // SAFETY: tasks write disjoint tiles.
            unsafe { prep::run(self, start..end) };
        });
    }

    /// How many groups of panels, how many tokens a chunk, how many chunks.
    fn partition(&self, threads: usize) -> (usize, usize, usize) {
        let widest = prep::widest_tile(self.isa, self.path);
        let per_token = prep::token_bytes(self.isa, self.path, &self.w.layout).max(1);
        let chunk = (CHUNK_BYTES / per_token / widest).max(1) * widest;
        let chunks = self.tokens.div_ceil(chunk);
        let work = self.w.layout.n() * self.w.layout.k() * self.tokens.min(chunk);
        let groups = (work / TASK_WORK).clamp(1, (8 * threads).div_ceil(chunks));
        (groups.min(self.w.layout.panels().max(1)), chunk, chunks)
    }
}

/// One task's share of a product.
pub(crate) struct Work<'a> {
    pub(crate) gemm: &'a Gemm,
    pub(crate) panels: Range<usize>,
    pub(crate) tokens: Range<usize>,
}

impl Work<'_> {
    /// # Safety
    /// The scratch memory holds the prepared activations; no other task writes these outputs.
    pub(crate) unsafe fn run(self) {
        let gemm = self.gemm;
        match &gemm.w.layout {
            Layout::Quant(q) => gemm.isa.dispatch(quant::Panels { work: &self, layout: q }),
            // SAFETY: the caller's promise.
            Layout::Dense(d) => unsafe { dense::run(&self, d) },
        }
    }
}
