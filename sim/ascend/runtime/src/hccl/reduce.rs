//! Combining the ranks' elements in the order of ranks, 16-bit floats in f32 with one rounding at the end.

use half::{bf16, f16};

/// `HcclReduceOp`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Sum,
    Prod,
    Max,
    Min,
}

impl Op {
    pub(crate) fn named(number: u32) -> Option<Self> {
        [Self::Sum, Self::Prod, Self::Max, Self::Min].get(number as usize).copied()
    }
}

/// Bytes of an `HcclDataType`'s element.
pub(crate) fn element_bytes(dtype: u32) -> Option<usize> {
    match dtype {
        0 | 7 | 14..=17 => Some(1),
        1 | 3 | 8 | 11 => Some(2),
        2 | 4 | 9 => Some(4),
        5 | 6 | 10 => Some(8),
        12 => Some(16),
        _ => None,
    }
}

/// Whether elements of this type are combined on a 910B: int8, int16, int32, int64, fp16, fp32, bf16; no products of int16 and bf16.
pub(crate) fn is_reducible(dtype: u32, op: Op) -> bool {
    match dtype {
        1 | 11 => op != Op::Prod,
        0 | 2 | 3 | 4 | 5 => true,
        _ => false,
    }
}

/// `parts`, all of one size, combined.
pub(crate) fn reduce(dtype: u32, op: Op, parts: &[&[u8]]) -> Vec<u8> {
    match dtype {
        0 => whole::<1>(op, parts, |b| i8::from_le_bytes(b).into(), |v| [v.to_le_bytes()[0]]),
        1 => whole(
            op,
            parts,
            |b| i16::from_le_bytes(b).into(),
            |v| {
                let [a, b, ..] = v.to_le_bytes();
                [a, b]
            },
        ),
        2 => whole(
            op,
            parts,
            |b| i32::from_le_bytes(b).into(),
            |v| {
                let [a, b, c, d, ..] = v.to_le_bytes();
                [a, b, c, d]
            },
        ),
        5 => whole(op, parts, i64::from_le_bytes, i64::to_le_bytes),
        3 => {
            float(op, parts, |b| f16::from_le_bytes(b).to_f32(), |v| f16::from_f32(v).to_le_bytes())
        }
        11 => float(
            op,
            parts,
            |b| bf16::from_le_bytes(b).to_f32(),
            |v| bf16::from_f32(v).to_le_bytes(),
        ),
        _ => float(op, parts, f32::from_le_bytes, f32::to_le_bytes),
    }
}

/// Whole numbers wrap.
fn whole<const N: usize>(
    op: Op,
    parts: &[&[u8]],
    read: impl Fn([u8; N]) -> i64,
    write: impl Fn(i64) -> [u8; N],
) -> Vec<u8> {
    let combine = match op {
        Op::Sum => i64::wrapping_add,
        Op::Prod => i64::wrapping_mul,
        Op::Max => i64::max,
        Op::Min => i64::min,
    };
    each(parts, read, combine, write)
}

fn float<const N: usize>(
    op: Op,
    parts: &[&[u8]],
    read: impl Fn([u8; N]) -> f32,
    write: impl Fn(f32) -> [u8; N],
) -> Vec<u8> {
    let combine: fn(f32, f32) -> f32 = match op {
        Op::Sum => |a, b| a + b,
        Op::Prod => |a, b| a * b,
        Op::Max => f32::max,
        Op::Min => f32::min,
    };
    each(parts, read, combine, write)
}

fn each<const N: usize, T: Copy>(
    parts: &[&[u8]],
    read: impl Fn([u8; N]) -> T,
    combine: fn(T, T) -> T,
    write: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    let Some((first, rest)) = parts.split_first() else { return Vec::new() };
    let mut sums: Vec<T> = first.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect();
    for part in rest {
        for (sum, chunk) in sums.iter_mut().zip(part.as_chunks::<N>().0) {
            *sum = combine(*sum, read(*chunk));
        }
    }
    sums.into_iter().flat_map(write).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_combined() {
        let bytes =
            |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let (a, b) = (bytes(&[1.0, -2.0]), bytes(&[3.0, 5.0]));
        for (op, wanted) in [
            (Op::Sum, [4.0, 3.0]),
            (Op::Prod, [3.0, -10.0]),
            (Op::Max, [3.0, 5.0]),
            (Op::Min, [1.0, -2.0]),
        ] {
            assert_eq!(reduce(4, op, &[&a, &b]), bytes(&wanted), "{op:?}");
        }
        assert_eq!(reduce(0, Op::Sum, &[&[100], &[100]]), [200]);
        let half = |v: f32| bf16::from_f32(v).to_le_bytes();
        assert_eq!(reduce(11, Op::Sum, &[&half(1.5), &half(2.0)]), half(3.5));
    }
}
