//! ROPE: `kernels/rope.cu`.

use halyard_sdk::{
    Error, Result, TensorView,
    abi::ops::{Sym, attrs::Rope as Attrs},
};

use super::{
    Launch, Op, Prepared,
    args::{Args, address, small},
};
use crate::driver::{Function, Grid};

const THREADS: u32 = 128;

/// `struct Heads` of `kernels/rope.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heads {
    data: u64,
    token_stride: i64,
    head_stride: i64,
    heads: u32,
}

impl Heads {
    fn of(view: &TensorView) -> Result<Self> {
        let heads = small("heads", view.dims[1])?;
        Ok(Self {
            data: address(view),
            token_stride: view.strides[0],
            head_stride: view.strides[1],
            heads,
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    q: Heads,
    k: Heads,
    positions: u64,
    table: u64,
    table_stride: i64,
    table_rows: u32,
    half: u32,
    offset: u32,
    interleaved: u32,
}

/// Which dims of a head are rotated, in which pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotation {
    /// Pairs a head.
    pub(super) half: u32,
    /// The first rotated dim.
    pub(super) offset: u32,
    /// Pairs are `(2i, 2i + 1)` instead of `(i, i + half)`.
    pub(super) interleaved: bool,
}

impl Rotation {
    /// That of heads and a table whose widths the descriptor says.
    pub(super) fn of(op: &Op<'_>, interleaved: bool, offset: i64) -> Result<Self> {
        let (kind, d, r) = (op.desc.kind, op.dim(Sym::Dk), op.dim(Sym::R));
        if d < 0 || r < 0 {
            return Err(Error::unsupported(format!("{kind}: head and table widths must be fixed")));
        }
        let (half, offset) = (small("table columns", r / 2)?, small("offset", offset)?);
        Ok(Self { half, offset, interleaved })
    }
}

struct Rope {
    kernel: Function<Params>,
    rotation: Rotation,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Attrs { interleaved, offset } = op.attrs()?;
    Ok(Prepared::native(Rope {
        kernel: op.kernel("rope", &format!("rope_{}", op.float(0)?.suffix()))?,
        rotation: Rotation::of(op, interleaved, offset)?,
    }))
}

impl Launch for Rope {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (q, table) = (args.view(0)?, args.view(3)?);
        let params = Params {
            q: Heads::of(q)?,
            k: args.optional(1).map_or(Ok(Heads::default()), Heads::of)?,
            positions: address(args.view(2)?),
            table: address(table),
            table_stride: table.strides[0],
            table_rows: small("table rows", table.dims[0])?,
            half: self.rotation.half,
            offset: self.rotation.offset,
            interleaved: u32::from(self.rotation.interleaved),
        };
        args.enqueue(&self.kernel, Grid::line(small("tokens", q.dims[0])?, THREADS), &params)
    }
}
