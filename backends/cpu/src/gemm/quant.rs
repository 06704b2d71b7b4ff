//! The quantised kernel: sixteen rows by up to a tile of tokens.
//!
//! Per block of 32 columns (or half of it, where a scheme scales sixteen): codes leave their planes as
//! bytes once for all tokens of the tile; integer dot products with the activations' digits are exact;
//! then `total += (scale * 2^e) * sum`, and `total += minimum * sum of x` for schemes that have one.

use super::prep::{TAIL_TOTAL, tile_width};
use super::{Output, Work};
use crate::isa::Op;
use crate::pack::QuantLayout;
use crate::pack::formats::{Codes, Format, Scales, with_format};
use crate::simd::{Simd, TAIL_BYTES, has};
use std::marker::PhantomData;

/// A task's panels; only made where [`Work::run`] may be called.
pub(crate) struct Panels<'a> {
    pub(crate) work: &'a Work<'a>,
    pub(crate) layout: &'a QuantLayout,
}

impl Op for Panels<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Panels { work, layout } = self;
        // SAFETY: promised where this was made.
        unsafe { with_format!(layout.quant, F => panels::<S, F>(s, work, layout)) }
    }
}

/// # Safety
/// As [`Work::run`].
#[inline(always)]
unsafe fn panels<S: Simd, F: Format>(s: S, work: &Work<'_>, layout: &QuantLayout) {
    let gemm = work.gemm;
    let blocks = layout.blocks();
    for panel in work.panels.clone() {
        // SAFETY: the panel is one of the matrix, the tokens are prepared; the caller's promise.
        unsafe {
            let p = gemm.w.base.add(panel * layout.panel_bytes);
            let mut token = work.tokens.start;
            while token < work.tokens.end {
                let x = gemm.scratch.add(token * blocks * S::RECORD_BYTES);
                let at = Tile { p, x, token, panel, layout };
                let width = tile_width(S::QUANT_TILES, token, gemm.tokens);
                macro_rules! run {
                    ($width:literal) => {
                        // What an instruction set has no such tiles for is not compiled for it.
                        if const { has(S::QUANT_TILES, $width) } {
                            s.call(Run::<F, $width>(&at, &gemm.out, PhantomData));
                        }
                    };
                }
                match width {
                    6 => run!(6),
                    4 => run!(4),
                    2 => run!(2),
                    _ => run!(1),
                }
                token += width;
            }
        }
    }
}

/// How far ahead codes are asked for where the kernel waits for memory (few tokens). Panels follow each
/// other, so that this reaches into the next.
const AHEAD: usize = 4096;

/// One panel and one tile of tokens.
struct Tile<'a> {
    p: *const u8,
    x: *const u8,
    token: usize,
    panel: usize,
    layout: &'a QuantLayout,
}

/// A tile with its format and width; only made where [`Tile::run`] may be called.
struct Run<'a, F, const T: usize>(&'a Tile<'a>, &'a Output, PhantomData<F>);

impl<F: Format, const T: usize> Op for Run<'_, F, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: promised where this was made.
        unsafe { self.0.run::<S, F, T>(s, self.1) }
    }
}

impl Tile<'_> {
    /// # Safety
    /// `p` is a panel, `x` the records of `T` tokens; output as [`Output::put`].
    #[inline(always)]
    unsafe fn run<S: Simd, F: Format, const T: usize>(&self, s: S, out: &Output) {
        // SAFETY: blocks and records are inside what the caller promises.
        unsafe {
            let mut codes = self.p.add(self.layout.aux_bytes);
            let mut unit = Unit { at: self.p, block: 0 };
            let unit_blocks = if F::S::UNIT == 0 { self.layout.unit_blocks } else { F::S::UNIT };
            let mut x = self.x;
            let mut total = [s.splat(0.0); T];
            for _ in 0..self.layout.blocks() {
                if T <= 2 {
                    for line in 0..F::CODE_BYTES / 64 {
                        s.prefetch(codes.wrapping_add(AHEAD + 64 * line));
                    }
                }
                if F::SUBS == 1 {
                    let mut acc = start::<S, F, T>(s, x, 0);
                    acc = half::<S, F, T, 0>(s, acc, codes, x);
                    acc = half::<S, F, T, 1>(s, acc, codes, x);
                    total = finish::<S, F, T>(s, total, acc, unit, 0, x);
                } else {
                    let acc = start::<S, F, T>(s, x, 0);
                    let acc = half::<S, F, T, 0>(s, acc, codes, x);
                    total = finish::<S, F, T>(s, total, acc, unit, 0, x);
                    let acc = start::<S, F, T>(s, x, 1);
                    let acc = half::<S, F, T, 1>(s, acc, codes, x);
                    total = finish::<S, F, T>(s, total, acc, unit, 1, x);
                }
                unit.block += 1;
                if unit.block == unit_blocks {
                    unit = Unit { at: unit.at.add(F::S::BYTES), block: 0 };
                }
                codes = codes.add(F::CODE_BYTES);
                x = x.add(T * S::RECORD_BYTES);
            }
            for (i, &v) in total.iter().enumerate() {
                out.put(s, self.token + i, self.panel, self.layout.n, v);
            }
        }
    }
}

/// A unit of scales and the block within it.
#[derive(Clone, Copy)]
struct Unit {
    at: *const u8,
    block: usize,
}

/// Integer sums of `T` tokens, at their zero-point correction.
#[inline(always)]
unsafe fn start<S: Simd, F: Format, const T: usize>(s: S, x: *const u8, sub: usize) -> [S::Acc; T] {
    let mut acc = [s.acc_zero(); T];
    if F::ZERO_POINT != 0 {
        for (t, acc) in acc.iter_mut().enumerate() {
            // SAFETY: `x` is `T` records.
            let [high, low] = unsafe {
                let tail = x.add((t + 1) * S::RECORD_BYTES - TAIL_BYTES);
                tail.add(4 + 8 * sub).cast::<[i32; 2]>().read_unaligned()
            };
            *acc = s.acc_splat(high, low);
        }
    }
    acc
}

/// Sixteen columns of a block: steps `4 HALF ..`.
#[inline(always)]
unsafe fn half<S: Simd, F: Format, const T: usize, const HALF: usize>(
    s: S,
    acc: [S::Acc; T],
    codes: *const u8,
    x: *const u8,
) -> [S::Acc; T] {
    // SAFETY: `codes` is a block and `x` is `T` records; the caller's promise.
    unsafe {
        if HALF == 0 {
            let acc = step::<S, F, T, 0>(s, acc, codes, x);
            let acc = step::<S, F, T, 1>(s, acc, codes, x);
            let acc = step::<S, F, T, 2>(s, acc, codes, x);
            step::<S, F, T, 3>(s, acc, codes, x)
        } else {
            let acc = step::<S, F, T, 4>(s, acc, codes, x);
            let acc = step::<S, F, T, 5>(s, acc, codes, x);
            let acc = step::<S, F, T, 6>(s, acc, codes, x);
            step::<S, F, T, 7>(s, acc, codes, x)
        }
    }
}

/// Four columns of a block.
#[inline(always)]
unsafe fn step<S: Simd, F: Format, const T: usize, const STEP: usize>(
    s: S,
    mut acc: [S::Acc; T],
    codes: *const u8,
    x: *const u8,
) -> [S::Acc; T] {
    // SAFETY: the caller's promise.
    unsafe {
        let c = F::C::vector::<S, STEP>(s, codes);
        for (t, acc) in acc.iter_mut().enumerate() {
            *acc = s.acc_dot(*acc, c, x.add(t * S::RECORD_BYTES), STEP);
        }
    }
    acc
}

/// Scales the integer sums of a sub-block and adds them to the totals.
#[inline(always)]
unsafe fn finish<S: Simd, F: Format, const T: usize>(
    s: S,
    mut total: [S::F; T],
    acc: [S::Acc; T],
    unit: Unit,
    sub: usize,
    x: *const u8,
) -> [S::F; T] {
    // SAFETY: the unit is one of the panel's and has the block; `x` is `T` records.
    unsafe {
        let (scale, offset) = F::S::vector(s, unit.at, unit.block, sub);
        for t in 0..T {
            let tail = x.add((t + 1) * S::RECORD_BYTES - TAIL_BYTES).cast::<f32>();
            let factor = s.mul(scale, s.splat(tail.read_unaligned()));
            total[t] = s.fma(s.acc_finish(acc[t]), factor, total[t]);
            if F::HAS_MIN {
                let sum = s.splat(tail.add(TAIL_TOTAL + sub).read_unaligned());
                total[t] = s.fma(offset, sum, total[t]);
            }
        }
    }
    total
}
