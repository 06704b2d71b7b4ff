//! Cached tokens back into rows of tensors.

use super::{Cache, Plane, Scales, View, scale_of};
use crate::attention::Out;
use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::simd::{LANES, Simd};

/// Which tokens of the cache go where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvGather<'a> {
    pub(crate) cache: Cache,
    pub(crate) scales: Scales<'a>,
    /// Rows `cu_k[b] .. cu_k[b + 1]` are sequence `b`'s; rising from 0.
    pub(crate) cu_k: &'a [i32],
    /// Blocks of sequence `b` from `b * table_stride` on; those of its tokens are inside the cache.
    pub(crate) block_table: &'a [i32],
    pub(crate) table_stride: usize,
    pub(crate) k: Out,
    pub(crate) v: Out,
    /// Rows of the outputs; those after the last sequence become zeros.
    pub(crate) rows: usize,
}

/// Rows of a task.
const ROWS_PER_TASK: usize = 16;

impl KvGather<'_> {
    /// Writes all rows.
    ///
    /// # Safety
    /// The outputs span `rows` rows and the cache's heads and dims and overlap nothing; lengths and blocks
    /// are as said at the fields.
    pub(crate) unsafe fn run(&self, isa: Isa, pool: &Pool) {
        pool.run(self.rows.div_ceil(ROWS_PER_TASK), &|task| {
            isa.dispatch(GatherRows { gather: self, start: task * ROWS_PER_TASK });
        });
    }
}

struct GatherRows<'a> {
    gather: &'a KvGather<'a>,
    start: usize,
}

impl Op for GatherRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let g = self.gather;
        for row in self.start..(self.start + ROWS_PER_TASK).min(g.rows) {
            // The sequences before the row's own.
            let before = g.cu_k[1..].partition_point(|&end| end as usize <= row);
            let place =
                (before + 1 < g.cu_k.len()).then(|| (before, row - g.cu_k[before] as usize));
            // SAFETY: promised to `KvGather::run`.
            unsafe {
                g.row(s, &g.cache.k, g.scales.k, &g.k, (row, place));
                g.row(s, &g.cache.v, g.scales.v, &g.v, (row, place));
            }
        }
    }
}

impl KvGather<'_> {
    /// All heads of a row: those of a sequence's token, or zeros.
    #[inline(always)]
    unsafe fn row<S: Simd>(
        &self,
        s: S,
        plane: &Plane,
        scales: Option<&[f32]>,
        to: &Out,
        (row, place): (usize, Option<(usize, usize)>),
    ) {
        let dim = plane.shape.dim;
        for head in 0..plane.shape.heads {
            let to = to.head(head);
            for d in (0..dim).step_by(LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let v = match place {
                        Some((b, j)) => {
                            let blocks = &self.block_table[b * self.table_stride..];
                            let view = View::paged(plane, head, blocks, scale_of(scales, head));
                            view.dims(s, view.token(j), d)
                        }
                        None => s.splat(0.0),
                    };
                    to.store_upto(s, row, d, dim, v);
                }
            }
        }
    }
}
