//! GATHER_ROWS and EMBEDDING: `kernels/rows.cu`.

use halyard_sdk::{Error, Result, Scheme, abi::ops::attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, address, small},
    elementwise::grid,
    matrix::Matrix,
};
use crate::driver::{Function, Grid};

#[repr(C)]
#[derive(Clone, Copy)]
struct GatherParams {
    x: u64,
    y: u64,
    index: u64,
    x_stride: i64,
    y_stride: i64,
    x_rows: u32,
    cols: u32,
}

struct Gather(Function<GatherParams>);

pub(super) fn gather(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::GatherRows>()?;
    let bits = op.float(0)?.bytes() * 8;
    Ok(Prepared::native(Gather(op.kernel("rows", &format!("gather_rows_b{bits}"))?)))
}

impl Launch for Gather {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, index, y) = (args.view(0)?, args.view(1)?, args.view(2)?);
        let (rows, cols) = (small("rows", y.dims[0])?, small("columns", y.dims[1])?);
        let params = GatherParams {
            x: address(x),
            y: address(y),
            index: address(index),
            x_stride: x.strides[0],
            y_stride: y.strides[0],
            x_rows: small("rows", x.dims[0])?,
            cols,
        };
        args.enqueue(&self.0, grid(rows, cols)?, &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct EmbeddingParams {
    weight: u64,
    y: u64,
    ids: u64,
    weight_pitch: i64,
    y_stride: i64,
    first: i64,
    rows: u32,
    cols: u32,
    scale: f32,
}

struct Embedding {
    kernel: Function<EmbeddingParams>,
    first: i64,
    scale: f32,
}

pub(super) fn embedding(op: &Op<'_>) -> Result<Prepared> {
    let attrs::Embedding { scale, vocab_start } = op.attrs()?;
    let layout = op.layouts.first().ok_or_else(|| Error::invalid("embedding: no weight"))?;
    let (first, scale, y) = (vocab_start, scale as f32, op.float(1)?);
    let form = layout.kernel_name();
    if layout.scheme != Scheme::DENSE {
        let kernel = op.kernel("rows", &format!("embedding_{form}"))?;
        return Ok(Prepared::native(EmbeddingQuant { kernel, first, scale, y }));
    }
    let kernel = op.kernel("rows", &format!("embedding_{form}_{}", y.suffix()))?;
    Ok(Prepared::native(Embedding { kernel, first, scale }))
}

impl Launch for Embedding {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (ids, y) = (args.view(0)?, args.view(1)?);
        let weight = args.weight(0)?;
        let (rows, cols) = (small("tokens", y.dims[0])?, small("columns", y.dims[1])?);
        let params = EmbeddingParams {
            weight: weight.start,
            y: address(y),
            ids: address(ids),
            weight_pitch: weight.layout.planes[0].pitch.cast_signed(),
            y_stride: y.strides[0],
            first: self.first,
            rows: weight.layout.n as u32,
            cols,
            scale: self.scale,
        };
        args.enqueue(&self.kernel, grid(rows, cols)?, &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct EmbeddingQuantParams {
    weight: Matrix,
    order: u64,
    y: u64,
    ids: u64,
    y_stride: i64,
    first: i64,
    rows: u32,
    cols: u32,
    y_type: Float,
    scale: f32,
}

struct EmbeddingQuant {
    kernel: Function<EmbeddingQuantParams>,
    first: i64,
    scale: f32,
    y: Float,
}

impl Launch for EmbeddingQuant {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        /// Threads a block, which take eight columns each.
        const THREADS: u32 = 256;
        let (ids, y) = (args.view(0)?, args.view(1)?);
        let weight = args.weight(0)?;
        let (rows, cols) = (small("tokens", y.dims[0])?, small("columns", y.dims[1])?);
        let params = EmbeddingQuantParams {
            weight: Matrix::of(&weight),
            order: weight.layout.order.map_or(0, |offset| weight.start + offset),
            y: address(y),
            ids: address(ids),
            y_stride: y.strides[0],
            first: self.first,
            rows: weight.layout.n as u32,
            cols,
            y_type: self.y,
            scale: self.scale,
        };
        let grid = Grid::rows(rows, (cols, 8 * THREADS), THREADS)?;
        args.enqueue(&self.kernel, grid, &params)
    }
}
