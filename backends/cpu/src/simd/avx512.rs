//! AVX-512 with VNNI: one register is one vector.

use super::avx2::{E4M3_HALVES, e4m3_halves};
use super::{LANES, Simd};
use crate::isa::Op;
use std::arch::x86_64::*;

/// Proof that the processor has `avx512f/bw/vl/dq/vnni`, `avx2`, `fma` and `f16c`; with `BF16` also
/// `avx512bf16`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    /// # Safety
    /// The processor has the features this type stands for.
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }
}

/// Balanced base-256 digits: activation = `65536 * limb2 + 256 * limb1 + limb0`, one plane each.
const PLANE: usize = 32;

/// Calls an intrinsic. Sound because `Avx512` proves the feature.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` proves that the processor has the instruction.
        unsafe { $e }
    };
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;
    type Acc = [__m512i; 3];

    const RECORD_BYTES: usize = 3 * PLANE + super::TAIL_BYTES;
    const QUANT_TILES: &'static [usize] = &[6, 4, 2, 1];
    const DENSE_TILES: &'static [usize] = &[12, 8, 4, 2, 1];
    const DENSE_PANELS: usize = 4;
    const ROW_TILES: &'static [usize] = &[6, 4, 3, 2, 1];
    const TILE_VECTORS: usize = 24;

    #[inline(always)]
    fn call<O: Op>(self, op: O) -> O::Out {
        if BF16 { op!(crate::isa::run_avx512_bf16(op)) } else { op!(crate::isa::run_avx512(op)) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }
    #[inline(always)]
    fn to_array(self, a: __m512) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        op!(_mm512_storeu_ps(out.as_mut_ptr(), a));
        out
    }
    #[inline(always)]
    fn from_array(self, a: [f32; LANES]) -> __m512 {
        op!(_mm512_loadu_ps(a.as_ptr()))
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        op!(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, a: __m512) {
        op!(_mm512_storeu_ps(p, a));
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
            _mm256_loadu_si256(p.cast())
        ))))
    }
    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const u8) -> __m512 {
        let h = op!(_mm512_cvtph_ps(e4m3_halves(_mm_loadu_si128(p.cast()))));
        self.mul(h, self.splat(E4M3_HALVES))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, a: __m512) {
        op!(_mm256_storeu_si256(
            p.cast(),
            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        ));
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, a: __m512) {
        op!({
            let b = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(b), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(b, _mm512_set1_epi32(0x40_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let r = _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, up, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(r));
        });
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512i {
        op!(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512i {
        op!(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }
    #[inline(always)]
    unsafe fn iload(self, p: *const u8) -> __m512i {
        op!(_mm512_loadu_si512(p.cast()))
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()));
    }
    #[inline(always)]
    fn isplat(self, x: i32) -> __m512i {
        op!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn iadd(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn isub(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn iand(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn ior(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn umax(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_max_epu32(a, b))
    }
    #[inline(always)]
    fn ishl<const N: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn ishr<const N: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_srli_epi32::<N>(a))
    }
    #[inline(always)]
    fn isar<const N: u32>(self, a: __m512i) -> __m512i {
        op!(_mm512_srai_epi32::<N>(a))
    }
    #[inline(always)]
    fn lut16(self, table: &[u8; 16], idx: __m512i) -> __m512i {
        op!(_mm512_shuffle_epi8(
            _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())),
            idx
        ))
    }
    #[inline(always)]
    fn to_f(self, a: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn to_i(self, a: __m512) -> __m512i {
        op!(_mm512_cvtps_epi32(a))
    }
    #[inline(always)]
    fn bits(self, a: __m512) -> __m512i {
        op!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn from_bits(self, a: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn ito_array(self, a: __m512i) -> [i32; LANES] {
        let mut out = [0; LANES];
        op!(_mm512_storeu_si512(out.as_mut_ptr().cast(), a));
        out
    }

    #[inline(always)]
    fn bf16_dot(self, acc: __m512, w: __m512i, x: __m512i) -> __m512 {
        if BF16 {
            // The types differ in name only.
            op!(_mm512_dpbf16_ps(
                acc,
                std::mem::transmute::<__m512i, __m512bh>(w),
                std::mem::transmute::<__m512i, __m512bh>(x)
            ))
        } else {
            super::bf16_dot_widened(self, acc, w, x)
        }
    }
    /// Pairs, then fours within 128-bit parts, then the parts.
    #[inline(always)]
    fn transpose(self, rows: [__m512; LANES]) -> [__m512; LANES] {
        let (mut pairs, mut fours, mut columns) = (rows, rows, rows);
        op!({
            for i in (0..LANES).step_by(2) {
                pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
            }
            for i in (0..LANES).step_by(4) {
                let p: [__m512d; 4] = std::array::from_fn(|k| _mm512_castps_pd(pairs[i + k]));
                fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p[0], p[2]));
                fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p[0], p[2]));
                fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(p[1], p[3]));
                fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(p[1], p[3]));
            }
            for k in 0..4 {
                let even_low = _mm512_shuffle_f32x4::<0x88>(fours[k], fours[4 + k]);
                let even_high = _mm512_shuffle_f32x4::<0x88>(fours[8 + k], fours[12 + k]);
                let odd_low = _mm512_shuffle_f32x4::<0xdd>(fours[k], fours[4 + k]);
                let odd_high = _mm512_shuffle_f32x4::<0xdd>(fours[8 + k], fours[12 + k]);
                columns[k] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
                columns[4 + k] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
                columns[8 + k] = _mm512_shuffle_f32x4::<0xdd>(even_low, even_high);
                columns[12 + k] = _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high);
            }
        });
        columns
    }
    #[inline(always)]
    fn umax_lane(self, a: __m512i) -> u32 {
        op!(_mm512_reduce_max_epu32(a))
    }
    #[inline(always)]
    fn isum(self, a: __m512i) -> i32 {
        op!(_mm512_reduce_add_epi32(a))
    }

    #[inline(always)]
    fn acc_zero(self) -> [__m512i; 3] {
        [op!(_mm512_setzero_si512()); 3]
    }
    #[inline(always)]
    fn acc_splat(self, high: i32, low: i32) -> [__m512i; 3] {
        [op!(_mm512_setzero_si512()), self.isplat(high), self.isplat(low)]
    }
    #[inline(always)]
    unsafe fn acc_dot(
        self,
        acc: [__m512i; 3],
        codes: __m512i,
        record: *const u8,
        step: usize,
    ) -> [__m512i; 3] {
        op!({
            let x = record.add(4 * step).cast::<i32>();
            [
                _mm512_dpbusd_epi32(acc[0], codes, _mm512_set1_epi32(x.read_unaligned())),
                _mm512_dpbusd_epi32(acc[1], codes, _mm512_set1_epi32(x.add(8).read_unaligned())),
                _mm512_dpbusd_epi32(acc[2], codes, _mm512_set1_epi32(x.add(16).read_unaligned())),
            ]
        })
    }
    #[inline(always)]
    fn acc_finish(self, acc: [__m512i; 3]) -> __m512 {
        let high = self.iadd(self.ishl::<8>(acc[0]), acc[1]);
        self.fma(self.to_f(high), self.splat(256.0), self.to_f(acc[2]))
    }
    #[inline(always)]
    unsafe fn put_limbs(self, record: *mut u8, half: usize, x: __m512i) {
        let low = self.isar::<24>(self.ishl::<24>(x));
        let x = self.isar::<8>(self.isub(x, low));
        let mid = self.isar::<24>(self.ishl::<24>(x));
        let high = self.isar::<8>(self.isub(x, mid));
        op!({
            let p = record.add(16 * half);
            _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(high));
            _mm_storeu_si128(p.add(PLANE).cast(), _mm512_cvtepi32_epi8(mid));
            _mm_storeu_si128(p.add(2 * PLANE).cast(), _mm512_cvtepi32_epi8(low));
        });
    }
}
