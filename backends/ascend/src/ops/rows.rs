//! GATHER_ROWS, EMBEDDING.

use halyard_sdk::{DType, Result, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    index::{index_bytes, indices, negative, put, put_index, select},
};
use crate::{driver::Scalar, weights::Form};

fn count(shapes: &[TensorSpec], slot: usize) -> i64 {
    shapes.get(slot).map_or(0, |s| s.dims[0])
}

struct Gather;

pub(super) fn gather(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::GatherRows {} = op.attrs()?;
    op.floats(&[0, 2])?;
    Ok(Box::new(Gather))
}

impl Launch for Gather {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        index_bytes(count(shapes, 1))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, ids, y) = (args.place(0)?, args.place(1)?, args.place(2)?);
        if y.is_empty() {
            return Ok(());
        }
        if x.is_empty() {
            // No index can name a row.
            let y = args.tensor(&y);
            return enqueue!(args.on, InplaceZero(&y));
        }
        let ids = indices(args, &ids)?;
        select(args, &x, &ids.at, &y)?;
        put(args, &y, &ids.none.column(), 0.0)
    }
}

struct Embedding {
    scale: f32,
    start: i64,
    width: i64,
    /// Rows go to `y` as they are.
    direct: bool,
    dtype: DType,
}

pub(super) fn embedding(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Embedding { scale, vocab_start } = op.attrs()?;
    op.floats(&[1])?;
    let weight = &op.weights[0];
    if weight.form != Form::Dense {
        return Err(
            op.refuse(format!("a table of {}; supported: dense", op.desc.weights[0].scheme))
        );
    }
    let direct = scale.to_bits() == 1f64.to_bits() && weight.dtype == op.dtype(1);
    Ok(Box::new(Embedding {
        scale: scale as f32,
        start: vocab_start,
        width: weight.k,
        direct,
        dtype: weight.dtype,
    }))
}

impl Embedding {
    /// Indices into the table, and where there is no row.
    fn rows(&self, args: &Args<'_>, ids: &Place, rows: i64) -> Result<(Place, [Place; 2])> {
        let at = args.cast(ids, Kind::I64)?;
        let left = args.scratch(Kind::I64, &at.dims)?;
        let (index, rest) = (args.tensor(&at), args.tensor(&left));
        let one = Scalar::int(1);
        let start = Scalar::int(-self.start);
        enqueue!(args.on, Adds(&index, &start, &one, &index))?;
        // Rows behind it: negative beyond the table.
        let minus = Scalar::int(-1);
        let last = Scalar::int(rows - 1);
        enqueue!(args.on, Muls(&index, &minus, &rest))?;
        enqueue!(args.on, Adds(&rest, &last, &one, &rest))?;
        let none = [negative(args, &at)?, negative(args, &left)?];
        for mask in &none {
            put_index(args, &at, mask)?;
        }
        Ok((at, none))
    }
}

impl Launch for Embedding {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let rows = count(shapes, 0);
        let wide = if self.direct { 0 } else { 2 * scratch_bytes(Kind::F32, &[rows, self.width]) };
        2 * index_bytes(rows) + wide
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (ids, y, w) = (args.place(0)?, args.place(1)?, args.weight(0)?);
        if y.is_empty() {
            return Ok(());
        }
        let table = Place::contiguous(w.start, Kind::of(self.dtype)?, &[w.n, w.k]);
        let (at, none) = self.rows(args, &ids, w.n)?;
        if self.direct {
            select(args, &table, &at, &y)?;
        } else {
            let chosen = args.scratch(table.kind, &y.dims)?;
            select(args, &table, &at, &chosen)?;
            let wide = args.cast(&chosen, Kind::F32)?;
            let tensor = args.tensor(&wide);
            let scale = Scalar::float(self.scale);
            enqueue!(args.on, Muls(&tensor, &scale, &tensor))?;
            args.copy(&y, &wide)?;
        }
        none.iter().try_for_each(|mask| put(args, &y, &mask.column(), 0.0))
    }
}
