//! Combining the ranks' elements: in the order of ranks, 8- and 16-bit floats in f32 with one rounding at the end.

use half::{bf16, f16};
use halyard_abi::{DType, ReduceOp, fp8};

/// Elements combined at a time, so that the loop over ranks is outside that over elements.
const BLOCK: usize = 256;

/// `out = op over ranks of part(rank)`; all are `out.len()` bytes of `dtype`.
///
/// # Panics
/// For a dtype or a reduction that the rules of `halyard_abi::collective` refuse; if a part is shorter.
pub fn reduce<'a>(
    dtype: DType,
    op: ReduceOp,
    world: u32,
    part: &dyn Fn(u32) -> &'a [u8],
    out: &mut [u8],
) {
    let job = Job { op, world, part };
    match dtype {
        DType::F32 => job.run(out, f32::from_le_bytes, f32::to_le_bytes),
        DType::F16 => job.run(
            out,
            |b| f16::from_le_bytes(b).to_f32(),
            |v: f32| f16::from_f32(v).to_le_bytes(),
        ),
        DType::BF16 => job.run(
            out,
            |b| bf16::from_le_bytes(b).to_f32(),
            |v: f32| bf16::from_f32(v).to_le_bytes(),
        ),
        DType::F8E4M3 => {
            job.run(out, |[b]| fp8::e4m3_to_f32(b), |v: f32| [fp8::e4m3_from_f64(f64::from(v))]);
        }
        DType::F8E5M2 => {
            job.run(out, |[b]| fp8::e5m2_to_f32(b), |v: f32| [fp8::e5m2_from_f64(f64::from(v))]);
        }
        DType::I8 => job.run(out, i8::from_le_bytes, i8::to_le_bytes),
        DType::U8 => job.run(out, u8::from_le_bytes, u8::to_le_bytes),
        DType::I32 => job.run(out, i32::from_le_bytes, i32::to_le_bytes),
        DType::I64 => job.run(out, i64::from_le_bytes, i64::to_le_bytes),
        DType::U32 => job.run(out, u32::from_le_bytes, u32::to_le_bytes),
        DType::U64 => job.run(out, u64::from_le_bytes, u64::to_le_bytes),
        other => unreachable!("{other} was refused before"),
    }
}

/// A number in the form it is combined in.
trait Number: Copy + Default {
    /// Integers wrap.
    fn sum(self, other: Self) -> Self;
    /// Integers wrap.
    fn product(self, other: Self) -> Self;
    /// A NaN wins.
    fn smaller(self, other: Self) -> Self;
    /// A NaN wins.
    fn larger(self, other: Self) -> Self;
    /// Floats only: integers have no mean.
    fn divided(self, by: u32) -> Self;
}

impl Number for f32 {
    fn sum(self, other: Self) -> Self {
        self + other
    }
    fn product(self, other: Self) -> Self {
        self * other
    }
    fn smaller(self, other: Self) -> Self {
        if self.is_nan() || self <= other { self } else { other }
    }
    fn larger(self, other: Self) -> Self {
        if self.is_nan() || self >= other { self } else { other }
    }
    fn divided(self, by: u32) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a number of ranks")]
        let by = by as f32;
        self / by
    }
}

macro_rules! integers {
    ($($ty:ty)*) => {$(
        impl Number for $ty {
            fn sum(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn product(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn smaller(self, other: Self) -> Self {
                self.min(other)
            }
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            fn divided(self, _by: u32) -> Self {
                unreachable!("a mean of integers was refused before")
            }
        }
    )*};
}
integers!(i8 u8 i32 i64 u32 u64);

struct Job<'p, 'a> {
    op: ReduceOp,
    world: u32,
    part: &'p dyn Fn(u32) -> &'a [u8],
}

impl Job<'_, '_> {
    fn run<N: Number, const BYTES: usize>(
        &self,
        out: &mut [u8],
        load: impl Fn([u8; BYTES]) -> N + Copy,
        store: impl Fn(N) -> [u8; BYTES],
    ) {
        for (block, out) in out.chunks_mut(BLOCK * BYTES).enumerate() {
            let from = block * BLOCK * BYTES;
            let numbers = |rank| {
                let bytes = &(self.part)(rank)[from..from + out.len()];
                bytes.as_chunks::<BYTES>().0.iter().map(move |b| load(*b))
            };
            let mut sums = [N::default(); BLOCK];
            let sums = &mut sums[..out.len() / BYTES];
            sums.iter_mut().zip(numbers(0)).for_each(|(sum, x)| *sum = x);
            for rank in 1..self.world {
                match self.op {
                    ReduceOp::PROD => merge(sums, numbers(rank), N::product),
                    ReduceOp::MIN => merge(sums, numbers(rank), N::smaller),
                    ReduceOp::MAX => merge(sums, numbers(rank), N::larger),
                    _ => merge(sums, numbers(rank), N::sum),
                }
            }
            if self.op == ReduceOp::AVG {
                sums.iter_mut().for_each(|sum| *sum = sum.divided(self.world));
            }
            for (place, sum) in out.as_chunks_mut::<BYTES>().0.iter_mut().zip(sums) {
                *place = store(*sum);
            }
        }
    }
}

fn merge<N: Number>(sums: &mut [N], numbers: impl Iterator<Item = N>, with: fn(N, N) -> N) {
    sums.iter_mut().zip(numbers).for_each(|(sum, x)| *sum = with(*sum, x));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(dtype: DType, op: ReduceOp, parts: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![0xee; parts[0].len()];
        reduce(dtype, op, parts.len() as u32, &|rank| &parts[rank as usize], &mut out);
        out
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn floats_are_summed_in_the_order_of_ranks() {
        let parts: Vec<_> = [1e8f32, -1e8, 1.0].iter().map(|&v| f32s(&[v])).collect();
        assert_eq!(reduced(DType::F32, ReduceOp::SUM, &parts), f32s(&[1.0]));
        let other: Vec<_> = [1e8f32, 1.0, -1e8].iter().map(|&v| f32s(&[v])).collect();
        assert_eq!(reduced(DType::F32, ReduceOp::SUM, &other), f32s(&[0.0]));
        assert_eq!(reduced(DType::F32, ReduceOp::AVG, &parts), f32s(&[1.0 / 3.0]));
    }

    #[test]
    fn short_floats_are_rounded_once() {
        // 256 + 1 + 1 in bf16 steps would stay 256; in f32 it is 258, a bf16.
        let part = |v: f32| bf16::from_f32(v).to_le_bytes().to_vec();
        let parts = [part(256.0), part(1.0), part(1.0)];
        assert_eq!(reduced(DType::BF16, ReduceOp::SUM, &parts), part(258.0));
        let part = |v: f64| vec![fp8::e4m3_from_f64(v)];
        let parts = [part(16.0), part(1.0), part(1.0)];
        assert_eq!(reduced(DType::F8E4M3, ReduceOp::SUM, &parts), part(18.0));
        assert_eq!(reduced(DType::F8E4M3, ReduceOp::PROD, &[part(400.0), part(2.0)]), part(448.0));
    }

    #[test]
    fn nan_wins_and_integers_wrap() {
        let parts = [f32s(&[1.0, f32::NAN, 3.0]), f32s(&[f32::NAN, 2.0, -3.0])];
        for op in [ReduceOp::MIN, ReduceOp::MAX] {
            let got = reduced(DType::F32, op, &parts);
            let got: Vec<f32> = got.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert!(got[0].is_nan() && got[1].is_nan(), "{op}: {got:?}");
            assert_eq!(got[2].to_bits(), (if op == ReduceOp::MIN { -3f32 } else { 3.0 }).to_bits());
        }
        assert_eq!(reduced(DType::U8, ReduceOp::SUM, &[vec![200], vec![100]]), [44]);
        assert_eq!(reduced(DType::I8, ReduceOp::MIN, &[vec![0x80], vec![1]]), [0x80]);
        assert_eq!(reduced(DType::U8, ReduceOp::MIN, &[vec![0x80], vec![1]]), [1]);
    }

    #[test]
    fn every_block_is_combined() {
        let values: Vec<i32> = (0..2 * BLOCK as i32 + 3).collect();
        let bytes = |f: &dyn Fn(i32) -> i32| -> Vec<u8> {
            values.iter().flat_map(|&v| f(v).to_le_bytes()).collect()
        };
        let parts = [bytes(&|v| v), bytes(&|v| 1000 * v)];
        assert_eq!(reduced(DType::I32, ReduceOp::SUM, &parts), bytes(&|v| 1001 * v));
    }
}
