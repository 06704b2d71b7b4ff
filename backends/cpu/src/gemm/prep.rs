//! Activations in the form the kernels read.
//!
//! Tokens are taken in *tiles*, as many at a time as fit the registers. Within a tile the data of all
//! its tokens for one step along `k` lie together.
//!
//! **Quantised weights.** Codes are small integers, so the products are done in integers, exactly. 32
//! activations become integers of 24 bits with a common power of two, `x = X * 2^e`: the largest keeps
//! at least 22 bits below its leading one, so an element is off by at most 2^-23 of the block's largest,
//! as much as a float sum of the block would be anyway. A record holds `X` in pieces that the instruction
//! set's dot product takes ([`Simd::put_limbs`]), then 2^e, then what the scheme wants of the sum of `X`:
//! `-zero_point * sum` to start the integer sums from, and the sum itself times 2^e, which a
//! minimum is multiplied by. A block with a NaN or infinity gets the factor NaN.
//!
//! **Dense weights.** f32 for each token, or pairs of bfloat16 for the bf16 dot product.

use super::{Gemm, Layout, Path};
use crate::elem::{Elem, Rows};
use crate::isa::{Isa, Op};
use crate::pack::formats::{Format as _, with_format};
use crate::pack::{BLOCK, Quant};
use crate::simd::{LANES, Simd, TAIL_BYTES};
use std::ops::Range;

/// Widths of token tiles, widest first.
fn tiles(isa: Isa, path: Path) -> &'static [usize] {
    struct Tiles(Path);
    impl Op for Tiles {
        type Out = &'static [usize];
        #[inline(always)]
        fn run<S: Simd>(self, _s: S) -> Self::Out {
            match self.0 {
                Path::Quant => S::QUANT_TILES,
                Path::Fma | Path::Bf16Dot => S::DENSE_TILES,
            }
        }
    }
    isa.dispatch(Tiles(path))
}

pub(crate) fn widest_tile(isa: Isa, path: Path) -> usize {
    tiles(isa, path)[0]
}

/// Width of the tile that starts at `token` of `tokens`: the widest that fits.
#[inline(always)]
pub(crate) fn tile_width(tiles: &[usize], token: usize, tokens: usize) -> usize {
    tiles.iter().copied().find(|&w| w <= tokens - token).unwrap_or(1)
}

/// Bytes of one token's prepared activations.
pub(crate) fn token_bytes(isa: Isa, path: Path, layout: &Layout) -> usize {
    struct Record;
    impl Op for Record {
        type Out = usize;
        #[inline(always)]
        fn run<S: Simd>(self, _s: S) -> usize {
            S::RECORD_BYTES
        }
    }
    let k = layout.k();
    match path {
        Path::Quant => layout.blocks() * isa.dispatch(Record),
        Path::Fma => k.next_multiple_of(2) * 4,
        Path::Bf16Dot => k.next_multiple_of(2) * 2,
    }
}

/// Bytes of scratch memory a product of `tokens` tokens needs.
pub(crate) fn bytes(isa: Isa, path: Path, layout: &Layout, tokens: usize) -> usize {
    tokens.saturating_mul(token_bytes(isa, path, layout))
}

/// Prepares tokens `range`, which starts and ends at tile boundaries.
///
/// # Safety
/// As [`Gemm::run`]; no other task prepares these tokens.
pub(crate) unsafe fn run(gemm: &Gemm, range: Range<usize>) {
    struct Prep<'a>(&'a Gemm, Range<usize>);
    impl Op for Prep<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let Self(gemm, range) = self;
            let tiles = match gemm.path {
                Path::Quant => S::QUANT_TILES,
                Path::Fma | Path::Bf16Dot => S::DENSE_TILES,
            };
            let mut token = range.start;
            while token < range.end {
                let width = tile_width(tiles, token, gemm.tokens);
                // SAFETY: promised to `prep::run`.
                unsafe { tile(s, gemm, token, width) };
                token += width;
            }
        }
    }
    gemm.isa.dispatch(Prep(gemm, range));
}

/// # Safety
/// As [`run`]; `width` is the tile's that starts at `start`.
#[inline(always)]
unsafe fn tile<S: Simd>(s: S, gemm: &Gemm, start: usize, width: usize) {
    let layout = &gemm.w.layout;
    let k = layout.k();
    let columns = k.next_multiple_of(2);
    for i in 0..width {
        // SAFETY: a tile's tokens are below `gemm.tokens`; the tile's scratch memory begins at its first.
        unsafe {
            let row = gemm.gather.map_or(start + i, |g| g.add(start + i).read() as usize);
            match layout {
                Layout::Quant(q) => {
                    let to = gemm.scratch.add(start * q.blocks() * S::RECORD_BYTES);
                    let sums = Sums::of(q.quant);
                    let order = q.order(gemm.w.base);
                    for b in 0..q.blocks() {
                        let record = to.add((b * width + i) * S::RECORD_BYTES);
                        let x = block(s, &gemm.x, row, q.columns(b), order);
                        record_block(s, x, record, sums);
                    }
                }
                Layout::Dense(_) if gemm.path == Path::Bf16Dot => {
                    let to = gemm.scratch.cast::<u16>().add(start * columns);
                    pairs(&gemm.x, row, k, to.add(2 * i), width);
                }
                Layout::Dense(_) => {
                    let to = gemm.scratch.cast::<f32>().add(start * columns);
                    floats(s, &gemm.x, row, k, to.add(i), width);
                }
            }
        }
    }
}

/// Where in a record's tail, counted in f32, the sums are that minima are multiplied by.
pub(super) const TAIL_TOTAL: usize = 5;

/// What a scheme wants to know of a block's activations.
#[derive(Clone, Copy)]
struct Sums {
    /// Sums a block: 1 or 2.
    subs: usize,
    /// The sum itself.
    total: bool,
    /// Its zero-point correction, if this is not 0.
    zero_point: i32,
}

impl Sums {
    #[inline(always)]
    fn of(quant: Quant) -> Self {
        with_format!(quant, F => Self { subs: F::SUBS, total: F::HAS_MIN, zero_point: F::ZERO_POINT })
    }
}

/// The exponent of a block's factor, from the largest magnitude's bits; `None` for NaN or infinity.
///
/// The magnitude is first stretched a little, because the largest integer the balanced digits hold is
/// 8,355,711, not 2^23.
#[inline(always)]
fn block_exponent(max_bits: u32) -> Option<i32> {
    if max_bits >= 0x7f80_0000 {
        return None;
    }
    let biased = (f32::from_bits(max_bits) * 1.004).to_bits() >> 23;
    // 2^-126 at least: a smaller factor has no normal inverse, and adds nothing that f32 would keep.
    Some((biased as i32 - 127 - 22).max(-126))
}

#[inline(always)]
fn power_of_two(e: i32) -> f32 {
    f32::from_bits(((e + 127) as u32) << 23)
}

/// The activations that up to 32 columns multiply; 0 where there are fewer.
///
/// # Safety
/// The row has the columns, and those that the order names.
#[inline(always)]
unsafe fn block<S: Simd>(
    s: S,
    x: &Rows,
    row: usize,
    columns: Range<usize>,
    order: Option<*const u32>,
) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        if columns.len() == BLOCK && order.is_none() {
            return [x.load(s, row, columns.start), x.load(s, row, columns.start + LANES)];
        }
        let mut v = [0.0; BLOCK];
        for (v, column) in v.iter_mut().zip(columns) {
            let column = order.map_or(column, |o| o.add(column).read_unaligned() as usize);
            *v = x.get(row, column);
        }
        [s.load(v.as_ptr()), s.load(v.as_ptr().add(LANES))]
    }
}

/// Writes the record of a block of activations.
///
/// # Safety
/// `record` is writable for `RECORD_BYTES`.
#[inline(always)]
unsafe fn record_block<S: Simd>(s: S, v: [S::F; 2], record: *mut u8, want: Sums) {
    let magnitude = |v| s.iand(s.bits(v), s.isplat(0x7fff_ffff));
    let exponent = block_exponent(s.umax_lane(s.umax(magnitude(v[0]), magnitude(v[1]))));
    let up = s.splat(exponent.map_or(0.0, |e| power_of_two(-e)));
    let factor = exponent.map_or(f32::NAN, power_of_two);
    let whole = v.map(|v| s.to_i(if exponent.is_some() { s.mul(v, up) } else { s.splat(0.0) }));
    // SAFETY: the caller gives a whole record.
    unsafe {
        s.put_limbs(record, 0, whole[0]);
        s.put_limbs(record, 1, whole[1]);
        let tail = record.add(S::RECORD_BYTES - TAIL_BYTES);
        tail.cast::<f32>().write_unaligned(factor);
        let sums = if want.subs == 1 {
            [s.isum(s.iadd(whole[0], whole[1])); 2]
        } else {
            whole.map(|w| s.isum(w))
        };
        for (sub, sum) in sums.into_iter().enumerate().take(want.subs) {
            if want.total {
                let total = tail.cast::<f32>().add(TAIL_TOTAL + sub);
                total.write_unaligned(sum as f32 * factor);
            }
            if want.zero_point != 0 {
                let low = (sum << 24) >> 24;
                let z = tail.add(4 + 8 * sub).cast::<i32>();
                z.write_unaligned(-want.zero_point * ((sum - low) >> 8));
                z.add(1).write_unaligned(-want.zero_point * low);
            }
        }
    }
}

/// Writes a row as floats `width` apart, padded with 0 to an even number.
///
/// # Safety
/// The row has `k` columns; `to` is one token of a tile of `width`.
#[inline(always)]
unsafe fn floats<S: Simd>(s: S, x: &Rows, row: usize, k: usize, to: *mut f32, width: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if width == 1 {
            for col in (0..k).step_by(LANES) {
                let v = x.load_upto(s, row, col, k);
                if col + LANES <= k {
                    s.store(to.add(col), v);
                } else {
                    let v = s.to_array(v);
                    std::ptr::copy_nonoverlapping(v.as_ptr(), to.add(col), k - col);
                }
            }
        } else {
            for col in 0..k {
                to.add(col * width).write(x.get(row, col));
            }
        }
        if k % 2 == 1 {
            to.add(k * width).write(0.0);
        }
    }
}

/// Writes a bfloat16 row as pairs `width` pairs apart, padded with 0 to an even number.
///
/// # Safety
/// As [`floats`]; `x` is bfloat16.
#[inline(always)]
unsafe fn pairs(x: &Rows, row: usize, k: usize, to: *mut u16, width: usize) {
    debug_assert_eq!(x.elem, Elem::Bf16);
    // SAFETY: the caller's promise.
    unsafe {
        for col in 0..k.next_multiple_of(2) {
            let v = if col < k { x.at(row, col).cast::<u16>().read_unaligned() } else { 0 };
            to.add(col / 2 * 2 * width + col % 2).write(v);
        }
    }
}
