//! AVX2 with FMA and F16C: two registers are one vector.

use super::{LANES, Simd, bf16_bits};
use crate::isa::Op;
use std::arch::x86_64::*;

/// Proof that the processor has `avx2`, `fma` and `f16c`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has the features this type stands for.
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Activation = `256 * high + low`, both 16 bits; per four activations the pairs (0, 2), (1, 3), so
/// that codes need only a mask and a shift to line up.
const PLANE: usize = 64;

type F8 = __m256;
type I8 = __m256i;

/// Calls an intrinsic. Sound because `Avx2` proves the feature.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { $e }
    };
}

/// What [`e4m3_halves`] leaves out: f16's exponent bias is 15, that of f8e4m3 is 7.
pub(super) const E4M3_HALVES: f32 = 256.0;

/// Sixteen f8e4m3 as halves of the same bits, which stand for 2^-8 of their values; NaN stays NaN.
///
/// # Safety
/// The processor has `avx2`.
#[inline(always)]
pub(super) unsafe fn e4m3_halves(v: __m128i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        // Sign at bit 15, exponent and mantissa from bit 7 on; the sign extension's copy at bit 14 goes.
        let wide = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(v));
        let half = _mm256_and_si256(wide, _mm256_set1_epi16(0xbf80_u16.cast_signed()));
        let top = _mm256_set1_epi16(0x3f80);
        let nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, top), top);
        _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)))
    }
}

macro_rules! both {
    ($f:ident $(::<$n:block>)? ; $a:expr) => {{
        let a = $a;
        op!([$f$(::<$n>)?(a[0]), $f$(::<$n>)?(a[1])])
    }};
    ($f:ident ; $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        op!([$f(a[0], b[0]), $f(a[1], b[1])])
    }};
}

impl Simd for Avx2 {
    type F = [F8; 2];
    type I = [I8; 2];
    type Acc = [[I8; 2]; 2];

    const RECORD_BYTES: usize = 2 * PLANE + super::TAIL_BYTES;
    const QUANT_TILES: &'static [usize] = &[2, 1];
    const DENSE_TILES: &'static [usize] = &[6, 4, 2, 1];
    const DENSE_PANELS: usize = 4;
    const ROW_TILES: &'static [usize] = &[4, 2, 1];
    const TILE_VECTORS: usize = 6;

    #[inline(always)]
    fn call<O: Op>(self, op: O) -> O::Out {
        op!(crate::isa::run_avx2(op))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> [F8; 2] {
        [op!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn add(self, a: [F8; 2], b: [F8; 2]) -> [F8; 2] {
        both!(_mm256_add_ps; a, b)
    }
    #[inline(always)]
    fn sub(self, a: [F8; 2], b: [F8; 2]) -> [F8; 2] {
        both!(_mm256_sub_ps; a, b)
    }
    #[inline(always)]
    fn mul(self, a: [F8; 2], b: [F8; 2]) -> [F8; 2] {
        both!(_mm256_mul_ps; a, b)
    }
    #[inline(always)]
    fn div(self, a: [F8; 2], b: [F8; 2]) -> [F8; 2] {
        both!(_mm256_div_ps; a, b)
    }
    #[inline(always)]
    fn fma(self, a: [F8; 2], b: [F8; 2], c: [F8; 2]) -> [F8; 2] {
        op!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: [F8; 2], b: [F8; 2]) -> [F8; 2] {
        both!(_mm256_max_ps; a, b)
    }
    #[inline(always)]
    fn min(self, a: [F8; 2], b: [F8; 2]) -> [F8; 2] {
        both!(_mm256_min_ps; a, b)
    }
    #[inline(always)]
    fn select_lt(self, a: [F8; 2], b: [F8; 2], x: [F8; 2], y: [F8; 2]) -> [F8; 2] {
        op!([
            _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
            _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]))
        ])
    }
    #[inline(always)]
    fn to_array(self, a: [F8; 2]) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        op!(self.store(out.as_mut_ptr(), a));
        out
    }
    #[inline(always)]
    fn from_array(self, a: [f32; LANES]) -> [F8; 2] {
        op!(self.load(a.as_ptr()))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [F8; 2] {
        op!([_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))])
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: [F8; 2]) {
        op!({
            _mm256_storeu_ps(p, a[0]);
            _mm256_storeu_ps(p.add(8), a[1]);
        });
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> [F8; 2] {
        op!([
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))
        ])
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> [F8; 2] {
        op!([
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(
                p.cast()
            )))),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(
                p.add(8).cast()
            ))))
        ])
    }
    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const u8) -> [F8; 2] {
        let h = op!(e4m3_halves(_mm_loadu_si128(p.cast())));
        let low = op!(_mm256_cvtph_ps(_mm256_castsi256_si128(h)));
        let high = op!(_mm256_cvtph_ps(_mm256_extracti128_si256::<1>(h)));
        self.mul([low, high], self.splat(E4M3_HALVES))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, a: [F8; 2]) {
        let h = both!(_mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>; a);
        op!({
            _mm_storeu_si128(p.cast(), h[0]);
            _mm_storeu_si128(p.add(8).cast(), h[1]);
        });
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, a: [F8; 2]) {
        for (i, x) in self.to_array(a).into_iter().enumerate() {
            op!(p.add(i).write_unaligned(bf16_bits(x)));
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> [I8; 2] {
        op!({
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(v))]
        })
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> [I8; 2] {
        op!({
            let v = _mm_loadu_si128(p.cast());
            [_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v))]
        })
    }
    #[inline(always)]
    unsafe fn iload(self, p: *const u8) -> [I8; 2] {
        op!([_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())])
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()));
    }
    #[inline(always)]
    fn isplat(self, x: i32) -> [I8; 2] {
        [op!(_mm256_set1_epi32(x)); 2]
    }
    #[inline(always)]
    fn iadd(self, a: [I8; 2], b: [I8; 2]) -> [I8; 2] {
        both!(_mm256_add_epi32; a, b)
    }
    #[inline(always)]
    fn isub(self, a: [I8; 2], b: [I8; 2]) -> [I8; 2] {
        both!(_mm256_sub_epi32; a, b)
    }
    #[inline(always)]
    fn iand(self, a: [I8; 2], b: [I8; 2]) -> [I8; 2] {
        both!(_mm256_and_si256; a, b)
    }
    #[inline(always)]
    fn ior(self, a: [I8; 2], b: [I8; 2]) -> [I8; 2] {
        both!(_mm256_or_si256; a, b)
    }
    #[inline(always)]
    fn umax(self, a: [I8; 2], b: [I8; 2]) -> [I8; 2] {
        both!(_mm256_max_epu32; a, b)
    }
    #[inline(always)]
    fn ishl<const N: u32>(self, a: [I8; 2]) -> [I8; 2] {
        let n = op!(_mm_cvtsi32_si128(N as i32));
        op!([_mm256_sll_epi32(a[0], n), _mm256_sll_epi32(a[1], n)])
    }
    #[inline(always)]
    fn ishr<const N: u32>(self, a: [I8; 2]) -> [I8; 2] {
        let n = op!(_mm_cvtsi32_si128(N as i32));
        op!([_mm256_srl_epi32(a[0], n), _mm256_srl_epi32(a[1], n)])
    }
    #[inline(always)]
    fn isar<const N: u32>(self, a: [I8; 2]) -> [I8; 2] {
        let n = op!(_mm_cvtsi32_si128(N as i32));
        op!([_mm256_sra_epi32(a[0], n), _mm256_sra_epi32(a[1], n)])
    }
    #[inline(always)]
    fn lut16(self, table: &[u8; 16], idx: [I8; 2]) -> [I8; 2] {
        op!({
            let t = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(t, idx[0]), _mm256_shuffle_epi8(t, idx[1])]
        })
    }
    #[inline(always)]
    fn to_f(self, a: [I8; 2]) -> [F8; 2] {
        both!(_mm256_cvtepi32_ps; a)
    }
    #[inline(always)]
    fn to_i(self, a: [F8; 2]) -> [I8; 2] {
        both!(_mm256_cvtps_epi32; a)
    }
    #[inline(always)]
    fn bits(self, a: [F8; 2]) -> [I8; 2] {
        both!(_mm256_castps_si256; a)
    }
    #[inline(always)]
    fn from_bits(self, a: [I8; 2]) -> [F8; 2] {
        both!(_mm256_castsi256_ps; a)
    }
    #[inline(always)]
    fn ito_array(self, a: [I8; 2]) -> [i32; LANES] {
        let mut out = [0i32; LANES];
        op!({
            _mm256_storeu_si256(out.as_mut_ptr().cast(), a[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), a[1]);
        });
        out
    }

    #[inline(always)]
    fn umax_lane(self, a: [I8; 2]) -> u32 {
        self.ito_array(a).iter().fold(0, |m, &x| m.max(x.cast_unsigned()))
    }
    #[inline(always)]
    fn isum(self, a: [I8; 2]) -> i32 {
        op!({
            let v = _mm256_add_epi32(a[0], a[1]);
            let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b1110>(v));
            _mm_cvtsi128_si32(v) + _mm_extract_epi32::<1>(v)
        })
    }

    #[inline(always)]
    fn acc_zero(self) -> [[I8; 2]; 2] {
        [[op!(_mm256_setzero_si256()); 2]; 2]
    }
    #[inline(always)]
    fn acc_splat(self, high: i32, low: i32) -> [[I8; 2]; 2] {
        [self.isplat(high), self.isplat(low)]
    }
    #[inline(always)]
    unsafe fn acc_dot(
        self,
        acc: [[I8; 2]; 2],
        codes: [I8; 2],
        record: *const u8,
        step: usize,
    ) -> [[I8; 2]; 2] {
        let mut acc = acc;
        op!({
            let x = record.add(8 * step).cast::<i32>();
            let (h02, h13) = (x.read_unaligned(), x.add(1).read_unaligned());
            let (l02, l13) = (x.add(16).read_unaligned(), x.add(17).read_unaligned());
            for i in 0..2 {
                let even = _mm256_and_si256(codes[i], _mm256_set1_epi32(0x00ff_00ff));
                let odd = _mm256_srli_epi16::<8>(codes[i]);
                let h = _mm256_add_epi32(
                    _mm256_madd_epi16(even, _mm256_set1_epi32(h02)),
                    _mm256_madd_epi16(odd, _mm256_set1_epi32(h13)),
                );
                let l = _mm256_add_epi32(
                    _mm256_madd_epi16(even, _mm256_set1_epi32(l02)),
                    _mm256_madd_epi16(odd, _mm256_set1_epi32(l13)),
                );
                acc[0][i] = _mm256_add_epi32(acc[0][i], h);
                acc[1][i] = _mm256_add_epi32(acc[1][i], l);
            }
        });
        acc
    }
    #[inline(always)]
    fn acc_finish(self, acc: [[I8; 2]; 2]) -> [F8; 2] {
        self.fma(self.to_f(acc[0]), self.splat(256.0), self.to_f(acc[1]))
    }
    #[inline(always)]
    unsafe fn put_limbs(self, record: *mut u8, half: usize, x: [I8; 2]) {
        let low = self.isar::<24>(self.ishl::<24>(x));
        let high = self.ito_array(self.isar::<8>(self.isub(x, low)));
        let low = self.ito_array(low);
        op!({
            let p = record.cast::<i16>().add(16 * half);
            for i in 0..LANES {
                let at = (i & !3) + [0, 2, 1, 3][i & 3];
                p.add(at).write_unaligned(high[i] as i16);
                p.add(PLANE / 2 + at).write_unaligned(low[i] as i16);
            }
        });
    }
}
