//! Plain Rust: arrays that the compiler vectorises as it can (NEON on aarch64).

use super::{LANES, Simd, bf16_bits};
use crate::fp8::E4M3;
use crate::isa::Op;
use half::f16;

/// Needs nothing of the processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

const PLANE: usize = 64;

/// `a * b + c`: fused where that is an instruction, else two roundings (the library call for a fused
/// one costs tens of nanoseconds).
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

#[inline(always)]
fn map<T: Copy, U>(a: [T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip<T: Copy, U>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> U) -> [U; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Halves to floats. Conversions in software are long: not inlined, here and below.
#[inline(never)]
fn widen(h: &[u16; LANES]) -> [f32; LANES] {
    map(*h, |x| f16::from_bits(x).to_f32())
}

#[inline(never)]
fn narrow(a: &[f32; LANES]) -> [u16; LANES] {
    map(*a, |x| f16::from_f32(x).to_bits())
}

/// [`Simd::acc_dot`] on plain numbers. Not inlined: eleven formats times eight steps of this, unrolled,
/// would be most of the crate's compile time.
#[inline(never)]
fn dot(acc: &mut [[i32; LANES]; 2], codes: &[i32; LANES], high: [i16; 4], low: [i16; 4]) {
    for i in 0..4 {
        for lane in 0..LANES {
            let q = (codes[lane] >> (8 * i)) & 255;
            acc[0][lane] += q * i32::from(high[i]);
            acc[1][lane] += q * i32::from(low[i]);
        }
    }
}

impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type Acc = [[i32; LANES]; 2];

    const RECORD_BYTES: usize = 2 * PLANE + super::TAIL_BYTES;
    const QUANT_TILES: &'static [usize] = &[1];
    const DENSE_TILES: &'static [usize] = &[2, 1];
    const DENSE_PANELS: usize = 1;
    const ROW_TILES: &'static [usize] = &[1];
    const TILE_VECTORS: usize = 6;

    #[inline(always)]
    fn call<O: Op>(self, op: O) -> O::Out {
        crate::isa::run_portable(op)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| mul_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }
    #[inline(always)]
    fn to_array(self, a: Self::F) -> [f32; LANES] {
        a
    }
    #[inline(always)]
    fn from_array(self, a: [f32; LANES]) -> Self::F {
        a
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: Self::F) {
        // SAFETY: the caller promises 64 writable bytes.
        unsafe { p.cast::<Self::F>().write_unaligned(a) };
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller promises 32 readable bytes.
        let h = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        widen(&h)
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller promises 32 readable bytes.
        let h = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        map(h, |x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const u8) -> Self::F {
        // SAFETY: the caller promises 16 readable bytes.
        map(unsafe { p.cast::<[u8; LANES]>().read_unaligned() }, |x| E4M3[usize::from(x)])
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, a: Self::F) {
        let h = narrow(&a);
        // SAFETY: the caller promises 32 writable bytes.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(h) };
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, a: Self::F) {
        // SAFETY: the caller promises 32 writable bytes.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(map(a, bf16_bits)) };
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> Self::I {
        // SAFETY: the caller promises 16 readable bytes.
        map(unsafe { p.cast::<[u8; LANES]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::I {
        // SAFETY: the caller promises 16 readable bytes.
        map(unsafe { p.cast::<[i8; LANES]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn iload(self, p: *const u8) -> Self::I {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { p.cast::<Self::I>().read_unaligned() }
    }

    #[inline(always)]
    fn isplat(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn isub(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn iand(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |x, y| x & y)
    }
    #[inline(always)]
    fn ior(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |x, y| x | y)
    }
    #[inline(always)]
    fn umax(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |x, y| x.cast_unsigned().max(y.cast_unsigned()).cast_signed())
    }
    #[inline(always)]
    fn ishl<const N: u32>(self, a: Self::I) -> Self::I {
        map(a, |x| x << N)
    }
    #[inline(always)]
    fn ishr<const N: u32>(self, a: Self::I) -> Self::I {
        map(a, |x| (x.cast_unsigned() >> N).cast_signed())
    }
    #[inline(always)]
    fn isar<const N: u32>(self, a: Self::I) -> Self::I {
        map(a, |x| x >> N)
    }
    #[inline(always)]
    fn lut16(self, table: &[u8; 16], idx: Self::I) -> Self::I {
        map(idx, |x| i32::from_le_bytes(x.to_le_bytes().map(|b| table[usize::from(b & 15)])))
    }
    #[inline(always)]
    fn to_f(self, a: Self::I) -> Self::F {
        map(a, |x| x as f32)
    }
    #[inline(always)]
    fn to_i(self, a: Self::F) -> Self::I {
        // Adding and taking away 1.5 * 2^23 rounds to nearest even; larger numbers are whole already.
        const MAGIC: f32 = 12_582_912.0;
        map(a, |x| if x.abs() < 4_194_304.0 { ((x + MAGIC) - MAGIC) as i32 } else { x as i32 })
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        map(a, |x| x.to_bits().cast_signed())
    }
    #[inline(always)]
    fn from_bits(self, a: Self::I) -> Self::F {
        map(a, |x| f32::from_bits(x.cast_unsigned()))
    }
    #[inline(always)]
    fn ito_array(self, a: Self::I) -> [i32; LANES] {
        a
    }

    #[inline(always)]
    fn umax_lane(self, a: Self::I) -> u32 {
        a.iter().fold(0, |m, &x| m.max(x.cast_unsigned()))
    }
    #[inline(always)]
    fn isum(self, a: Self::I) -> i32 {
        a.iter().fold(0, |s, &x| s.wrapping_add(x))
    }

    #[inline(always)]
    fn acc_zero(self) -> Self::Acc {
        [[0; LANES]; 2]
    }
    #[inline(always)]
    fn acc_splat(self, high: i32, low: i32) -> Self::Acc {
        [[high; LANES], [low; LANES]]
    }
    #[inline(always)]
    unsafe fn acc_dot(
        self,
        acc: Self::Acc,
        codes: Self::I,
        record: *const u8,
        step: usize,
    ) -> Self::Acc {
        // SAFETY: the caller promises a whole record and `step < 8`.
        let high = unsafe { record.add(8 * step).cast::<[i16; 4]>().read_unaligned() };
        // SAFETY: as above; the second plane is as long as the first.
        let low = unsafe { record.add(PLANE + 8 * step).cast::<[i16; 4]>().read_unaligned() };
        let mut acc = acc;
        dot(&mut acc, &codes, high, low);
        acc
    }
    #[inline(always)]
    fn acc_finish(self, acc: Self::Acc) -> Self::F {
        self.fma(self.to_f(acc[0]), self.splat(256.0), self.to_f(acc[1]))
    }
    #[inline(always)]
    unsafe fn put_limbs(self, record: *mut u8, half: usize, x: Self::I) {
        let low = map(x, |x| (x << 24) >> 24);
        let high = zip(x, low, |x, l| ((x - l) >> 8) as i16);
        // SAFETY: the caller promises a whole record and `half < 2`.
        let p = unsafe { record.add(32 * half) };
        // SAFETY: as above.
        unsafe { p.cast::<[i16; LANES]>().write_unaligned(high) };
        // SAFETY: as above; the second plane is as long as the first.
        unsafe { p.add(PLANE).cast::<[i16; LANES]>().write_unaligned(map(low, |x| x as i16)) };
    }
}
