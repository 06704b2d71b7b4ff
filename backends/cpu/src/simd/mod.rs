//! Sixteen lanes of `f32` or `i32`, and the one integer dot product the quantised kernels live on.
//!
//! Kernels are written once against [`Simd`] and compiled once per instruction set. An implementor is
//! a zero-sized token: holding one proves that the processor has the instructions, so arithmetic is
//! safe to call and only memory access stays `unsafe`. Every method is `#[inline(always)]`, so that
//! the whole kernel ends up inside the `#[target_feature]` function that [`crate::isa`] dispatches to.
//!
//! Sixteen lanes on every instruction set (AVX2 uses two registers for one vector) keeps one packed
//! weight format and one order of arithmetic for all of them.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod math;
pub(crate) mod portable;

use crate::isa::Op;

/// Whether a list of tile widths has one: decides at compile time which kernels an instruction set gets.
pub(crate) const fn has(tiles: &[usize], width: usize) -> bool {
    let mut i = 0;
    while i < tiles.len() {
        if tiles[i] == width {
            return true;
        }
        i += 1;
    }
    false
}

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Where the per-block scalars of an activation record start; see [`crate::gemm::prep`].
pub(crate) const TAIL_BYTES: usize = 32;

/// Sixteen-lane arithmetic of one instruction set.
///
/// Pointer arguments need no alignment unless said otherwise.
#[expect(clippy::wrong_self_convention, reason = "`self` is the token of the instruction set")]
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`, also seen as sixteen groups of four bytes.
    type I: Copy;
    /// Running exact sums of code times activation for sixteen rows.
    type Acc: Copy;

    /// Bytes of one token's record of 32 activations: limbs, then [`TAIL_BYTES`] of scalars.
    const RECORD_BYTES: usize;
    /// Token tile widths of the quantised kernel, widest first; the last is 1.
    const QUANT_TILES: &'static [usize];
    /// Token tile widths of the dense kernel, widest first; the last is 1.
    const DENSE_TILES: &'static [usize];

    /// Panels the dense kernel takes together for few tokens: 1 or 4.
    const DENSE_PANELS: usize;
    /// Row tile widths of the attention kernel, widest first; the last is 1.
    const ROW_TILES: &'static [usize];
    /// Vectors of running sums that fit the registers beside what feeds them.
    const TILE_VECTORS: usize;

    /// Runs `op` as a function of its own: what is not inlined into its caller compiles once, however
    /// many callers it has.
    fn call<O: Op>(self, op: O) -> O::Out;

    fn splat(self, x: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the instruction set fuses.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Lane-wise `a > b ? a : b`, so a NaN in `b` survives.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lane-wise `a < b ? a : b`, so a NaN in `b` survives.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lane-wise `a < b ? x : y`.
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// The lanes as an array.
    fn to_array(self, a: Self::F) -> [f32; LANES];
    /// A vector of the array's lanes.
    fn from_array(self, a: [f32; LANES]) -> Self::F;

    /// # Safety
    /// `p` is readable for 64 bytes.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// # Safety
    /// `p` is writable for 64 bytes.
    unsafe fn store(self, p: *mut f32, a: Self::F);
    /// Sixteen IEEE halves, widened.
    /// # Safety
    /// `p` is readable for 32 bytes.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Sixteen bfloat16, widened.
    /// # Safety
    /// `p` is readable for 32 bytes.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Sixteen f8e4m3, widened.
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn load_e4m3(self, p: *const u8) -> Self::F;
    /// Rounds to nearest even.
    /// # Safety
    /// `p` is writable for 32 bytes.
    unsafe fn store_f16(self, p: *mut u16, a: Self::F);
    /// Rounds to nearest even; NaN stays NaN.
    /// # Safety
    /// `p` is writable for 32 bytes.
    unsafe fn store_bf16(self, p: *mut u16, a: Self::F);
    /// Sixteen unsigned bytes as integers.
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn load_u8(self, p: *const u8) -> Self::I;
    /// Sixteen signed bytes as integers.
    /// # Safety
    /// `p` is readable for 16 bytes.
    unsafe fn load_i8(self, p: *const i8) -> Self::I;
    /// # Safety
    /// `p` is readable for 64 bytes.
    unsafe fn iload(self, p: *const u8) -> Self::I;

    /// Asks for the cache line at `p`, which may be any address.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        let _ = p;
    }

    fn isplat(self, x: i32) -> Self::I;
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I;
    fn isub(self, a: Self::I, b: Self::I) -> Self::I;
    fn iand(self, a: Self::I, b: Self::I) -> Self::I;
    fn ior(self, a: Self::I, b: Self::I) -> Self::I;
    /// Unsigned lane-wise maximum.
    fn umax(self, a: Self::I, b: Self::I) -> Self::I;
    fn ishl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Logical shift right.
    fn ishr<const N: u32>(self, a: Self::I) -> Self::I;
    /// Arithmetic shift right.
    fn isar<const N: u32>(self, a: Self::I) -> Self::I;
    /// Each byte of `idx` (0..16) replaced by that byte of `table`.
    fn lut16(self, table: &[u8; 16], idx: Self::I) -> Self::I;
    fn to_f(self, a: Self::I) -> Self::F;
    /// Rounds to nearest even. Out-of-range lanes are unspecified.
    fn to_i(self, a: Self::F) -> Self::I;
    fn bits(self, a: Self::F) -> Self::I;
    fn from_bits(self, a: Self::I) -> Self::F;
    fn ito_array(self, a: Self::I) -> [i32; LANES];

    /// Sums of nothing.
    fn acc_zero(self) -> Self::Acc;
    /// Sums that start at `256 * high + low` in every lane.
    fn acc_splat(self, high: i32, low: i32) -> Self::Acc;
    /// Adds, for each lane, the four unsigned byte codes of `codes` times activations
    /// `4 * step .. 4 * step + 4` of the record.
    /// # Safety
    /// `record` is readable for [`Self::RECORD_BYTES`] and `step < 8`.
    unsafe fn acc_dot(
        self,
        acc: Self::Acc,
        codes: Self::I,
        record: *const u8,
        step: usize,
    ) -> Self::Acc;
    /// The sum as one float, rounded once: `256 * high + low`.
    fn acc_finish(self, acc: Self::Acc) -> Self::F;
    /// Writes activations `16 * half ..` of a record, given as integers below 2^23 in magnitude.
    /// # Safety
    /// `record` is writable for [`Self::RECORD_BYTES`] and `half < 2`.
    unsafe fn put_limbs(self, record: *mut u8, half: usize, x: Self::I);
    /// `acc` plus, for each lane, the products of its two pairs of bfloat16. The instruction set's own
    /// instruction, if it has one, may take denormals as zero.
    #[inline(always)]
    fn bf16_dot(self, acc: Self::F, w: Self::I, x: Self::I) -> Self::F {
        bf16_dot_widened(self, acc, w, x)
    }
    /// Largest lane, as unsigned integers.
    fn umax_lane(self, a: Self::I) -> u32;
    /// Sum of the integer lanes.
    fn isum(self, a: Self::I) -> i32;

    /// Sum of the lanes, by halving: the same tree on every instruction set.
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        let v = self.to_array(a);
        let q: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let q: [f32; 4] = std::array::from_fn(|i| q[i] + q[i + 4]);
        (q[0] + q[2]) + (q[1] + q[3])
    }

    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut flat = [[0.0; LANES]; LANES];
        for (i, row) in rows.into_iter().enumerate() {
            for (column, x) in flat.iter_mut().zip(self.to_array(row)) {
                column[i] = x;
            }
        }
        let mut columns = rows;
        for (column, flat) in columns.iter_mut().zip(flat) {
            *column = self.from_array(flat);
        }
        columns
    }

    /// Largest lane.
    #[inline(always)]
    fn max_lane(self, a: Self::F) -> f32 {
        let v = self.to_array(a);
        v.iter().skip(1).fold(v[0], |m, &x| if x > m { x } else { m })
    }
}

/// [`Simd::bf16_dot`] in f32.
#[inline(always)]
fn bf16_dot_widened<S: Simd>(s: S, acc: S::F, w: S::I, x: S::I) -> S::F {
    let high = s.isplat(0xffff_0000_u32.cast_signed());
    let low = |v| s.from_bits(s.ishl::<16>(v));
    let acc = s.fma(low(w), low(x), acc);
    s.fma(s.from_bits(s.iand(w, high)), s.from_bits(s.iand(x, high)), acc)
}

/// Rounds to bfloat16, nearest even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let b = x.to_bits();
    if b & 0x7fff_ffff > 0x7f80_0000 {
        return ((b >> 16) | 0x40) as u16;
    }
    ((b + 0x7fff + ((b >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    struct Transpose;
    impl Op for Transpose {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            let number = |i: usize, j: usize| (LANES * i + j) as f32;
            let row = |i: usize| s.from_array(std::array::from_fn(|j| number(i, j)));
            let columns = s.transpose(std::array::from_fn(row));
            for (j, column) in columns.into_iter().enumerate() {
                assert_eq!(s.to_array(column), std::array::from_fn(|i| number(i, j)));
            }
        }
    }

    #[test]
    fn columns_become_rows() {
        Isa::all_available().into_iter().for_each(|isa| isa.dispatch(Transpose));
    }
}
