//! New tokens into the cache.

use super::{Cache, Heads, Scales, scale_of};
use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::simd::Simd;

/// New keys and values and where they go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvWrite<'a> {
    pub(crate) cache: Cache,
    pub(crate) k: Heads,
    pub(crate) v: Heads,
    pub(crate) scales: Scales<'a>,
    /// Slot of each token; negative ones are skipped, others are inside the cache.
    pub(crate) slots: &'a [i64],
}

/// Tokens a task writes: about as much work as waking a thread.
const TOKENS_PER_TASK: usize = 16;

impl KvWrite<'_> {
    /// Writes all tokens.
    ///
    /// # Safety
    /// The tensors span a row a slot and the cache's heads and dims; every slot that is not negative is
    /// inside the cache, none twice.
    pub(crate) unsafe fn run(&self, isa: Isa, pool: &Pool) {
        let tokens = self.slots.len();
        pool.run(tokens.div_ceil(TOKENS_PER_TASK), &|task| {
            let start = task * TOKENS_PER_TASK;
            let end = (start + TOKENS_PER_TASK).min(tokens);
            isa.dispatch(WriteTokens { write: self, start, end });
        });
    }
}

struct WriteTokens<'a> {
    write: &'a KvWrite<'a>,
    start: usize,
    end: usize,
}

impl Op for WriteTokens<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let w = self.write;
        for t in self.start..self.end {
            let Ok(slot) = usize::try_from(w.slots[t]) else { continue };
            for (plane, x, scales) in
                [(&w.cache.k, &w.k, w.scales.k), (&w.cache.v, &w.v, w.scales.v)]
            {
                for head in 0..plane.shape.heads {
                    // SAFETY: promised to `KvWrite::run`.
                    unsafe {
                        plane.put(s, slot, head, scale_of(scales, head), &x.head(head).row(t));
                    }
                }
            }
        }
    }
}
