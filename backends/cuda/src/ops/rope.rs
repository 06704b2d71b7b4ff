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

struct Rope {
    kernel: Function<Params>,
    half: u32,
    offset: u32,
    interleaved: bool,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Attrs { interleaved, offset } = op.attrs()?;
    let (d, r) = (op.dim(Sym::Dk), op.dim(Sym::R));
    if d < 0 || r < 0 {
        return Err(Error::unsupported("rope: head and table widths must be fixed"));
    }
    let inside = offset >= 0 && offset.checked_add(r).is_some_and(|end| end <= d);
    if r % 2 != 0 || !inside {
        return Err(Error::invalid(format!(
            "rope: {r} dims from {offset} of a head of {d}, expected an even number inside the head"
        )));
    }
    Ok(Prepared::native(Rope {
        kernel: op.kernel("rope", &format!("rope_{}", op.float(0)?.suffix()))?,
        half: small("table columns", r / 2)?,
        offset: small("offset", offset)?,
        interleaved,
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
            half: self.half,
            offset: self.offset,
            interleaved: u32::from(self.interleaved),
        };
        args.enqueue(&self.kernel, Grid::line(small("tokens", q.dims[0])?, THREADS), &params)
    }
}
