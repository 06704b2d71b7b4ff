//! What a quantised kernel has to know of a scheme: how codes leave their planes, where scales are.

use super::BLOCK;
use crate::simd::{LANES, Simd};
use half::f16;
use std::marker::PhantomData;

/// The sixteen levels of IQ4_NL.
pub(crate) const IQ4_NL_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// [`IQ4_NL_LEVELS`] plus 128.
const IQ4_NL_CODES: [u8; 16] = {
    let mut t = [0; 16];
    let mut i = 0;
    while i < 16 {
        t[i] = (IQ4_NL_LEVELS[i] as i16 + 128) as u8;
        i += 1;
    }
    t
};

/// Bits of 32 columns of sixteen rows, in planes (see [`super`]).
pub(crate) trait Codes {
    /// Bytes of 32 columns.
    const BYTES: usize;

    /// Codes of columns `4 STEP ..` of a block, one unsigned byte each.
    ///
    /// # Safety
    /// `p` is readable for [`Self::BYTES`].
    unsafe fn vector<S: Simd, const STEP: usize>(s: S, p: *const u8) -> S::I;

    /// The code of one column of one row.
    ///
    /// # Safety
    /// `p` is readable for [`Self::BYTES`]; `lane < 16`, `column < 32`.
    unsafe fn scalar(p: *const u8, lane: usize, column: usize) -> u8;
}

/// Where a scheme keeps its scales: in units that some blocks share.
pub(crate) trait Scales {
    /// Scales within one block of 32 columns: 1 or 2.
    const SUBS: usize;
    /// Whether a minimum is taken from (or added to) every element.
    const HAS_MIN: bool;
    /// Blocks of 32 columns that share one unit; 0: as many as the layout says.
    const UNIT: usize;
    /// Bytes of one unit for sixteen rows.
    const BYTES: usize;

    /// Scale and offset of sub-block `sub` of a unit's block `b`; the offset is to be added.
    ///
    /// # Safety
    /// `unit` is readable for [`Self::BYTES`] and `b` one of its blocks.
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, b: usize, sub: usize) -> (S::F, S::F);

    /// As [`Self::vector`], for one row.
    ///
    /// # Safety
    /// As [`Self::vector`]; `lane < 16`.
    unsafe fn scalar(unit: *const u8, b: usize, sub: usize, lane: usize) -> (f32, f32);
}

/// A scheme: codes, scales, and the code that stands for zero.
pub(crate) trait Format {
    type C: Codes;
    type S: Scales;
    const ZERO_POINT: i32;
    /// Bytes of the codes of 32 columns of a panel.
    const CODE_BYTES: usize = Self::C::BYTES;
    /// Blocks of 32 columns that share one unit of scales, and that unit's bytes.
    const UNIT: (usize, usize) = (Self::S::UNIT, Self::S::BYTES);
    /// Scales within 32 columns.
    const SUBS: usize = Self::S::SUBS;
    const HAS_MIN: bool = Self::S::HAS_MIN;

    /// Row `lane` of block `b` of a unit as floats.
    ///
    /// # Safety
    /// `unit` is a panel's unit of scales that has a block `b`, `codes` that block's codes; `lane < 16`.
    unsafe fn unpack_block(
        unit: *const u8,
        codes: *const u8,
        b: usize,
        lane: usize,
        out: &mut [f32; BLOCK],
    ) {
        let width = BLOCK / Self::S::SUBS;
        for (sub, out) in out.chunks_exact_mut(width).enumerate() {
            // SAFETY: the caller's promise.
            let (scale, offset) = unsafe { Self::S::scalar(unit, b, sub, lane) };
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: the caller's promise; the column is below 32.
                let code = unsafe { Self::C::scalar(codes, lane, sub * width + i) };
                let q = (i32::from(code) - Self::ZERO_POINT) as f32;
                // Both products are exact in f64, so the sum is rounded once.
                *out = (f64::from(scale) * f64::from(q) + f64::from(offset)) as f32;
            }
        }
    }
}

/// A [`Format`] put together from its parts.
pub(crate) struct Fmt<C, S, const ZERO: i32>(PhantomData<(C, S)>);

impl<C: Codes, S: Scales, const ZERO: i32> Format for Fmt<C, S, ZERO> {
    type C = C;
    type S = S;
    const ZERO_POINT: i32 = ZERO;
}

pub(crate) type Q4_0 = Fmt<Bits4, Block, 8>;
pub(crate) type Q4_1 = Fmt<Bits4, BlockMin, 0>;
pub(crate) type Q5_0 = Fmt<Bits5, Block, 16>;
pub(crate) type Q5_1 = Fmt<Bits5, BlockMin, 0>;
pub(crate) type Q8_0 = Fmt<Bits8, Block, 128>;
pub(crate) type Iq4Nl = Fmt<Table4, Block, 128>;
pub(crate) type Q2K = Fmt<Bits2, SuperNibble, 0>;
pub(crate) type Q3K = Fmt<Bits3, SuperSigned, 4>;
pub(crate) type Q4K = Fmt<Bits4, SuperMin, 0>;
pub(crate) type Q5K = Fmt<Bits5, SuperMin, 0>;
pub(crate) type Q6K = Fmt<Bits6, SuperSigned, 32>;
pub(crate) type Int4 = Fmt<Bits4, GroupZero, { INT4_ZERO as i32 }>;
pub(crate) type Int8 = Fmt<Bits8, Group, 128>;

/// `with_format!(quant, F => expression)`: the expression with `F` the quantisation's [`Format`].
macro_rules! with_format {
    ($quant:expr, $f:ident => $e:expr) => {{
        use $crate::pack::{Quant, formats};
        macro_rules! with {
            ($t:ty) => {{
                type $f = $t;
                $e
            }};
        }
        match $quant {
            Quant::Q4_0 => with!(formats::Q4_0),
            Quant::Q4_1 => with!(formats::Q4_1),
            Quant::Q5_0 => with!(formats::Q5_0),
            Quant::Q5_1 => with!(formats::Q5_1),
            Quant::Q8_0 => with!(formats::Q8_0),
            Quant::Q2_K => with!(formats::Q2K),
            Quant::Q3_K => with!(formats::Q3K),
            Quant::Q4_K => with!(formats::Q4K),
            Quant::Q5_K => with!(formats::Q5K),
            Quant::Q6_K => with!(formats::Q6K),
            Quant::IQ4_NL => with!(formats::Iq4Nl),
            Quant::INT4 => with!(formats::Int4),
            Quant::INT8 => with!(formats::Int8),
        }
    }};
}
pub(crate) use with_format;

/// Bytes of one vector of sixteen 32-bit lanes.
const V: usize = 64;

/// Every byte of a vector set to `b`.
#[inline(always)]
fn bytes<S: Simd>(s: S, b: u8) -> S::I {
    s.isplat(i32::from_ne_bytes([b; 4]))
}

/// Byte `column & 3` of lane `lane` of vector `v`.
///
/// # Safety
/// `p` is readable for `v + 1` vectors.
unsafe fn byte(p: *const u8, v: usize, lane: usize, column: usize) -> u8 {
    // SAFETY: the caller's promise; the lane's four bytes are inside the vector.
    unsafe { p.add(v * V + lane * 4 + (column & 3)).read() }
}

/// Bits `at ..` of every lane moved to bits `to ..`.
#[inline(always)]
fn shift<S: Simd>(s: S, v: S::I, at: usize, to: usize) -> S::I {
    match (at as i32) - (to as i32) {
        -4 => s.ishl::<4>(v),
        -3 => s.ishl::<3>(v),
        -2 => s.ishl::<2>(v),
        -1 => s.ishl::<1>(v),
        1 => s.ishr::<1>(v),
        2 => s.ishr::<2>(v),
        3 => s.ishr::<3>(v),
        4 => s.ishr::<4>(v),
        5 => s.ishr::<5>(v),
        6 => s.ishr::<6>(v),
        _ => v,
    }
}

/// The 4-bit plane at `p`, step `STEP`, high half of each byte cleared.
#[inline(always)]
unsafe fn nibbles<S: Simd, const STEP: usize>(s: S, p: *const u8) -> S::I {
    // SAFETY: the caller gives the four vectors of a 4-bit plane.
    let v = unsafe { s.iload(p.add((STEP & 3) * V)) };
    s.iand(shift(s, v, 4 * (STEP >> 2), 0), bytes(s, 15))
}

/// The 2-bit plane at `p`, step `STEP`, moved to bit `to` of each byte, all else cleared.
#[inline(always)]
unsafe fn pairs<S: Simd, const STEP: usize>(s: S, p: *const u8, to: usize) -> S::I {
    // SAFETY: the caller gives the two vectors of a 2-bit plane.
    let v = unsafe { s.iload(p.add((STEP & 1) * V)) };
    s.iand(shift(s, v, 2 * (STEP >> 1), to), bytes(s, 3 << to))
}

/// The 1-bit plane at `p`, step `STEP`, moved to bit `to` of each byte, all else cleared.
#[inline(always)]
unsafe fn singles<S: Simd, const STEP: usize>(s: S, p: *const u8, to: usize) -> S::I {
    // SAFETY: the caller gives the vector of a 1-bit plane.
    let v = unsafe { s.iload(p) };
    s.iand(shift(s, v, STEP, to), bytes(s, 1 << to))
}

/// Scalar twins of [`nibbles`], [`pairs`], [`singles`].
///
/// # Safety
/// As there.
unsafe fn nibble(p: *const u8, lane: usize, column: usize) -> u8 {
    let step = column / 4;
    // SAFETY: the caller's promise.
    (unsafe { byte(p, step & 3, lane, column) } >> (4 * (step >> 2))) & 15
}

/// # Safety
/// As [`pairs`].
unsafe fn pair(p: *const u8, lane: usize, column: usize) -> u8 {
    let step = column / 4;
    // SAFETY: the caller's promise.
    (unsafe { byte(p, step & 1, lane, column) } >> (2 * (step >> 1))) & 3
}

/// # Safety
/// As [`singles`].
unsafe fn single(p: *const u8, lane: usize, column: usize) -> u8 {
    // SAFETY: the caller's promise.
    (unsafe { byte(p, 0, lane, column) } >> (column / 4)) & 1
}

/// Defines a [`Codes`]: its size, its vector of codes, its scalar code.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident, $bytes:expr,
     |$s:ident, $p:ident, $step:ident| $vector:expr, |$q:ident, $lane:ident, $col:ident| $scalar:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;
        impl Codes for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn vector<S: Simd, const $step: usize>($s: S, $p: *const u8) -> S::I {
                // SAFETY: the caller's promise covers every plane of the block.
                unsafe { $vector }
            }
            #[inline(always)]
            unsafe fn scalar($q: *const u8, $lane: usize, $col: usize) -> u8 {
                // SAFETY: the caller's promise covers every plane of the block.
                unsafe { $scalar }
            }
        }
    };
}

codes!(
    /// One 8-bit plane.
    Bits8, 8 * V,
    |s, p, STEP| s.iload(p.add(STEP * V)),
    |p, lane, col| byte(p, col / 4, lane, col)
);
codes!(
    /// One 4-bit plane.
    Bits4, 4 * V,
    |s, p, STEP| nibbles::<S, STEP>(s, p),
    |p, lane, col| nibble(p, lane, col)
);
codes!(
    /// One 4-bit plane of indices into [`IQ4_NL_CODES`].
    Table4, 4 * V,
    |s, p, STEP| s.lut16(&IQ4_NL_CODES, nibbles::<S, STEP>(s, p)),
    |p, lane, col| IQ4_NL_CODES[usize::from(nibble(p, lane, col))]
);
codes!(
    /// 4-bit plane, then the fifth bits.
    Bits5, 5 * V,
    |s, p, STEP| s.ior(nibbles::<S, STEP>(s, p), singles::<S, STEP>(s, p.add(4 * V), 4)),
    |p, lane, col| nibble(p, lane, col) | single(p.add(4 * V), lane, col) << 4
);
codes!(
    /// 4-bit plane, then a 2-bit plane of the high bits.
    Bits6, 6 * V,
    |s, p, STEP| s.ior(nibbles::<S, STEP>(s, p), pairs::<S, STEP>(s, p.add(4 * V), 4)),
    |p, lane, col| nibble(p, lane, col) | pair(p.add(4 * V), lane, col) << 4
);
codes!(
    /// One 2-bit plane.
    Bits2, 2 * V,
    |s, p, STEP| pairs::<S, STEP>(s, p, 0),
    |p, lane, col| pair(p, lane, col)
);
codes!(
    /// 2-bit plane, then the third bits.
    Bits3, 3 * V,
    |s, p, STEP| s.ior(pairs::<S, STEP>(s, p, 0), singles::<S, STEP>(s, p.add(2 * V), 2)),
    |p, lane, col| pair(p, lane, col) | single(p.add(2 * V), lane, col) << 2
);

/// Half-precision number `lane` of the sixteen at `p`.
///
/// # Safety
/// `p` is readable for 32 bytes and `lane < 16`.
unsafe fn half_at(p: *const u8, lane: usize) -> f32 {
    // SAFETY: the caller's promise.
    f16::from_le_bytes(unsafe { p.add(2 * lane).cast::<[u8; 2]>().read() }).to_f32()
}

const HALVES: usize = 2 * LANES;

/// One f16 scale for 32 columns.
pub(crate) struct Block;

/// f16 scale and f16 offset for 32 columns.
pub(crate) struct BlockMin;

/// f16 scale and minimum for 256 columns, times a 6-bit scale and minimum (a byte each) for 32.
pub(crate) struct SuperMin;

/// f16 scale for 256 columns, times a signed byte for 16.
pub(crate) struct SuperSigned;

/// f16 scale and minimum for 256 columns, times a 4-bit scale (low) and minimum (high) for 16.
pub(crate) struct SuperNibble;

/// Byte offsets within a unit of [`SuperMin`], [`SuperSigned`], [`SuperNibble`].
pub(crate) const SUPER_MIN_SCALES: usize = 2 * HALVES;
pub(crate) const SUPER_SIGNED_SCALES: usize = HALVES;
pub(crate) const SUPER_NIBBLE_SCALES: usize = 2 * HALVES;

impl Scales for Block {
    const SUBS: usize = 1;
    const HAS_MIN: bool = false;
    const UNIT: usize = 1;
    const BYTES: usize = HALVES;
    #[inline(always)]
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, _b: usize, _su_b: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        (unsafe { s.load_f16(unit.cast()) }, s.splat(0.0))
    }
    unsafe fn scalar(unit: *const u8, _b: usize, _su_b: usize, lane: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        (unsafe { half_at(unit, lane) }, 0.0)
    }
}

impl Scales for BlockMin {
    const SUBS: usize = 1;
    const HAS_MIN: bool = true;
    const UNIT: usize = 1;
    const BYTES: usize = 2 * HALVES;
    #[inline(always)]
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, _b: usize, _su_b: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe { (s.load_f16(unit.cast()), s.load_f16(unit.add(HALVES).cast())) }
    }
    unsafe fn scalar(unit: *const u8, _b: usize, _su_b: usize, lane: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        unsafe { (half_at(unit, lane), half_at(unit.add(HALVES), lane)) }
    }
}

impl Scales for SuperMin {
    const SUBS: usize = 1;
    const HAS_MIN: bool = true;
    const UNIT: usize = 8;
    const BYTES: usize = SUPER_MIN_SCALES + 16 * LANES;
    #[inline(always)]
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, b: usize, _sub: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let (d, m) = (s.load_f16(unit.cast()), s.load_f16(unit.add(HALVES).cast()));
            let p = unit.add(SUPER_MIN_SCALES + b * 2 * LANES);
            let scale = s.mul(d, s.to_f(s.load_u8(p)));
            let min = s.mul(m, s.to_f(s.load_u8(p.add(LANES))));
            (scale, s.sub(s.splat(0.0), min))
        }
    }
    unsafe fn scalar(unit: *const u8, b: usize, _sub: usize, lane: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let p = unit.add(SUPER_MIN_SCALES + b * 2 * LANES + lane);
            let (sc, m) = (f32::from(p.read()), f32::from(p.add(LANES).read()));
            (half_at(unit, lane) * sc, -(half_at(unit.add(HALVES), lane) * m))
        }
    }
}

impl Scales for SuperSigned {
    const SUBS: usize = 2;
    const HAS_MIN: bool = false;
    const UNIT: usize = 8;
    const BYTES: usize = SUPER_SIGNED_SCALES + 16 * LANES;
    #[inline(always)]
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, b: usize, sub: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let p = unit.add(SUPER_SIGNED_SCALES + (b * 2 + sub) * LANES);
            (s.mul(s.load_f16(unit.cast()), s.to_f(s.load_i8(p.cast()))), s.splat(0.0))
        }
    }
    unsafe fn scalar(unit: *const u8, b: usize, sub: usize, lane: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let p = unit.add(SUPER_SIGNED_SCALES + (b * 2 + sub) * LANES + lane);
            (half_at(unit, lane) * f32::from(p.cast::<i8>().read()), 0.0)
        }
    }
}

impl Scales for SuperNibble {
    const SUBS: usize = 2;
    const HAS_MIN: bool = true;
    const UNIT: usize = 8;
    const BYTES: usize = SUPER_NIBBLE_SCALES + 16 * LANES;
    #[inline(always)]
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, b: usize, sub: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let (d, m) = (s.load_f16(unit.cast()), s.load_f16(unit.add(HALVES).cast()));
            let v = s.load_u8(unit.add(SUPER_NIBBLE_SCALES + (b * 2 + sub) * LANES));
            let scale = s.mul(d, s.to_f(s.iand(v, s.isplat(15))));
            (scale, s.sub(s.splat(0.0), s.mul(m, s.to_f(s.ishr::<4>(v)))))
        }
    }
    unsafe fn scalar(unit: *const u8, b: usize, sub: usize, lane: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let v = unit.add(SUPER_NIBBLE_SCALES + (b * 2 + sub) * LANES + lane).read();
            let (sc, m) = (f32::from(v & 15), f32::from(v >> 4));
            (half_at(unit, lane) * sc, -(half_at(unit.add(HALVES), lane) * m))
        }
    }
}

/// f32 scale of a group of columns.
pub(crate) struct Group;

/// f32 scale of a group of columns, and the code (a byte) that stands for zero. What that is off [`INT4_ZERO`] becomes the offset,
/// which so is small.
pub(crate) struct GroupZero;

/// The middle code of 4 bits, and what stands for zero where a weight does not say.
pub(crate) const INT4_ZERO: u8 = 8;

/// Byte offset of the zero points within a unit of [`GroupZero`].
pub(crate) const GROUP_ZEROS: usize = 4 * LANES;

impl Scales for Group {
    const SUBS: usize = 1;
    const HAS_MIN: bool = false;
    const UNIT: usize = 0;
    const BYTES: usize = GROUP_ZEROS;
    #[inline(always)]
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, _b: usize, _sub: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        (unsafe { s.load(unit.cast()) }, s.splat(0.0))
    }
    unsafe fn scalar(unit: *const u8, _b: usize, _sub: usize, lane: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        (unsafe { unit.cast::<f32>().add(lane).read_unaligned() }, 0.0)
    }
}

impl Scales for GroupZero {
    const SUBS: usize = 1;
    const HAS_MIN: bool = true;
    const UNIT: usize = 0;
    const BYTES: usize = GROUP_ZEROS + LANES;
    #[inline(always)]
    unsafe fn vector<S: Simd>(s: S, unit: *const u8, _b: usize, _sub: usize) -> (S::F, S::F) {
        // SAFETY: the caller's promise.
        unsafe {
            let (scale, zero) = (s.load(unit.cast()), s.load_u8(unit.add(GROUP_ZEROS)));
            (scale, s.mul(scale, s.to_f(s.isub(s.isplat(INT4_ZERO.into()), zero))))
        }
    }
    unsafe fn scalar(unit: *const u8, _b: usize, _sub: usize, lane: usize) -> (f32, f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let scale = unit.cast::<f32>().add(lane).read_unaligned();
            let zero = f32::from(unit.add(GROUP_ZEROS + lane).read());
            (scale, scale * (f32::from(INT4_ZERO) - zero))
        }
    }
}
