//! Sums, products and means of what the ranks of a communicator exchanged, in the order of ranks, in f32, rounded once.

use halyard_sdk::{DType, ReduceOp, Result};

use super::args::Kind;
use crate::driver::{Scalar, Stream, Tensor};

/// Elements of all ranks, one rank after the other, and where the result goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Combination {
    /// Aligned memory of the ranks' parts.
    pub(crate) parts: u64,
    /// Aligned memory for `count` numbers in f32.
    pub(crate) sums: u64,
    /// Aligned memory, and bytes from there.
    pub(crate) out: (u64, u64),
    /// Elements of each rank.
    pub(crate) count: u64,
    pub(crate) ranks: u32,
    /// f32, f16 or bf16.
    pub(crate) dtype: DType,
    /// `SUM`, `PROD` or `AVG`.
    pub(crate) op: ReduceOp,
}

/// Enqueues it: the memory is the caller's until the stream has reached this point.
pub(crate) fn combine(on: &Stream, c: &Combination) -> Result<()> {
    let kind = Kind::of(c.dtype)?;
    let count = c.count.cast_signed();
    let row = |kind: Kind, base, first| {
        Tensor::new((kind.number(), kind.bytes()), &[count], &[1], (base, first))
    };
    let sums = row(Kind::F32, c.sums, 0);
    let first = row(kind, c.parts, 0);
    enqueue!(on, InplaceCopy(&sums, &first))?;
    let one = Scalar::float(1.0);
    for rank in 1..i64::from(c.ranks) {
        let part = row(kind, c.parts, rank * count);
        if c.op == ReduceOp::PROD {
            enqueue!(on, Mul(&sums, &part, &sums))?;
        } else {
            enqueue!(on, InplaceAdd(&sums, &part, &one))?;
        }
    }
    if c.op == ReduceOp::AVG {
        let share = Scalar::float(1.0 / c.ranks as f32);
        enqueue!(on, Muls(&sums, &share, &sums))?;
    }
    let (base, offset) = c.out;
    let out = row(kind, base, offset.cast_signed() / kind.bytes());
    enqueue!(on, InplaceCopy(&out, &sums))
}
