//! Attention over the paged cache, over latents in it, and over rows of tensors.
//!
//! Keys are taken in *chunks* of [`CHUNK`], at fixed places in the sequence. Within a chunk: all scores,
//! their largest, their exponentials, the weighted sum of values. Then the chunk is merged into the
//! result so far. Where chunks begin and in which order they are merged does not depend on how many
//! queries a call brings, so a token's result has the same bits whether its prompt came whole, in parts,
//! or from the prefix cache, and whether chunks were shared among threads or not.
//!
//! Queries that share a KV head are flattened into *rows* (token by token, head by head); a task takes
//! up to [`ROWS`] rows of one sequence and KV head. If that gives too few tasks for the threads, each
//! chunk is a task of its own, and the merge follows.
//!
//! Scores want sixteen keys side by side, floats all of them. Keys and values that do not lie so (of 8 bits,
//! latents, rows of tensors) are *staged*: a task brings those of a chunk into that form once, for all its
//! rows, in memory that stays in the processor's cache.

mod kernel;
mod merge;
mod source;
mod stage;
mod sums;
#[cfg(test)]
mod tests;
mod tile;

use crate::elem::RowsMut;
use crate::isa::{Isa, Op};
use crate::kv::Heads;
use crate::pool::Pool;
use crate::simd::Simd;
use kernel::Part;
pub(crate) use merge::{MergeAttention, MergeTokens};
pub(crate) use source::{Paged, Source};
use stage::Stage;

/// Keys that are scored before they are merged; a multiple of 64.
pub(crate) const CHUNK: usize = 256;

/// Rows of a task.
pub(crate) const ROWS: usize = 24;

/// Largest head dimension; of latents, with the rotated part.
pub(crate) const MAX_DIM: usize = 576;

/// Scratch memory beyond which a call does without sharing chunks among threads.
const MAX_SPLIT_BYTES: usize = 32 << 20;

/// What a query sees and how scores are formed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) scale: f32,
    pub(crate) causal: bool,
    /// Left reach; `None` is all.
    pub(crate) window: Option<usize>,
    /// `cap tanh(z / cap)`; 0 is off.
    pub(crate) softcap: f32,
}

/// One call, its lengths already checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a> {
    pub(crate) rules: Rules,
    pub(crate) source: Source<'a>,
    pub(crate) q: Heads,
    pub(crate) q_heads: usize,
    /// Tokens `cu_q[b] .. cu_q[b + 1]` are sequence `b`'s; rising from 0.
    pub(crate) cu_q: &'a [i32],
    pub(crate) tokens: usize,
    pub(crate) o: Out,
    pub(crate) lse: Option<Lse>,
    pub(crate) sinks: Option<*const f32>,
    /// Room for partial results, aligned to 64; may be null with 0 bytes.
    pub(crate) scratch: *mut u8,
    pub(crate) scratch_bytes: usize,
}

/// A `[tokens, heads, dim]` output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    pub(crate) rows: RowsMut,
    pub(crate) head_stride: usize,
}

/// A `[tokens, heads]` tensor of log-sum-exps, f32; strides in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lse {
    pub(crate) base: *mut u8,
    pub(crate) token_stride: usize,
    pub(crate) head_stride: usize,
}

// SAFETY: views and scratch are shared by tasks that write disjoint parts.
unsafe impl Send for Attention<'_> {}
// SAFETY: as above.
unsafe impl Sync for Attention<'_> {}

/// Floats of a partial result of `ROWS` rows: maxima, sums, weighted values.
fn part_floats(padded_v: usize) -> usize {
    ROWS * (2 + padded_v)
}

/// Scratch bytes worth giving to a call whose sequences have up to `max_kv` cached tokens.
pub(crate) fn scratch_bytes(threads: usize, max_kv: usize, padded_v: usize) -> usize {
    let parts = 2usize.saturating_mul(threads).saturating_mul(max_kv.div_ceil(CHUNK));
    parts.saturating_mul(4 * part_floats(padded_v)).min(MAX_SPLIT_BYTES)
}

impl Attention<'_> {
    /// Computes all outputs.
    ///
    /// # Safety
    /// The tensors span `tokens` rows and their heads and dims; lengths and block numbers are as said at
    /// the fields; outputs overlap no input; the scratch memory is this call's own.
    pub(crate) unsafe fn run(&self, isa: Isa, pool: &Pool) {
        let tasks = self.tasks();
        let chunks = self.max_chunks();
        let parts = tasks * chunks;
        let part_bytes = 4 * part_floats(self.source.padded_v());
        let split = tasks < 2 * pool.threads()
            && pool.threads() > 1
            && chunks > 1
            && parts.checked_mul(part_bytes).is_some_and(|b| b <= self.scratch_bytes);
        if split {
            pool.run(parts, &|i| {
                let (task, chunk) = (i / chunks, Some(i % chunks));
                stage::with(&self.source, |stage| {
                    isa.dispatch(Run { call: self, task, chunk, chunks, stage });
                });
            });
            // The merge is a small share of the work: a pass over the partial results.
            for task in 0..tasks {
                isa.dispatch(Merge { call: self, task, chunks });
            }
        } else {
            // Later queries see more keys: longest tasks first.
            pool.run(tasks, &|i| {
                let task = tasks - 1 - i;
                stage::with(&self.source, |stage| {
                    isa.dispatch(Run { call: self, task, chunk: None, chunks, stage });
                });
            });
        }
        self.pad();
    }

    fn group(&self) -> usize {
        self.q_heads / self.source.heads()
    }

    fn sequences(&self) -> usize {
        self.cu_q.len() - 1
    }

    fn q_len(&self, b: usize) -> usize {
        (self.cu_q[b + 1] - self.cu_q[b]) as usize
    }

    /// Tasks of sequence `b` for one KV head.
    fn row_blocks(&self, b: usize) -> usize {
        (self.q_len(b) * self.group()).div_ceil(ROWS)
    }

    fn tasks(&self) -> usize {
        let blocks: usize = (0..self.sequences()).map(|b| self.row_blocks(b)).sum();
        blocks * self.source.heads()
    }

    fn max_chunks(&self) -> usize {
        let chunks = (0..self.sequences()).map(|b| self.source.kv_len(b).div_ceil(CHUNK));
        chunks.max().unwrap_or(0)
    }

    /// The rows of a task.
    ///
    /// Walks the sequences: a call has at most some hundreds, and a task takes microseconds.
    fn part(&self, task: usize) -> Part {
        let heads = self.source.heads();
        let (mut block, kv_head) = (task / heads, task % heads);
        let mut b = 0;
        while block >= self.row_blocks(b) {
            block -= self.row_blocks(b);
            b += 1;
        }
        let rows = self.q_len(b) * self.group();
        let start = block * ROWS;
        Part { b, kv_head, start, rows: (rows - start).min(ROWS) }
    }

    /// Zeros for the tokens after the last sequence.
    fn pad(&self) {
        let used = self.cu_q[self.sequences()] as usize;
        for token in used..self.tokens {
            for head in 0..self.q_heads {
                // SAFETY: promised to `run`.
                unsafe { self.put_empty(token, head) };
            }
        }
    }

    /// The output of a query that sees nothing.
    ///
    /// # Safety
    /// The token and head exist; nobody else writes them.
    unsafe fn put_empty(&self, token: usize, head: usize) {
        let out = self.o.head(head);
        for d in 0..self.source.dim_v() {
            // SAFETY: the caller's promise.
            unsafe { out.set(token, d, 0.0) };
        }
        if let Some(lse) = &self.lse {
            // SAFETY: the caller's promise.
            unsafe { lse.set(token, head, f32::NEG_INFINITY) };
        }
    }
}

impl Out {
    /// The rows of one head.
    #[inline(always)]
    pub(crate) fn head(&self, head: usize) -> RowsMut {
        RowsMut { base: self.rows.base.wrapping_add(head * self.head_stride), ..self.rows }
    }
}

impl Lse {
    /// # Safety
    /// The token and head exist.
    #[inline(always)]
    unsafe fn get(&self, token: usize, head: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { self.at(token, head).read_unaligned() }
    }

    /// # Safety
    /// The token and head exist; nobody else writes them.
    #[inline(always)]
    unsafe fn set(&self, token: usize, head: usize, x: f32) {
        // SAFETY: the caller's promise.
        unsafe { self.at(token, head).write_unaligned(x) };
    }

    #[inline(always)]
    fn at(&self, token: usize, head: usize) -> *mut f32 {
        self.base.wrapping_add(token * self.token_stride + head * self.head_stride).cast()
    }
}

/// A task: all chunks, or one of them.
struct Run<'a> {
    call: &'a Attention<'a>,
    task: usize,
    chunk: Option<usize>,
    chunks: usize,
    stage: Stage,
}

impl Op for Run<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let part = self.call.part(self.task);
        // SAFETY: promised to `Attention::run`; tasks write disjoint rows or partial results.
        unsafe {
            match self.chunk {
                None => kernel::attend(s, self.call, &part, self.stage),
                Some(chunk) => {
                    let floats = part_floats(self.call.source.padded_v());
                    let at = (self.task * self.chunks + chunk) * floats;
                    let to = self.call.scratch.cast::<f32>().add(at);
                    kernel::attend_chunk(s, self.call, &part, self.stage, (chunk, to));
                }
            }
        }
    }
}

/// Merges a task's chunks, in order.
struct Merge<'a> {
    call: &'a Attention<'a>,
    task: usize,
    chunks: usize,
}

impl Op for Merge<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let part = self.call.part(self.task);
        let floats = part_floats(self.call.source.padded_v());
        // SAFETY: promised to `Attention::run`; every chunk's partial result has been written.
        unsafe {
            let at = self.call.scratch.cast::<f32>().add(self.task * self.chunks * floats);
            kernel::merge_chunks(s, self.call, &part, at, floats, self.chunks);
        }
    }
}
