//! The dense kernels: sixteen rows (more for few tokens) by up to a tile of tokens.
//!
//! The chain along `k` is cut every [`CHUNK`] columns: a fresh sum is added to the total, which keeps
//! the rounding error of long rows small. Weights with scales (8-bit floats) are scaled there, once a chunk.

use super::prep::tile_width;
use super::{Output, Path, Work};
use crate::elem::Elem;
use crate::isa::Op;
use crate::pack::dense::{Bf16, Columns, DenseLayout, E4m3, F16, F32, SCALE_COLUMNS, Store};
use crate::simd::{Simd, has};
use std::marker::PhantomData;
use std::ops::Range;

/// Columns summed before they are added to the total; even. None may have two scales.
const CHUNK: usize = 128;
const _: () = assert!(CHUNK == SCALE_COLUMNS);

/// # Safety
/// As [`Work::run`].
pub(crate) unsafe fn run(work: &Work<'_>, layout: &DenseLayout) {
    let isa = work.gemm.isa;
    match (work.gemm.path, layout.store) {
        (Path::Bf16Dot, _) => isa.dispatch_bf16(Panels(work, layout, PhantomData::<Bf16Dot>)),
        (_, Store::Float(Elem::F32)) => isa.dispatch(Panels(work, layout, PhantomData::<Fma<F32>>)),
        (_, Store::Float(Elem::F16)) => isa.dispatch(Panels(work, layout, PhantomData::<Fma<F16>>)),
        (_, Store::Float(Elem::Bf16)) => {
            isa.dispatch(Panels(work, layout, PhantomData::<Fma<Bf16>>));
        }
        (_, Store::E4m3 { .. }) => isa.dispatch(Panels(work, layout, PhantomData::<Fma<E4m3>>)),
    }
}

/// Multiplication of two columns of weights with two columns of a token.
trait Pair {
    /// Bytes of two columns of a panel.
    const W_BYTES: usize;
    /// Bytes of two columns of one token.
    const X_BYTES: usize;
    /// Whether the panel has scales.
    const SCALED: bool;
    type W<S: Simd>: Copy;
    /// # Safety
    /// `p` is readable for `W_BYTES`.
    unsafe fn weights<S: Simd>(s: S, p: *const u8) -> Self::W<S>;
    /// Adds both products. Column `i` of token `t` of a tile is at `x` as this path prepares it.
    /// # Safety
    /// `x` is two columns of a tile of `width` tokens, and `t < width`.
    unsafe fn dot<S: Simd>(
        s: S,
        acc: S::F,
        w: Self::W<S>,
        x: *const u8,
        t: usize,
        width: usize,
    ) -> S::F;
}

/// Widened to f32.
struct Fma<C>(C);

impl<C: Columns> Pair for Fma<C> {
    const W_BYTES: usize = C::PAIR_BYTES;
    const X_BYTES: usize = 8;
    const SCALED: bool = C::SCALED;
    type W<S: Simd> = (S::F, S::F);
    #[inline(always)]
    unsafe fn weights<S: Simd>(s: S, p: *const u8) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { C::pair(s, p) }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(
        s: S,
        acc: S::F,
        w: (S::F, S::F),
        x: *const u8,
        t: usize,
        width: usize,
    ) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            let x = x.cast::<f32>();
            let acc = s.fma(w.0, s.splat(x.add(t).read()), acc);
            s.fma(w.1, s.splat(x.add(width + t).read()), acc)
        }
    }
}

/// With the bf16 dot product instruction.
struct Bf16Dot;

impl Pair for Bf16Dot {
    const W_BYTES: usize = Bf16::PAIR_BYTES;
    const X_BYTES: usize = 4;
    const SCALED: bool = false;
    type W<S: Simd> = S::I;
    #[inline(always)]
    unsafe fn weights<S: Simd>(s: S, p: *const u8) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.iload(p) }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(
        s: S,
        acc: S::F,
        w: S::I,
        x: *const u8,
        t: usize,
        _width: usize,
    ) -> S::F {
        // SAFETY: the caller's promise.
        s.bf16_dot(acc, w, s.isplat(unsafe { x.cast::<i32>().add(t).read() }))
    }
}

/// A task's panels; only made where [`Work::run`] may be called.
struct Panels<'a, P>(&'a Work<'a>, &'a DenseLayout, PhantomData<P>);

impl<P: Pair> Op for Panels<'_, P> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(work, layout, _) = self;
        let mut panel = work.panels.start;
        while panel < work.panels.end {
            let left = work.panels.end - panel;
            // Few tokens give few independent chains: take more panels together.
            let few = work.tokens.len() < 4 && left >= S::DENSE_PANELS;
            let together = if few { S::DENSE_PANELS } else { 1 };
            // SAFETY: promised where this was made.
            unsafe { tokens::<S, P>(s, work, layout, panel, together) };
            panel += together;
        }
    }
}

/// All tokens of a task against `together` panels.
///
/// # Safety
/// As [`Work::run`].
#[inline(always)]
unsafe fn tokens<S: Simd, P: Pair>(
    s: S,
    work: &Work<'_>,
    layout: &DenseLayout,
    panel: usize,
    together: usize,
) {
    let gemm = work.gemm;
    let mut token = work.tokens.start;
    while token < work.tokens.end {
        let width = tile_width(S::DENSE_TILES, token, gemm.tokens);
        let at = Tile {
            // SAFETY: a panel of the matrix; the caller's promise.
            p: unsafe { gemm.w.base.add(panel * layout.panel_bytes) },
            // SAFETY: a prepared token; the caller's promise.
            x: unsafe { gemm.scratch.add(token * layout.padded_k() / 2 * P::X_BYTES) },
            token,
            panel,
            layout,
        };
        let out = &gemm.out;
        macro_rules! run {
            ($panels:literal, $width:literal) => {
                // What an instruction set has no such tiles for is not compiled for it.
                if const { has(S::DENSE_TILES, $width) && $panels <= S::DENSE_PANELS } {
                    s.call(Run::<P, $panels, $width>(&at, out, PhantomData));
                }
            };
        }
        match (together, width) {
            (4, 2) => run!(4, 2),
            (4, 1) => run!(4, 1),
            (_, 12) => run!(1, 12),
            (_, 8) => run!(1, 8),
            (_, 6) => run!(1, 6),
            (_, 4) => run!(1, 4),
            (_, 2) => run!(1, 2),
            _ => run!(1, 1),
        }
        token += width;
    }
}

/// A tile with its path and size; only made where [`Tile::run`] may be called.
struct Run<'a, P, const N: usize, const T: usize>(&'a Tile<'a>, &'a Output, PhantomData<P>);

impl<P: Pair, const N: usize, const T: usize> Op for Run<'_, P, N, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised where this was made.
        unsafe { self.0.run::<S, P, N, T>(s, self.1) }
    }
}

/// Some panels and one tile of tokens.
struct Tile<'a> {
    p: *const u8,
    x: *const u8,
    token: usize,
    panel: usize,
    layout: &'a DenseLayout,
}

impl Tile<'_> {
    /// # Safety
    /// `p` is `N` panels, `x` the prepared tile of `T` tokens; output as [`Output::put`].
    #[inline(always)]
    unsafe fn run<S: Simd, P: Pair, const N: usize, const T: usize>(&self, s: S, out: &Output) {
        let stride = self.layout.panel_bytes;
        let pairs = self.layout.padded_k() / 2;
        let mut total = [[s.splat(0.0); T]; N];
        // SAFETY: chunks are inside the panels and the tile; the caller's promise.
        unsafe {
            let mut scales = self.p;
            for start in (0..pairs).step_by(CHUNK / 2) {
                let end = (start + CHUNK / 2).min(pairs);
                let acc = self.chunk::<S, P, N, T>(s, start..end);
                for (n, (total, acc)) in total.iter_mut().zip(acc).enumerate() {
                    if P::SCALED {
                        let scale = s.load(scales.add(n * stride).cast());
                        for (total, acc) in total.iter_mut().zip(acc) {
                            *total = s.fma(acc, scale, *total);
                        }
                    } else {
                        for (total, acc) in total.iter_mut().zip(acc) {
                            *total = s.add(*total, acc);
                        }
                    }
                }
                scales = scales.add(self.layout.scale_step());
            }
            for (n, total) in total.iter().enumerate() {
                for (t, &v) in total.iter().enumerate() {
                    out.put(s, self.token + t, self.panel + n, self.layout.n, v);
                }
            }
        }
    }

    /// The sums of some pairs of columns.
    ///
    /// # Safety
    /// As [`Self::run`]; the pairs are the panels'.
    #[inline(always)]
    unsafe fn chunk<S: Simd, P: Pair, const N: usize, const T: usize>(
        &self,
        s: S,
        pairs: Range<usize>,
    ) -> [[S::F; T]; N] {
        let stride = self.layout.panel_bytes;
        let mut acc = [[s.splat(0.0); T]; N];
        // SAFETY: pairs are inside the panels and the tile; the caller's promise.
        unsafe {
            let p = self.p.add(self.layout.aux_bytes);
            let mut pair = pairs.start;
            while pair < pairs.end {
                let x = self.x.add(pair * T * P::X_BYTES);
                for (n, acc) in acc.iter_mut().enumerate() {
                    let w = P::weights(s, p.add(n * stride + pair * P::W_BYTES));
                    for (t, acc) in acc.iter_mut().enumerate() {
                        *acc = P::dot(s, *acc, w, x, t, T);
                    }
                }
                pair += 1;
            }
        }
        acc
    }
}
