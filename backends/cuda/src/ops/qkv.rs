//! QKV_POST: `kernels/qkv.cu`.

use halyard_sdk::{Error, Result, TensorView, abi::ops::attrs::QkvPost as Attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, address, small},
    rope::Rotation,
};
use crate::{
    driver::{Function, Grid},
    kv::{Cache, Plane, cell},
};

/// Heads a block, a warp each.
const HEADS: u32 = 4;
const THREADS: u32 = HEADS * 32;

/// `struct Norm` of `kernels/qkv.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Norm {
    gamma: u64,
    gamma_type: Float,
}

impl Norm {
    fn of(gamma: Option<&TensorView>) -> Result<Self> {
        Ok(match gamma {
            Some(gamma) => Self { gamma: address(gamma), gamma_type: Float::of(gamma.dtype)? },
            None => Self { gamma: 0, gamma_type: Float::F32 },
        })
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    qkv: u64,
    q_norm: Norm,
    k_norm: Norm,
    positions: u64,
    table: u64,
    slots: u64,
    q: u64,
    keys: Plane,
    values: Plane,
    key_scale: u64,
    value_scale: u64,
    qkv_stride: i64,
    table_stride: i64,
    q_stride: i64,
    q_head_stride: i64,
    q_heads: u32,
    kv_heads: u32,
    table_rows: u32,
    half: u32,
    offset: u32,
    interleaved: u32,
    eps: f32,
    gamma_plus: f32,
}

struct QkvPost {
    kernel: Function<Params>,
    cache: Cache,
    rotation: Rotation,
    eps: f32,
    gamma_plus: f32,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Attrs { eps, plus_one, interleaved, offset } = op.attrs()?;
    let cache = Cache::of(op.desc, [7, 8], &[9, 10], false)?;
    for gamma in [1, 2].into_iter().filter(|&slot| op.present(slot)) {
        op.float(gamma)?;
    }
    let name = format!("qkv_post_{}_{}", op.float(0)?.suffix(), cell(cache.k.dtype)?);
    Ok(Prepared::native(QkvPost {
        kernel: op.kernel("qkv", &name)?,
        cache,
        rotation: Rotation::of(op, interleaved, offset)?,
        eps: eps as f32,
        gamma_plus: f32::from(u8::from(plus_one)),
    }))
}

impl Launch for QkvPost {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (qkv, table, q) = (args.view(0)?, args.view(4)?, args.view(6)?);
        let (q_heads, kv_heads) = (small("heads", q.dims[1])?, self.cache.k.heads);
        let scale = |slot| args.optional(slot).map_or(0, address);
        let params = Params {
            qkv: address(qkv),
            q_norm: Norm::of(args.optional(1))?,
            k_norm: Norm::of(args.optional(2))?,
            positions: address(args.view(3)?),
            table: address(table),
            slots: address(args.view(5)?),
            q: address(q),
            keys: self.cache.k.plane(args.view(7)?)?,
            values: self.cache.v.plane(args.view(8)?)?,
            key_scale: scale(9),
            value_scale: scale(10),
            qkv_stride: qkv.strides[0],
            table_stride: table.strides[0],
            q_stride: q.strides[0],
            q_head_stride: q.strides[1],
            q_heads,
            kv_heads,
            table_rows: small("table rows", table.dims[0])?,
            half: self.rotation.half,
            offset: self.rotation.offset,
            interleaved: u32::from(self.rotation.interleaved),
            eps: self.eps,
            gamma_plus: self.gamma_plus,
        };
        let across = u64::from(q_heads) + 2 * u64::from(kv_heads);
        let across = u16::try_from(across.div_ceil(HEADS.into())).map_err(|_| {
            Error::unsupported(format!("{q_heads} heads of queries and {kv_heads} of keys"))
        })?;
        let blocks = [small("tokens", qkv.dims[0])?, across.into(), 1];
        args.enqueue(&self.kernel, Grid { blocks, threads: THREADS, shared: 0 }, &params)
    }
}
