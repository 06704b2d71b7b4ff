//! BATCHED_LINEAR: one matrix a group.

use halyard_sdk::{
    DType, Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, piece_bytes, scratch_bytes},
};

struct Batched {
    groups: i64,
    n: i64,
    k: i64,
    dtype: DType,
    /// The result must not be rounded to the operands' type: these are widened.
    widen: bool,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::BatchedLinear {} = op.attrs()?;
    op.floats(&[0, 1])?;
    let (x, y, w) = (op.dtype(0), op.dtype(1), &op.weights[0]);
    let widen = x != w.dtype || y != w.dtype;
    Ok(Box::new(Batched { groups: op.dim(Sym::G), n: w.n, k: w.k, dtype: w.dtype, widen }))
}

/// `[tokens, groups, width]` with the groups first.
fn by_group(rows: &Place) -> Place {
    rows.exchanged(0, 1)
}

/// `[groups, n, k]` with the columns first.
fn columns_first(w: &Place) -> Place {
    w.exchanged(1, 2)
}

impl Batched {
    /// Scratch bytes of a group's matrix.
    fn a_group(&self) -> i64 {
        self.n.saturating_mul(self.k).saturating_mul(4)
    }
}

impl Launch for Batched {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        if !self.widen {
            return 0;
        }
        let tokens = shapes.first().map_or(0, |s| s.dims[0]);
        scratch_bytes(Kind::F32, &[tokens, self.groups, self.k])
            + scratch_bytes(Kind::F32, &[tokens, self.groups, self.n])
            + piece_bytes(self.groups, self.a_group())
    }

    fn slow(&self) -> Option<&'static str> {
        self.widen.then_some(
            "the matrices are widened to f32 at each launch, for a result that is rounded once",
        )
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y, w) = (args.place(0)?, args.place(1)?, args.weight(0)?);
        if y.is_empty() {
            return Ok(());
        }
        let w = Place::contiguous(w.start, Kind::of(self.dtype)?, &[self.groups, w.n, w.k]);
        if !self.widen {
            return args.batched(&by_group(&x), &columns_first(&w), &by_group(&y));
        }
        let wide = args.cast(&x, Kind::F32)?;
        let out = args.scratch(Kind::F32, &y.dims)?;
        args.in_pieces(self.groups, self.a_group(), |first, groups| {
            let w = args.cast(&w.slice(0, first, groups), Kind::F32)?;
            let (x, out) = (wide.slice(1, first, groups), out.slice(1, first, groups));
            args.batched(&by_group(&x), &columns_first(&w), &by_group(&out))
        })?;
        args.copy(&y, &out)
    }
}
