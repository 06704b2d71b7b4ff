//! One task of attention: up to [`ROWS`] rows against the keys they see, chunk by chunk.

use super::stage::{Prepare, Stage};
use super::sums::{Sums, exp1};
use super::tile::Tile;
use super::{Attention, CHUNK, MAX_DIM, ROWS};
use crate::isa::Op;
use crate::simd::{LANES, Simd, has};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Which rows a task has: `start .. start + rows` of a sequence's rows at a KV head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) b: usize,
    pub(super) kv_head: usize,
    pub(super) start: usize,
    pub(super) rows: usize,
}

/// Working memory of a task, on its thread's stack.
pub(super) struct Work {
    /// Queries of one row tile: dimension `d` of row `r` at `d * rows + r`.
    pub(super) q: [MaybeUninit<f32>; 6 * MAX_DIM],
    /// Scores, then weights: row `r`, key `j` of the chunk at `r * CHUNK + j`.
    pub(super) scores: [MaybeUninit<f32>; 6 * CHUNK],
    total: [MaybeUninit<f32>; ROWS * (2 + MAX_DIM)],
    chunk: [MaybeUninit<f32>; ROWS * (2 + MAX_DIM)],
}

impl Work {
    #[inline(always)]
    fn new() -> Self {
        Self {
            q: [MaybeUninit::uninit(); 6 * MAX_DIM],
            scores: [MaybeUninit::uninit(); 6 * CHUNK],
            total: [MaybeUninit::uninit(); ROWS * (2 + MAX_DIM)],
            chunk: [MaybeUninit::uninit(); ROWS * (2 + MAX_DIM)],
        }
    }
}

/// All chunks of a task, and its outputs.
///
/// # Safety
/// As [`Attention::run`]; no other task has these rows.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(s: S, call: &Attention<'_>, part: &Part, stage: Stage) {
    let mut work = Work::new();
    let dim = call.source.padded_v();
    let total = Sums { base: work.total.as_mut_ptr().cast(), dim };
    let seen = part.seen(call, 0..part.rows);
    // SAFETY: rows are below `ROWS`, dims at most `MAX_DIM`.
    unsafe {
        for row in 0..part.rows {
            total.clear(s, row);
        }
        let chunk = Sums { base: work.chunk.as_mut_ptr().cast(), dim };
        for c in seen.start / CHUNK..seen.end.div_ceil(CHUNK) {
            s.call(Chunk { call, part, stage, chunk: c, work: &mut work, to: chunk });
            for row in 0..part.rows {
                total.merge(s, row, &chunk);
            }
        }
        part.finish(s, call, total);
    }
}

/// One chunk of a task, its result to `to`.
///
/// # Safety
/// As [`attend`]; `to` has room for a partial result.
#[inline(always)]
pub(super) unsafe fn attend_chunk<S: Simd>(
    s: S,
    call: &Attention<'_>,
    part: &Part,
    stage: Stage,
    (chunk, to): (usize, *mut f32),
) {
    let mut work = Work::new();
    let to = Sums { base: to, dim: call.source.padded_v() };
    s.call(Chunk { call, part, stage, chunk, work: &mut work, to });
}

/// Merges partial results `floats` apart, in order, and writes the outputs.
///
/// # Safety
/// As [`attend`]; `from` holds `chunks` partial results.
#[inline(always)]
pub(super) unsafe fn merge_chunks<S: Simd>(
    s: S,
    call: &Attention<'_>,
    part: &Part,
    from: *mut f32,
    floats: usize,
    chunks: usize,
) {
    let mut work = Work::new();
    let dim = call.source.padded_v();
    let total = Sums { base: work.total.as_mut_ptr().cast(), dim };
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..part.rows {
            total.clear(s, row);
            for c in 0..chunks {
                total.merge(s, row, &Sums { base: from.add(c * floats), dim });
            }
        }
        part.finish(s, call, total);
    }
}

/// Results of all rows over one chunk, a function of its own; only made by the above.
struct Chunk<'a> {
    call: &'a Attention<'a>,
    part: &'a Part,
    stage: Stage,
    chunk: usize,
    work: &'a mut Work,
    to: Sums,
}

impl Op for Chunk<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { call, part, stage, chunk, work, to } = self;
        let seen = clip(&part.seen(call, 0..part.rows), chunk);
        if seen.is_empty() {
            // SAFETY: rows are below `ROWS`.
            (0..part.rows).for_each(|row| unsafe { to.clear(s, row) });
            return;
        }
        let ready =
            s.call(Prepare { source: &call.source, stage, b: part.b, head: part.kv_head, seen });
        let mut row = 0;
        while row < part.rows {
            let left = part.rows - row;
            let width = S::ROW_TILES.iter().copied().find(|&w| w <= left).unwrap_or(1);
            let tile = Tile { call, part, row, chunk, to, ready };
            macro_rules! run {
                ($width:literal) => {
                    // What an instruction set has no such tiles for is not compiled for it.
                    if const { has(S::ROW_TILES, $width) } {
                        // SAFETY: promised to `attend`.
                        unsafe { tile.run::<S, $width>(s, work) };
                    }
                };
            }
            match width {
                6 => run!(6),
                4 => run!(4),
                3 => run!(3),
                2 => run!(2),
                _ => run!(1),
            }
            row += width;
        }
    }
}

/// What of some keys is in a chunk.
#[inline(always)]
pub(super) fn clip(keys: &Range<usize>, chunk: usize) -> Range<usize> {
    let (first, last) = (chunk * CHUNK, (chunk + 1) * CHUNK);
    let (a, b) = (keys.start.clamp(first, last), keys.end.clamp(first, last));
    if a < b { a..b } else { first..first }
}

impl Part {
    /// The token (of the whole batch) and head of a row.
    #[inline(always)]
    pub(super) fn place(&self, call: &Attention<'_>, row: usize) -> (usize, usize) {
        let (row, group) = (self.start + row, call.group());
        (call.cu_q[self.b] as usize + row / group, self.kv_head * group + row % group)
    }

    /// The keys a row sees.
    #[inline(always)]
    pub(super) fn visible(&self, call: &Attention<'_>, row: usize) -> Range<usize> {
        let kv_len = call.source.kv_len(self.b);
        if !call.rules.causal {
            return 0..kv_len;
        }
        // Position + 1; a sequence may claim fewer cached tokens than it has queries.
        let end =
            (kv_len + (self.start + row) / call.group() + 1).saturating_sub(call.q_len(self.b));
        let start = call.rules.window.map_or(0, |w| end.saturating_sub(w.saturating_add(1)));
        start..end
    }

    /// The keys that some of the rows see.
    #[inline(always)]
    pub(super) fn seen(&self, call: &Attention<'_>, rows: Range<usize>) -> Range<usize> {
        let (mut start, mut end) = (usize::MAX, 0);
        for row in rows {
            let v = self.visible(call, row);
            if !v.is_empty() {
                (start, end) = (start.min(v.start), end.max(v.end));
            }
        }
        start.min(end)..end
    }

    /// Divides by the sums and writes the outputs.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, call: &Attention<'_>, total: Sums) {
        for row in 0..self.rows {
            let (token, head) = self.place(call, row);
            // SAFETY: the caller's promise.
            unsafe {
                let (mut max, mut sum) = (total.max(row).read(), total.sum(row).read());
                if max == f32::NEG_INFINITY {
                    call.put_empty(token, head);
                    continue;
                }
                let mut scale = 1.0;
                if let Some(sinks) = call.sinks {
                    let sink = sinks.add(head).read_unaligned();
                    let top = if sink > max { sink } else { max };
                    scale = exp1(s, max - top);
                    sum = sum * scale + exp1(s, sink - top);
                    max = top;
                }
                let out = call.o.head(head);
                let scale = s.splat(scale / sum);
                let dim = call.source.dim_v();
                for d in (0..dim).step_by(LANES) {
                    let v = s.mul(s.load(total.values(row).add(d)), scale);
                    out.store_upto(s, token, d, dim, v);
                }
                if let Some(lse) = &call.lse {
                    lse.set(token, head, max + sum.ln());
                }
            }
        }
    }
}
