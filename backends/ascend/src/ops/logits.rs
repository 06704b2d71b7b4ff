//! ARGMAX, TOPK, LOGPROBS.

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, piece_bytes, scratch_bytes},
    index::{index_bytes, indices, put},
};

/// Scratch bytes of [`comparable`] for each logit.
pub(super) const COMPARABLE: i64 = 5;

/// Logits in f32 with -inf for NaN.
pub(super) fn comparable(args: &Args<'_>, x: &Place) -> Result<Place> {
    let wide = args.cast(x, Kind::F32)?;
    let number = args.scratch(Kind::BOOL, &x.dims)?;
    args.equal(&wide, &wide, &number)?;
    args.choose(&number, [&wide, &args.number(f32::NEG_INFINITY)?], &wide)?;
    Ok(wide)
}

fn rows_and_width(shapes: &[TensorSpec]) -> (i64, i64) {
    shapes.first().map_or((0, 0), |s| (s.dims[0], s.dims[1]))
}

struct Argmax;

pub(super) fn argmax(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Argmax {} = op.attrs()?;
    op.floats(&[0])?;
    Ok(Box::new(Argmax))
}

impl Launch for Argmax {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let (rows, width) = rows_and_width(shapes);
        piece_bytes(rows, width.saturating_mul(COMPARABLE))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y) = (args.place(0)?, args.place(1)?);
        args.in_pieces(y.dims[0], x.dims[1].saturating_mul(COMPARABLE), |first, rows| {
            let x = comparable(args, &x.slice(0, first, rows))?;
            let (x, y) = (args.tensor(&x), args.tensor(&y.slice(0, first, rows)));
            enqueue!(args.on, ArgMax(&x, -1, false, &y))
        })
    }
}

/// Scratch bytes of [`sorted`] for each logit, [`comparable`] included.
pub(super) const SORTED: i64 = COMPARABLE + 4 + 8;

/// Values in descending order, equal ones by their index, and their indices in i64.
pub(super) fn sorted(args: &Args<'_>, x: &Place) -> Result<(Place, Place)> {
    let values = args.scratch(Kind::F32, &x.dims)?;
    let at = args.scratch(Kind::I64, &x.dims)?;
    args.sort(x, &values, &at)?;
    Ok((values, at))
}

struct Topk;

pub(super) fn topk(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Topk {} = op.attrs()?;
    op.floats(&[0])?;
    let (top, all) = (op.dim(Sym::Top), op.dim(Sym::V));
    if all >= 0 && top > all {
        return Err(Error::invalid(format!("topk: the {top} largest of {all}")));
    }
    Ok(Box::new(Topk))
}

impl Launch for Topk {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let (rows, width) = rows_and_width(shapes);
        piece_bytes(rows, width.saturating_mul(SORTED))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, values, ids) = (args.place(0)?, args.place(1)?, args.place(2)?);
        let top = ids.dims[1];
        if top > x.dims[1] {
            return Err(Error::invalid(format!("topk: the {top} largest of {}", x.dims[1])));
        }
        if ids.is_empty() {
            return Ok(());
        }
        args.in_pieces(x.dims[0], x.dims[1].saturating_mul(SORTED), |first, rows| {
            let x = comparable(args, &x.slice(0, first, rows))?;
            let (found, at) = sorted(args, &x)?;
            args.copy(&values.slice(0, first, rows), &found.slice(1, 0, top))?;
            args.copy(&ids.slice(0, first, rows), &at.slice(1, 0, top))
        })
    }
}

struct Logprobs;

pub(super) fn logprobs(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Logprobs {} = op.attrs()?;
    op.floats(&[0])?;
    Ok(Box::new(Logprobs))
}

/// Scratch bytes for each logit: it in f32, and its logarithm.
const LOGARITHM: i64 = 8;

impl Launch for Logprobs {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let (rows, width) = rows_and_width(shapes);
        let listed = shapes.get(1).map_or(0, |s| s.dims[0].saturating_mul(s.dims[1]));
        piece_bytes(rows, width.saturating_mul(LOGARITHM))
            + index_bytes(listed)
            + scratch_bytes(Kind::F32, &[listed])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, ids, y) = (args.place(0)?, args.place(1)?, args.place(2)?);
        if y.is_empty() {
            return Ok(());
        }
        let ids = indices(args, &ids)?;
        let found = args.scratch(Kind::F32, &y.dims)?;
        args.in_pieces(x.dims[0], x.dims[1].saturating_mul(LOGARITHM), |first, rows| {
            let wide = args.cast(&x.slice(0, first, rows), Kind::F32)?;
            let logarithms = args.scratch(Kind::F32, &wide.dims)?;
            args.log_softmax(&wide, &logarithms)?;
            args.pick(&logarithms, &ids.at.slice(0, first, rows), &found.slice(0, first, rows))
        })?;
        put(args, &found, &ids.none, 0.0)?;
        args.copy(&y, &found)
    }
}
