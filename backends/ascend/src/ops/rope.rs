//! ROPE. Angles and products are in f32, whatever the activations are.

use halyard_sdk::{
    Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    index::{index_bytes, indices, select},
};
use crate::driver::{self, Scalar};

/// `mode` of `RotaryPositionEmbedding`: pairs half a width apart.
const HALVES: i64 = 0;
/// `mode` of `RotaryPositionEmbedding`: neighbours.
const NEIGHBOURS: i64 = 1;

/// Largest number of rotated dims.
const MAX_WIDTH: i64 = 894;

struct Rope {
    interleaved: bool,
    offset: i64,
    width: i64,
    /// The installed release has the operator; otherwise products and sums do.
    fused: bool,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Rope { interleaved, offset } = op.attrs()?;
    op.floats(&[0, 1])?;
    let width = op.dim(Sym::R);
    if !(2..=MAX_WIDTH).contains(&width) {
        return Err(op.refuse(format!("{width} rotated dims; supported: 2 to {MAX_WIDTH}")));
    }
    let fused = driver::start()?.operators.RotaryPositionEmbedding.is_some();
    Ok(Box::new(Rope { interleaved, offset, width, fused }))
}

impl Rope {
    /// Half a row of the table to both members of each pair: `[1, T, 1, R]`.
    fn spread(&self, args: &Args<'_>, half: &Place) -> Result<Place> {
        let (tokens, pairs) = (half.dims[0], self.width / 2);
        let full = args.scratch(Kind::F32, &[1, tokens, 1, self.width])?;
        let step = half.strides[0];
        let (to, from) = if self.interleaved {
            (full.reshaped(&[tokens, pairs, 2]), half.seen(&[tokens, pairs, 1], &[step, 1, 1]))
        } else {
            (full.reshaped(&[tokens, 2, pairs]), half.seen(&[tokens, 1, pairs], &[step, pairs, 1]))
        };
        args.copy(&to, &from)?;
        Ok(full)
    }

    /// First and second members of all pairs.
    fn members(&self, x: &Place) -> [Place; 2] {
        let pairs = self.width / 2;
        if !self.interleaved {
            return [x.slice(2, 0, pairs), x.slice(2, pairs, pairs)];
        }
        [0, 1].map(|first| {
            let mut member = x.slice(2, first, pairs);
            member.strides[2] *= 2;
            member
        })
    }

    fn fused(&self, args: &Args<'_>, x: &Place, [cos, sin]: [&Place; 2], to: &Place) -> Result<()> {
        let dims = [1, x.dims[0], x.dims[1], self.width];
        let mode = if self.interleaved { NEIGHBOURS } else { HALVES };
        let (cos, sin) = (args.tensor(cos), args.tensor(sin));
        let (from, to) = (args.tensor(&x.reshaped(&dims)), args.tensor(&to.reshaped(&dims)));
        enqueue!(args.on, RotaryPositionEmbedding(&from, &cos, &sin, mode, &to))
    }

    fn composed(
        &self,
        args: &Args<'_>,
        x: &Place,
        [cos, sin]: [&Place; 2],
        to: &Place,
    ) -> Result<()> {
        let across = |half: &Place| {
            let (rows, step) = (half.dims[0], half.strides[0]);
            args.tensor(&half.seen(&[rows, 1, half.dims[1]], &[step, half.dims[1], 1]))
        };
        let (cos, sin) = (across(cos), across(sin));
        let [first, second] = self.members(to);
        let product = args.scratch(Kind::F32, &first.dims)?;
        let one = Scalar::float(1.0);
        let ([a, b], product) = (self.members(x), args.tensor(&product));
        let (a, b) = (args.tensor(&a), args.tensor(&b));
        let (first, second) = (args.tensor(&first), args.tensor(&second));
        enqueue!(args.on, Mul(&a, &cos, &first))?;
        enqueue!(args.on, Mul(&b, &sin, &product))?;
        enqueue!(args.on, Sub(&first, &product, &one, &first))?;
        enqueue!(args.on, Mul(&b, &cos, &second))?;
        enqueue!(args.on, Mul(&a, &sin, &product))?;
        enqueue!(args.on, Add(&second, &product, &one, &second))
    }

    fn rotate(
        &self,
        args: &Args<'_>,
        x: &Place,
        (angles, none): ([&Place; 2], &Place),
    ) -> Result<()> {
        let part = x.slice(2, self.offset, self.width);
        let wide = args.cast(&part, Kind::F32)?;
        let turned = args.scratch(Kind::F32, &part.dims)?;
        if self.fused {
            self.fused(args, &wide, angles, &turned)?;
        } else {
            self.composed(args, &wide, angles, &turned)?;
        }
        // A row without a position stays.
        let kept = args.scratch(Kind::F32, &part.dims)?;
        args.choose(&none.column().column(), [&wide, &turned], &kept)?;
        args.copy(&part, &kept)
    }
}

impl Launch for Rope {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let tokens = shapes.first().map_or(0, |s| s.dims[0]);
        let heads =
            |slot: usize| shapes.get(slot).filter(|s| !s.is_none()).map_or(0, |s| s.dims[1]);
        let rotated = |slot| 4 * scratch_bytes(Kind::F32, &[tokens, heads(slot), self.width]);
        let tables = 3 * scratch_bytes(Kind::F32, &[tokens, self.width]);
        index_bytes(tokens) + tables + rotated(0) + rotated(1)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (q, k, pos) = (args.place(0)?, args.optional(1)?, args.place(2)?);
        let table = args.place(3)?;
        let tokens = pos.dims[0];
        if tokens == 0 || table.is_empty() {
            return Ok(());
        }
        let at = indices(args, &pos)?;
        let rows = args.scratch(Kind::F32, &[tokens, self.width])?;
        select(args, &table, &at.at, &rows)?;
        let pairs = self.width / 2;
        let [cos, sin] = [rows.slice(1, 0, pairs), rows.slice(1, pairs, pairs)];
        let angles = if self.fused {
            [self.spread(args, &cos)?, self.spread(args, &sin)?]
        } else {
            [cos, sin]
        };
        let angles = [&angles[0], &angles[1]];
        for x in [Some(q), k].into_iter().flatten().filter(|x| !x.is_empty()) {
            self.rotate(args, &x, (angles, &at.none))?;
        }
        Ok(())
    }
}
