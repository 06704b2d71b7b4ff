//! The dense kernels: sixteen rows (more for few tokens) by up to a tile of tokens.
//!
//! The chain along `k` is cut every [`CHUNK`] columns: a fresh sum is added to the total, which keeps
//! the rounding error of long rows small.

use super::prep::{BF16_TILES, tile_width};
use super::{Output, Work};
use crate::elem::Elem;
use crate::pack::dense::{Bf16, Columns, DenseLayout, F16, F32};
use crate::simd::Simd;

/// Columns summed before they are added to the total; even.
const CHUNK: usize = 128;

/// # Safety
/// As [`Work::run`].
#[inline(always)]
pub(crate) unsafe fn run<S: Simd>(s: S, work: &Work<'_>, layout: &DenseLayout) {
    // SAFETY: the caller's promise.
    unsafe {
        match layout.elem {
            Elem::F32 => panels::<S, Fma<F32>>(s, work, layout, S::DENSE_TILES),
            Elem::F16 => panels::<S, Fma<F16>>(s, work, layout, S::DENSE_TILES),
            Elem::Bf16 => panels::<S, Fma<Bf16>>(s, work, layout, S::DENSE_TILES),
        }
    }
}

/// The product with the bf16 dot product instruction.
///
/// # Safety
/// As [`Work::run`]; the processor has the instruction.
#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
)]
pub(crate) unsafe fn run_bf16(work: &Work<'_>) {
    if let super::Layout::Dense(layout) = &work.gemm.w.layout {
        // SAFETY: this function has the features that `Avx512` and `Dot` stand for.
        unsafe {
            let s = crate::simd::avx512::Avx512::assume();
            panels::<_, dot::Dot>(s, work, layout, BF16_TILES);
        }
    }
}

/// There is no such instruction here, and the path is never chosen.
///
/// # Safety
/// None needed.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn run_bf16(_work: &Work<'_>) {
    unreachable!("only chosen where the processor has the instruction: {BF16_TILES:?}");
}

/// Multiplication of two columns of weights with two columns of a token.
trait Pair<S: Simd> {
    /// Bytes of two columns of a panel.
    const W_BYTES: usize;
    /// Bytes of two columns of one token.
    const X_BYTES: usize;
    type W: Copy;
    /// # Safety
    /// `p` is readable for `W_BYTES`.
    unsafe fn weights(s: S, p: *const u8) -> Self::W;
    /// Adds both products. Column `i` of token `t` of a tile is at `x` as this path prepares it.
    /// # Safety
    /// `x` is two columns of a tile of `width` tokens, and `t < width`.
    unsafe fn dot(s: S, acc: S::F, w: Self::W, x: *const u8, t: usize, width: usize) -> S::F;
}

struct Fma<C>(C);

impl<S: Simd, C: Columns> Pair<S> for Fma<C> {
    const W_BYTES: usize = C::PAIR_BYTES;
    const X_BYTES: usize = 8;
    type W = (S::F, S::F);
    #[inline(always)]
    unsafe fn weights(s: S, p: *const u8) -> Self::W {
        // SAFETY: the caller's promise.
        unsafe { C::pair(s, p) }
    }
    #[inline(always)]
    unsafe fn dot(s: S, acc: S::F, w: Self::W, x: *const u8, t: usize, width: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            let x = x.cast::<f32>();
            let acc = s.fma(w.0, s.splat(x.add(t).read()), acc);
            s.fma(w.1, s.splat(x.add(width + t).read()), acc)
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod dot {
    use super::Pair;
    use crate::simd::avx512::Avx512;
    use std::arch::x86_64::*;

    /// Only used inside [`super::run_bf16`].
    pub(super) struct Dot;

    impl Pair<Avx512> for Dot {
        const W_BYTES: usize = 64;
        const X_BYTES: usize = 4;
        type W = __m512i;
        #[inline(always)]
        unsafe fn weights(_s: Avx512, p: *const u8) -> __m512i {
            // SAFETY: the caller's promise.
            unsafe { _mm512_loadu_si512(p.cast()) }
        }
        #[inline(always)]
        unsafe fn dot(
            _s: Avx512,
            acc: __m512,
            w: __m512i,
            x: *const u8,
            t: usize,
            _width: usize,
        ) -> __m512 {
            // SAFETY: the caller's promise; the two types are the same bits.
            unsafe {
                let x = _mm512_set1_epi32(x.cast::<i32>().add(t).read());
                let (w, x) = (
                    std::mem::transmute::<__m512i, __m512bh>(w),
                    std::mem::transmute::<__m512i, __m512bh>(x),
                );
                _mm512_dpbf16_ps(acc, w, x)
            }
        }
    }
}

/// # Safety
/// As [`Work::run`].
#[inline(always)]
unsafe fn panels<S: Simd, P: Pair<S>>(
    s: S,
    work: &Work<'_>,
    layout: &DenseLayout,
    tiles: &[usize],
) {
    let gemm = work.gemm;
    let mut panel = work.panels.start;
    while panel < work.panels.end {
        let left = work.panels.end - panel;
        // Few tokens give few independent chains: take more panels together.
        let few = work.tokens.len() < 4;
        let together = if few && left >= 4 { 4 } else { 1 };
        let mut token = work.tokens.start;
        while token < work.tokens.end {
            let width = tile_width(tiles, token, gemm.tokens);
            // SAFETY: panels of the matrix and prepared tokens; the caller's promise.
            unsafe {
                let at = Tile {
                    p: gemm.w.base.add(panel * layout.panel_bytes),
                    x: gemm.scratch.add(token * layout.padded_k() / 2 * P::X_BYTES),
                    token,
                    panel,
                    layout,
                };
                match (together, width) {
                    (4, 2) => at.run::<S, P, 4, 2>(s, &gemm.out),
                    (4, 1) => at.run::<S, P, 4, 1>(s, &gemm.out),
                    (_, 12) => at.run::<S, P, 1, 12>(s, &gemm.out),
                    (_, 8) => at.run::<S, P, 1, 8>(s, &gemm.out),
                    (_, 6) => at.run::<S, P, 1, 6>(s, &gemm.out),
                    (_, 4) => at.run::<S, P, 1, 4>(s, &gemm.out),
                    (_, 2) => at.run::<S, P, 1, 2>(s, &gemm.out),
                    _ => at.run::<S, P, 1, 1>(s, &gemm.out),
                }
            }
            token += width;
        }
        panel += together;
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
    unsafe fn run<S: Simd, P: Pair<S>, const N: usize, const T: usize>(&self, s: S, out: &Output) {
        let stride = self.layout.panel_bytes;
        let pairs = self.layout.padded_k() / 2;
        let mut total = [[s.splat(0.0); T]; N];
        let mut pair = 0;
        // SAFETY: pairs are inside the panels and the tile; the caller's promise.
        unsafe {
            while pair < pairs {
                let end = (pair + CHUNK / 2).min(pairs);
                let mut acc = [[s.splat(0.0); T]; N];
                while pair < end {
                    let x = self.x.add(pair * T * P::X_BYTES);
                    for (n, acc) in acc.iter_mut().enumerate() {
                        let w = P::weights(s, self.p.add(n * stride + pair * P::W_BYTES));
                        for (t, acc) in acc.iter_mut().enumerate() {
                            *acc = P::dot(s, *acc, w, x, t, T);
                        }
                    }
                    pair += 1;
                }
                for (total, acc) in total.iter_mut().zip(acc) {
                    for (total, acc) in total.iter_mut().zip(acc) {
                        *total = s.add(*total, acc);
                    }
                }
            }
            for (n, total) in total.iter().enumerate() {
                for (t, &v) in total.iter().enumerate() {
                    out.put(s, self.token + t, self.panel + n, self.layout.n, v);
                }
            }
        }
    }
}
