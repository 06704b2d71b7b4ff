//! KV_WRITE, MLA_WRITE, KV_GATHER, KV_COPY_BLOCKS: `kernels/kv.cu`.

use halyard_sdk::{Result, TensorView, abi::ops::attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, address, small},
};
use crate::{
    driver::{Function, Grid},
    kv::{Cache, Plane, Shape, cell},
};

const THREADS: u32 = 128;

/// `struct Side` of `kernels/kv.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Side {
    plane: Plane,
    rows: u64,
    token_stride: i64,
    head_stride: i64,
    scale: u64,
}

impl Side {
    /// A plane and the tensor `[tokens, heads, dim]` or `[tokens, dim]` that goes with it.
    fn of(shape: &Shape, cache: &TensorView, rows: &TensorView, scale: u64) -> Result<Self> {
        Ok(Self {
            plane: shape.plane(cache)?,
            rows: address(rows),
            token_stride: rows.strides[0],
            head_stride: if rows.rank == 3 { rows.strides[1] } else { 0 },
            scale,
        })
    }
}

/// The name of a kernel for activations and a cache of these types.
fn name(op: &Op<'_>, stem: &str, rows: usize, cache: &Cache) -> Result<String> {
    Ok(format!("{stem}_{}_{}", op.float(rows)?.suffix(), cell(cache.k.dtype)?))
}

#[repr(C)]
#[derive(Clone, Copy)]
struct WriteParams {
    keys: Side,
    values: Side,
    slots: u64,
    heads: u32,
}

struct Write {
    kernel: Function<WriteParams>,
    cache: Cache,
}

pub(super) fn write(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::KvWrite>()?;
    prepare_write(op, false)
}

pub(super) fn mla_write(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::MlaWrite>()?;
    prepare_write(op, true)
}

fn prepare_write(op: &Op<'_>, latent: bool) -> Result<Prepared> {
    let cache = Cache::of(op.desc, [3, 4], &[5, 6], latent)?;
    let kernel = op.kernel("kv", &name(op, "kv_write", 0, &cache)?)?;
    Ok(Prepared::native(Write { kernel, cache }))
}

impl Launch for Write {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (k, v, slots) = (args.view(0)?, args.view(1)?, args.view(2)?);
        let scale = |slot| args.optional(slot).map_or(0, address);
        let params = WriteParams {
            keys: Side::of(&self.cache.k, args.view(3)?, k, scale(5))?,
            values: Side::of(&self.cache.v, args.view(4)?, v, scale(6))?,
            slots: address(slots),
            heads: self.cache.k.heads,
        };
        let tokens = small("tokens", slots.dims[0])?;
        let grid = Grid { blocks: [tokens, 2, 1], threads: THREADS, shared: 0 };
        args.enqueue(&self.kernel, grid, &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct GatherParams {
    keys: Side,
    values: Side,
    starts: u64,
    table: u64,
    table_stride: i64,
    columns: u32,
    sequences: u32,
    heads: u32,
}

struct Gather {
    kernel: Function<GatherParams>,
    cache: Cache,
}

pub(super) fn gather(op: &Op<'_>) -> Result<Prepared> {
    let attrs::KvGather { latent } = op.attrs()?;
    let cache = Cache::of(op.desc, [0, 1], &[6, 7], latent)?;
    let kernel = op.kernel("kv", &name(op, "kv_gather", 4, &cache)?)?;
    Ok(Prepared::native(Gather { kernel, cache }))
}

impl Launch for Gather {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (table, k, v) = (args.view(2)?, args.view(4)?, args.view(5)?);
        let scale = |slot| args.optional(slot).map_or(0, address);
        let params = GatherParams {
            keys: Side::of(&self.cache.k, args.view(0)?, k, scale(6))?,
            values: Side::of(&self.cache.v, args.view(1)?, v, scale(7))?,
            starts: address(args.view(3)?),
            table: address(table),
            table_stride: table.strides[0],
            columns: small("columns of the block table", table.dims[1])?,
            sequences: small("sequences", table.dims[0])?,
            heads: self.cache.k.heads,
        };
        let grid = Grid { blocks: [small("rows", k.dims[0])?, 2, 1], threads: THREADS, shared: 0 };
        args.enqueue(&self.kernel, grid, &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CopyParams {
    keys: Plane,
    values: Plane,
    pairs: u64,
}

/// Bytes that a block of threads copies: `COPY_WORDS` of 16 bytes a thread.
const COPY_BYTES: u64 = 8 * 16 * THREADS as u64;

struct CopyBlocks {
    kernel: Function<CopyParams>,
    cache: Cache,
}

pub(super) fn copy_blocks(op: &Op<'_>) -> Result<Prepared> {
    let attrs::KvCopyBlocks { latent } = op.attrs()?;
    let cache = Cache::of(op.desc, [0, 1], &[], latent)?;
    let kernel = op.kernel("kv", "kv_copy_blocks")?;
    Ok(Prepared::native(CopyBlocks { kernel, cache }))
}

impl Launch for CopyBlocks {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let pairs = args.view(2)?;
        let params = CopyParams {
            keys: self.cache.k.plane(args.view(0)?)?,
            values: self.cache.v.plane(args.view(1)?)?,
            pairs: address(pairs),
        };
        let bytes = self.cache.k.block_bytes().max(self.cache.v.block_bytes());
        let blocks = [small("pairs", pairs.dims[0])?, bytes.div_ceil(COPY_BYTES) as u32, 2];
        args.enqueue(&self.kernel, Grid { blocks, threads: THREADS, shared: 0 }, &params)
    }
}
