//! Some rows against the keys of one chunk: scores, weights, weighted values.

use super::kernel::{Part, Work, clip};
use super::stage::Ready;
use super::sums::Sums;
use super::{Attention, CHUNK, Source};
use crate::elem::{Elem, Rows};
use crate::isa::Op;
use crate::simd::{LANES, Simd, math};
use std::marker::PhantomData;
use std::ops::Range;

/// `R` rows over one chunk.
pub(super) struct Tile<'a> {
    pub(super) call: &'a Attention<'a>,
    pub(super) part: &'a Part,
    pub(super) row: usize,
    pub(super) chunk: usize,
    pub(super) to: Sums,
    pub(super) ready: Ready<'a>,
}

/// What a step of a tile works on; only made in [`Tile::run`].
struct Step<'a, const R: usize> {
    tile: &'a Tile<'a>,
    /// See [`Work`].
    q: *const f32,
    /// See [`Work`].
    scores: *mut f32,
    /// Keys that some row sees.
    seen: &'a Range<usize>,
    /// Keys that each row sees.
    visible: &'a [Range<usize>; R],
}

/// Scores, from keys of a type.
struct Score<'a, E, const R: usize>(&'a Step<'a, R>, PhantomData<E>);

impl<E: CacheElem, const R: usize> Op for Score<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised to `Tile::run`.
        unsafe { self.0.score::<S, E>(s) }
    }
}

/// Weighted sums, of values of a type.
struct Gather<'a, E, const R: usize>(&'a Step<'a, R>, PhantomData<E>);

impl<E: CacheElem, const R: usize> Op for Gather<'_, E, R> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised to `Tile::run`.
        unsafe { self.0.tile.gather::<S, E, R>(s, self.0.scores, self.0.visible) }
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

impl<const R: usize> Step<'_, R> {
    /// Scores of the keys in `seen`; those a row does not see become -inf. Whole vectors are written.
    #[inline(always)]
    unsafe fn score<S: Simd, E: CacheElem>(&self, s: S) {
        let (mut group, end) = (self.seen.start / LANES, self.seen.end.div_ceil(LANES));
        let whole = self.tile.ready.keys.has_whole_vectors();
        // SAFETY: the caller's promise.
        unsafe {
            while group < end {
                if !whole {
                    self.score_groups::<S, Scattered<E>, 1>(s, group);
                    group += 1;
                } else if group + 4 <= end && (R <= 1 || R * 4 <= S::TILE_VECTORS) {
                    self.score_groups::<S, Whole<E>, 4>(s, group);
                    group += 4;
                } else {
                    self.score_groups::<S, Whole<E>, 1>(s, group);
                    group += 1;
                }
            }
        }
    }

    /// Scores of `G` times sixteen keys.
    #[inline(always)]
    unsafe fn score_groups<S: Simd, K: Keys, const G: usize>(&self, s: S, group: usize) {
        let (tile, q) = (self.tile, self.q);
        let (dim, stride) = (tile.ready.keys.dim, tile.ready.keys.dim_stride);
        // SAFETY: the caller's promise.
        unsafe {
            let keys: [K; G] = std::array::from_fn(|g| K::find(tile, (group + g) * LANES));
            let mut acc = [[s.splat(0.0); G]; R];
            for d in 0..dim {
                let mut k = [s.splat(0.0); G];
                for (k, keys) in k.iter_mut().zip(&keys) {
                    *k = keys.load(s, d * stride);
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
                    let z = mask(s, tile.shape_score(s, acc), first, &self.visible[r]);
                    s.store(self.scores.add(r * CHUNK + first - tile.chunk * CHUNK), z);
                }
            }
        }
    }
}

impl Tile<'_> {
    /// Computes the rows' results.
    ///
    /// # Safety
    /// As [`Attention::run`]; no other task has these rows; `ready` is of the keys that they see.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd, const R: usize>(&self, s: S, work: &mut Work) {
        let seen = clip(&self.part.seen(self.call, self.row..self.row + R), self.chunk);
        let visible: [Range<usize>; R] =
            std::array::from_fn(|r| clip(&self.part.visible(self.call, self.row + r), self.chunk));
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
            let step = Step { tile: self, q, scores, seen: &seen, visible: &visible };
            match self.ready.key_elem {
                Elem::F32 => s.call(Score::<CacheF32, R>(&step, PhantomData)),
                Elem::F16 => s.call(Score::<CacheF16, R>(&step, PhantomData)),
                Elem::Bf16 => s.call(Score::<CacheBf16, R>(&step, PhantomData)),
            }
            for (r, visible) in visible.iter().enumerate() {
                self.weigh(s, scores.add(r * CHUNK), &seen, visible, self.row + r);
            }
            match self.ready.value_elem {
                Elem::F32 => s.call(Gather::<CacheF32, R>(&step, PhantomData)),
                Elem::F16 => s.call(Gather::<CacheF16, R>(&step, PhantomData)),
                Elem::Bf16 => s.call(Gather::<CacheBf16, R>(&step, PhantomData)),
            }
        }
    }

    /// Queries of the rows, widened, rows side by side.
    #[inline(always)]
    unsafe fn load_queries<S: Simd, const R: usize>(&self, s: S, q: *mut f32) {
        let dim = self.call.source.dim_k();
        for r in 0..R {
            let (token, head) = self.part.place(self.call, self.row + r);
            let rows = self.call.q.head(head).row(token);
            // SAFETY: the caller's promise.
            unsafe {
                let Source::Latent(paged, rotated) = &self.call.source else {
                    spread::<S, R>(s, &rows, dim, q.add(r));
                    continue;
                };
                let latent = paged.cache.k.shape.dim;
                spread::<S, R>(s, &rows, latent, q.add(r));
                let rows = rotated.head(head).row(token);
                spread::<S, R>(s, &rows, dim - latent, q.add(latent * R + r));
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
        let from = &self.ready.values;
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
                let end = from.run_end(j).min(range.end);
                let mut p = from.token(j).wrapping_add(d * from.dim_stride);
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
                    p = p.wrapping_add(from.token_stride);
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

/// A row of `dim` numbers to `to`, [`Tile`]'s rows `R` apart.
///
/// # Safety
/// The row has them, and `to` has room.
#[inline(always)]
unsafe fn spread<S: Simd, const R: usize>(s: S, row: &Rows, dim: usize, to: *mut f32) {
    for d in (0..dim).step_by(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let v = s.to_array(row.load_upto(s, 0, d, dim));
            for (i, &x) in v.iter().enumerate().take(dim - d) {
                to.add((d + i) * R).write(x);
            }
        }
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

    /// Their dimension that is `at` bytes after dimension 0.
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
        Self(unsafe { tile.ready.keys.token(first) }, PhantomData)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, at: usize) -> S::F {
        // SAFETY: the caller's promise; the block has sixteen keys from here on.
        unsafe { E::load(s, self.0.add(at), 0) }
    }
}

/// Keys of several blocks smaller than a vector.
struct Scattered<E>([*const u8; LANES], PhantomData<E>);

impl<E: CacheElem> Keys for Scattered<E> {
    #[inline(always)]
    unsafe fn find(tile: &Tile<'_>, first: usize) -> Self {
        // Blocks after the last key may not exist: repeat it, its score is masked.
        let last = tile.call.source.kv_len(tile.part.b).max(first + 1) - 1;
        // SAFETY: the caller's promise.
        let key = |i: usize| unsafe { tile.ready.keys.token((first + i).min(last)) };
        Self(std::array::from_fn(key), PhantomData)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S, at: usize) -> S::F {
        // SAFETY: the caller's promise.
        s.from_array(self.0.map(|p| unsafe { E::ELEM.read(p.add(at)) }))
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
