//! One task of attention: up to [`ROWS`] rows against the keys they see, chunk by chunk.

use super::{Attention, CHUNK, MAX_DIM, ROWS};
use crate::elem::Elem;
use crate::isa::Op;
use crate::simd::{LANES, Simd, has, math};
use std::marker::PhantomData;
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

/// Results of some rows: the largest score, the sum of exponentials, the weighted values.
///
/// Laid out as `ROWS` maxima, `ROWS` sums, then rows of `dim` floats.
#[derive(Clone, Copy)]
struct Sums {
    base: *mut f32,
    dim: usize,
}

impl Sums {
    /// # Safety (all methods)
    /// `row < ROWS`.
    #[inline(always)]
    unsafe fn max(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(row) }
    }
    #[inline(always)]
    unsafe fn sum(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(ROWS + row) }
    }
    #[inline(always)]
    unsafe fn values(&self, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.base.add(2 * ROWS + row * self.dim) }
    }

    /// Nothing seen yet.
    #[inline(always)]
    unsafe fn clear<S: Simd>(&self, s: S, row: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            self.max(row).write(f32::NEG_INFINITY);
            self.sum(row).write(0.0);
            for d in (0..self.dim).step_by(LANES) {
                s.store(self.values(row).add(d), s.splat(0.0));
            }
        }
    }

    /// Takes another result of the same row in. One that has seen nothing changes nothing.
    #[inline(always)]
    unsafe fn merge<S: Simd>(&self, s: S, row: usize, other: &Self) {
        // SAFETY: the caller's promise.
        unsafe {
            let (old, new) = (self.max(row).read(), other.max(row).read());
            if new == f32::NEG_INFINITY {
                return;
            }
            let max = if new > old { new } else { old };
            let (keep, add) = (exp1(s, old - max), exp1(s, new - max));
            self.max(row).write(max);
            self.sum(row).write(self.sum(row).read() * keep + other.sum(row).read() * add);
            let (to, from) = (self.values(row), other.values(row));
            for d in (0..self.dim).step_by(LANES) {
                let scaled = s.mul(s.load(to.add(d)), s.splat(keep));
                s.store(to.add(d), s.fma(s.load(from.add(d)), s.splat(add), scaled));
            }
        }
    }
}

/// `e^x` of one number.
#[inline(always)]
fn exp1<S: Simd>(s: S, x: f32) -> f32 {
    s.to_array(math::exp(s, s.splat(x)))[0]
}

/// Working memory of a task, on its thread's stack.
struct Work {
    /// Queries of one row tile: dimension `d` of row `r` at `d * rows + r`.
    q: [MaybeUninit<f32>; 6 * MAX_DIM],
    /// Scores, then weights: row `r`, key `j` of the chunk at `r * CHUNK + j`.
    scores: [MaybeUninit<f32>; 6 * CHUNK],
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
pub(super) unsafe fn attend<S: Simd>(s: S, call: &Attention<'_>, part: &Part) {
    let mut work = Work::new();
    let dim = call.cache.shape.padded_v();
    let total = Sums { base: work.total.as_mut_ptr().cast(), dim };
    let seen = part.seen(call, 0..part.rows);
    // SAFETY: rows are below `ROWS`, dims at most `MAX_DIM`.
    unsafe {
        for row in 0..part.rows {
            total.clear(s, row);
        }
        let chunk = Sums { base: work.chunk.as_mut_ptr().cast(), dim };
        for c in seen.start / CHUNK..seen.end.div_ceil(CHUNK) {
            part.chunk(s, call, c, &mut work, chunk);
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
    chunk: usize,
    to: *mut f32,
) {
    let mut work = Work::new();
    let dim = call.cache.shape.padded_v();
    // SAFETY: the caller's promise.
    unsafe { part.chunk(s, call, chunk, &mut work, Sums { base: to, dim }) };
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
    let dim = call.cache.shape.padded_v();
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

impl Part {
    /// The token (of the whole batch) and head of a row.
    #[inline(always)]
    fn place(&self, call: &Attention<'_>, row: usize) -> (usize, usize) {
        let (row, group) = (self.start + row, call.group());
        (call.cu_q[self.b] as usize + row / group, self.kv_head * group + row % group)
    }

    /// The keys a row sees.
    #[inline(always)]
    fn visible(&self, call: &Attention<'_>, row: usize) -> Range<usize> {
        let kv_len = call.kv_len[self.b] as usize;
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
    fn seen(&self, call: &Attention<'_>, rows: Range<usize>) -> Range<usize> {
        let (mut start, mut end) = (usize::MAX, 0);
        for row in rows {
            let v = self.visible(call, row);
            if !v.is_empty() {
                (start, end) = (start.min(v.start), end.max(v.end));
            }
        }
        start.min(end)..end
    }

    /// Results of all rows over one chunk.
    #[inline(always)]
    unsafe fn chunk<S: Simd>(
        &self,
        s: S,
        call: &Attention<'_>,
        chunk: usize,
        work: &mut Work,
        to: Sums,
    ) {
        let mut row = 0;
        while row < self.rows {
            let left = self.rows - row;
            let width = S::ROW_TILES.iter().copied().find(|&w| w <= left).unwrap_or(1);
            let tile = Tile { call, part: self, row, chunk, to };
            macro_rules! run {
                ($width:literal) => {
                    // What an instruction set has no such tiles for is not compiled for it.
                    if const { has(S::ROW_TILES, $width) } {
                        // SAFETY: the caller's promise.
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
                let dim = call.cache.shape.dim_v;
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

/// `R` rows over one chunk.
struct Tile<'a> {
    call: &'a Attention<'a>,
    part: &'a Part,
    row: usize,
    chunk: usize,
    to: Sums,
}

/// A tile with its cache type and rows; only made in [`Tile::run`].
struct RunTile<'a, E, const R: usize>(&'a Tile<'a>, &'a mut Work, PhantomData<E>);

impl<E: CacheElem, const R: usize> Op for RunTile<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised to `Tile::run`.
        unsafe { self.0.run_elem::<S, E, R>(s, self.1) }
    }
}

/// Keys of one row, out of the common way; only made in [`Tile::gather`].
struct GatherOne<'a, E>(&'a Tile<'a>, *const f32, usize, Range<usize>, PhantomData<E>);

impl<E: CacheElem> Op for GatherOne<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised to `Tile::gather`.
        unsafe { self.0.gather_range::<S, E, 1>(s, self.1, self.2, self.3) }
    }
}

impl Tile<'_> {
    /// Computes the rows' results.
    #[inline(always)]
    unsafe fn run<S: Simd, const R: usize>(&self, s: S, work: &mut Work) {
        match self.call.cache.shape.elem {
            Elem::F32 => s.call(RunTile::<CacheF32, R>(self, work, PhantomData)),
            Elem::F16 => s.call(RunTile::<CacheF16, R>(self, work, PhantomData)),
            Elem::Bf16 => s.call(RunTile::<CacheBf16, R>(self, work, PhantomData)),
        }
    }

    #[inline(always)]
    unsafe fn run_elem<S: Simd, E: CacheElem, const R: usize>(&self, s: S, work: &mut Work) {
        let (first, last) = (self.chunk * CHUNK, (self.chunk + 1) * CHUNK);
        let clip = |v: Range<usize>| {
            let (a, b) = (v.start.clamp(first, last), v.end.clamp(first, last));
            if a < b { a..b } else { first..first }
        };
        let seen = clip(self.part.seen(self.call, self.row..self.row + R));
        let visible: [Range<usize>; R] =
            std::array::from_fn(|r| clip(self.part.visible(self.call, self.row + r)));
        // SAFETY: the caller's promise.
        unsafe {
            for r in 0..R {
                self.to.clear(s, self.row + r);
            }
            if seen.is_empty() {
                return;
            }
            let (q, scores) = (work.q.as_mut_ptr().cast(), work.scores.as_mut_ptr().cast());
            self.load_queries::<S, R>(s, q);
            self.score::<S, E, R>(s, q, scores, &seen, &visible);
            for (r, visible) in visible.iter().enumerate() {
                self.weigh(s, scores.add(r * CHUNK), &seen, visible, self.row + r);
            }
            self.gather::<S, E, R>(s, scores, &visible);
        }
    }

    /// Queries of the rows, widened, rows side by side.
    #[inline(always)]
    unsafe fn load_queries<S: Simd, const R: usize>(&self, s: S, q: *mut f32) {
        let dim = self.call.cache.shape.dim_k;
        for r in 0..R {
            let (token, head) = self.part.place(self.call, self.row + r);
            let rows = self.call.q.head(head);
            for d in (0..dim).step_by(LANES) {
                // SAFETY: the caller's promise.
                unsafe {
                    let v = s.to_array(rows.load_upto(s, token, d, dim));
                    for (i, &x) in v.iter().enumerate().take(dim - d) {
                        q.add((d + i) * R + r).write(x);
                    }
                }
            }
        }
    }

    /// Scores of the keys in `seen`; those a row does not see become -inf. Whole vectors are written.
    #[inline(always)]
    unsafe fn score<S: Simd, E: CacheElem, const R: usize>(
        &self,
        s: S,
        q: *const f32,
        scores: *mut f32,
        seen: &Range<usize>,
        visible: &[Range<usize>; R],
    ) {
        let (mut group, end) = (seen.start / LANES, seen.end.div_ceil(LANES));
        // SAFETY: the caller's promise.
        unsafe {
            while group < end {
                if self.call.cache.shape.block < LANES {
                    self.score_groups::<S, Scattered<E>, R, 1>(s, q, scores, group, visible);
                    group += 1;
                } else if group + 4 <= end && (R <= 1 || R * 4 <= S::TILE_VECTORS) {
                    self.score_groups::<S, Whole<E>, R, 4>(s, q, scores, group, visible);
                    group += 4;
                } else {
                    self.score_groups::<S, Whole<E>, R, 1>(s, q, scores, group, visible);
                    group += 1;
                }
            }
        }
    }

    /// Scores of `G` times sixteen keys.
    #[inline(always)]
    unsafe fn score_groups<S: Simd, K: Keys, const R: usize, const G: usize>(
        &self,
        s: S,
        q: *const f32,
        scores: *mut f32,
        group: usize,
        visible: &[Range<usize>; R],
    ) {
        let shape = &self.call.cache.shape;
        // SAFETY: the caller's promise.
        unsafe {
            let keys: [K; G] = std::array::from_fn(|g| K::find(self, (group + g) * LANES));
            let mut acc = [[s.splat(0.0); G]; R];
            for d in 0..shape.dim_k {
                let mut k = [s.splat(0.0); G];
                for (k, keys) in k.iter_mut().zip(&keys) {
                    *k = keys.load(s, d * shape.block);
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = s.splat(q.add(d * R + r).read());
                    for (acc, k) in acc.iter_mut().zip(k) {
                        *acc = s.fma(k, x, *acc);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                for (g, acc) in acc.into_iter().enumerate() {
                    let first = (group + g) * LANES;
                    let z = mask(s, self.shape_score(s, acc), first, &visible[r]);
                    s.store(scores.add(r * CHUNK + first - self.chunk * CHUNK), z);
                }
            }
        }
    }

    #[inline(always)]
    fn shape_score<S: Simd>(&self, s: S, dot: S::F) -> S::F {
        let rules = &self.call.rules;
        let z = s.mul(dot, s.splat(rules.scale));
        if rules.softcap > 0.0 {
            let cap = s.splat(rules.softcap);
            return s.mul(cap, math::tanh(s, s.div(z, cap)));
        }
        z
    }

    /// Dimension 0 of key `j`.
    #[inline(always)]
    unsafe fn key(&self, j: usize) -> *const u8 {
        let (call, shape) = (self.call, &self.call.cache.shape);
        // SAFETY: the caller gives a key below `kv_len`.
        unsafe {
            let keys = call.cache.keys(self.part.block(call, j / shape.block), self.part.kv_head);
            keys.add(j % shape.block * shape.elem.bytes())
        }
    }

    /// Scores to weights `e^(z - max)`, over the vectors that cover `seen`.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(
        &self,
        s: S,
        scores: *mut f32,
        seen: &Range<usize>,
        visible: &Range<usize>,
        row: usize,
    ) {
        if visible.is_empty() {
            return;
        }
        let base = self.chunk * CHUNK;
        let vectors = (seen.start - base) / LANES..(seen.end - base).div_ceil(LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let mut max = s.splat(f32::NEG_INFINITY);
            for v in vectors.clone() {
                max = s.max(s.load(scores.add(v * LANES)), max);
            }
            // A row of nothing but -inf or NaN still counts: its sum becomes 0 or NaN, and so its output NaN.
            let max = s.max_lane(max).max(f32::MIN);
            let mut sum = s.splat(0.0);
            for v in vectors {
                let p = scores.add(v * LANES);
                let e = math::exp(s, s.sub(s.load(p), s.splat(max)));
                sum = s.add(sum, e);
                s.store(p, e);
            }
            self.to.max(row).write(max);
            self.to.sum(row).write(s.sum(sum));
        }
    }

    /// Weighted sums of the values: keys that all rows see together, the others row by row, so that
    /// nothing a row does not see touches it.
    #[inline(always)]
    unsafe fn gather<S: Simd, E: CacheElem, const R: usize>(
        &self,
        s: S,
        weights: *const f32,
        visible: &[Range<usize>; R],
    ) {
        let start = visible.iter().fold(0, |m, v| m.max(v.start));
        let end = visible.iter().fold(usize::MAX, |m, v| m.min(v.end));
        let common = if start < end { start..end } else { 0..0 };
        // SAFETY: the caller's promise.
        unsafe {
            let one = |r: usize, range: Range<usize>| {
                if !range.is_empty() {
                    s.call(GatherOne::<E>(self, weights, r, range, PhantomData));
                }
            };
            for (r, v) in visible.iter().enumerate() {
                one(r, v.start..if common.is_empty() { v.end } else { common.start });
            }
            if common.is_empty() {
                return;
            }
            self.gather_range::<S, E, R>(s, weights, 0, common.clone());
            for (r, v) in visible.iter().enumerate() {
                one(r, common.end..v.end);
            }
        }
    }

    /// Adds keys `range` to rows `r .. r + R` of this tile.
    #[inline(always)]
    unsafe fn gather_range<S: Simd, E: CacheElem, const R: usize>(
        &self,
        s: S,
        weights: *const f32,
        r: usize,
        range: Range<usize>,
    ) {
        if range.is_empty() {
            return;
        }
        let mut d = 0;
        while d < self.to.dim {
            // SAFETY: the caller's promise.
            unsafe {
                if d + 4 * LANES <= self.to.dim && (R <= 1 || R * 4 <= S::TILE_VECTORS) {
                    self.gather_dims::<S, E, R, 4>(s, weights, r, range.clone(), d);
                    d += 4 * LANES;
                } else {
                    self.gather_dims::<S, E, R, 1>(s, weights, r, range.clone(), d);
                    d += LANES;
                }
            }
        }
    }

    /// As [`Self::gather_range`], dimensions `d .. d + 16 D`.
    #[inline(always)]
    unsafe fn gather_dims<S: Simd, E: CacheElem, const R: usize, const D: usize>(
        &self,
        s: S,
        weights: *const f32,
        r: usize,
        range: Range<usize>,
        d: usize,
    ) {
        let (call, shape) = (self.call, &self.call.cache.shape);
        let row_bytes = self.to.dim * shape.elem.bytes();
        // SAFETY: the caller's promise.
        unsafe {
            let out = |i: usize, v: usize| self.to.values(self.row + r + i).add(d + v * LANES);
            let weights = weights.add(r * CHUNK);
            let mut acc = [[s.splat(0.0); D]; R];
            for (i, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(out(i, v));
                }
            }
            let mut j = range.start;
            while j < range.end {
                let block = self.part.block(call, j / shape.block);
                let values = call.cache.values(block, self.part.kv_head);
                let end = (j / shape.block * shape.block + shape.block).min(range.end);
                let mut p = values.add(j % shape.block * row_bytes + d * shape.elem.bytes());
                while j < end {
                    let mut v = [s.splat(0.0); D];
                    for (i, v) in v.iter_mut().enumerate() {
                        *v = E::load(s, p, i * LANES);
                    }
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let w = s.splat(weights.add(i * CHUNK + j - self.chunk * CHUNK).read());
                        for (acc, v) in acc.iter_mut().zip(v) {
                            *acc = s.fma(v, w, *acc);
                        }
                    }
                    p = p.add(row_bytes);
                    j += 1;
                }
            }
            for (i, acc) in acc.into_iter().enumerate() {
                for (v, acc) in acc.into_iter().enumerate() {
                    s.store(out(i, v), acc);
                }
            }
        }
    }
}

impl Part {
    /// The cache block that holds the sequence's block `i`.
    #[inline(always)]
    fn block(&self, call: &Attention<'_>, i: usize) -> usize {
        call.block_table[self.b * call.table_stride + i] as usize
    }
}

/// -inf for the lanes `first + i` outside `visible`.
#[inline(always)]
fn mask<S: Simd>(s: S, z: S::F, first: usize, visible: &Range<usize>) -> S::F {
    if visible.start <= first && first + LANES <= visible.end {
        return z;
    }
    const LANE: [f32; LANES] =
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
    let lane = s.from_array(LANE);
    let from = visible.start.saturating_sub(first).min(LANES) as f32;
    let to = visible.end.saturating_sub(first).min(LANES) as f32;
    let none = s.splat(f32::NEG_INFINITY);
    s.select_lt(lane, s.splat(from), none, s.select_lt(lane, s.splat(to), z, none))
}

/// Sixteen neighbouring keys.
trait Keys: Sized {
    /// The keys from `first` on, which is below `kv_len`.
    ///
    /// # Safety
    /// As [`Attention::run`].
    unsafe fn find(tile: &Tile<'_>, first: usize) -> Self;

    /// Their dimension that is `at` elements after dimension 0.
    ///
    /// # Safety
    /// As [`Attention::run`].
    unsafe fn load<S: Simd>(&self, s: S, at: usize) -> S::F;
}

/// Keys of one block.
struct Whole<E>(*const u8, PhantomData<E>);

impl<E: CacheElem> Keys for Whole<E> {
    #[inline(always)]
    unsafe fn find(tile: &Tile<'_>, first: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { tile.key(first) }, PhantomData)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, at: usize) -> S::F {
        // SAFETY: the caller's promise; the block has sixteen keys from here on.
        unsafe { E::load(s, self.0, at) }
    }
}

/// Keys of several blocks smaller than a vector.
struct Scattered<E>([*const u8; LANES], PhantomData<E>);

impl<E: CacheElem> Keys for Scattered<E> {
    #[inline(always)]
    unsafe fn find(tile: &Tile<'_>, first: usize) -> Self {
        // Blocks after the last key may not exist: repeat it, its score is masked.
        let last = (tile.call.kv_len[tile.part.b] as usize).max(first + 1) - 1;
        // SAFETY: the caller's promise.
        let key = |i: usize| unsafe { tile.key((first + i).min(last)) };
        Self(std::array::from_fn(key), PhantomData)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, at: usize) -> S::F {
        // SAFETY: the caller's promise.
        s.from_array(self.0.map(|p| unsafe { E::ELEM.read(p.add(at * E::ELEM.bytes())) }))
    }
}

/// An element type of the cache.
trait CacheElem {
    const ELEM: Elem;

    /// Sixteen elements from element `at` of `p` on.
    ///
    /// # Safety
    /// They are readable.
    unsafe fn load<S: Simd>(s: S, p: *const u8, at: usize) -> S::F;
}

struct CacheF32;
struct CacheF16;
struct CacheBf16;

impl CacheElem for CacheF32 {
    const ELEM: Elem = Elem::F32;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8, at: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(p.cast::<f32>().add(at)) }
    }
}

impl CacheElem for CacheF16 {
    const ELEM: Elem = Elem::F16;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8, at: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(p.cast::<u16>().add(at)) }
    }
}

impl CacheElem for CacheBf16 {
    const ELEM: Elem = Elem::Bf16;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u8, at: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p.cast::<u16>().add(at)) }
    }
}

const _: () = assert!(CHUNK.is_multiple_of(4 * LANES));
