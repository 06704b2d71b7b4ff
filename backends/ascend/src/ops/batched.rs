//! BATCHED_LINEAR: one matrix a group.

use halyard_sdk::{Result, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    widen,
};
use crate::weights::{Form, Packed};

struct Batched {
    weight: Packed,
    /// Matrices of codes or of another type, or a result that must not be rounded to the operands' 16 bits.
    widen: bool,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::BatchedLinear {} = op.attrs()?;
    op.floats(&[0, 1])?;
    let weight = op.weights[0];
    let plain = weight.form == Form::Dense && [0, 1].iter().all(|&s| op.dtype(s) == weight.dtype);
    Ok(Box::new(Batched { weight, widen: !plain }))
}

/// `out = x Wᵀ` of groups: `[tokens, groups, width]` each, the matrices `[groups, n, k]`.
fn multiply(args: &Args<'_>, x: &Place, w: &Place, out: &Place) -> Result<()> {
    args.batched(&x.exchanged(0, 1), &w.exchanged(1, 2), &out.exchanged(0, 1))
}

impl Launch for Batched {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        if !self.widen {
            return 0;
        }
        let (tokens, w) = (shapes.first().map_or(0, |s| s.dims[0]), &self.weight);
        2 * scratch_bytes(Kind::F32, &[tokens, w.groups.max(2), w.k])
            + scratch_bytes(Kind::F32, &[tokens, w.groups, w.n])
            + widen::row_bytes(w, widen::rows_at_a_time(w))
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
        if !self.widen {
            let w = Place::contiguous(w.start, Kind::of(w.dtype)?, &[w.groups, w.n, w.k]);
            return multiply(args, &x, &w, &y);
        }
        let wide = args.cast(&x, Kind::F32)?;
        let out = args.scratch(Kind::F32, &y.dims)?;
        let (a_time, mark) = (widen::rows_at_a_time(&w), args.mark());
        for group in 0..w.groups {
            let (x, out) = (wide.slice(1, group, 1), out.slice(1, group, 1));
            let mut first = 0;
            while first < w.n {
                args.release(mark);
                let flat = x.seen(&[x.dims[0], w.k], &[x.strides[0], 1]);
                let x = widen::arranged(args, &w, group, &flat)?.spread(1);
                let rows = a_time.min(w.n - first);
                let part = widen::rows(args, &w, group, (first, rows))?.spread(0);
                multiply(args, &x, &part, &out.slice(2, first, rows))?;
                first += rows;
            }
        }
        args.copy(&y, &out)
    }
}
