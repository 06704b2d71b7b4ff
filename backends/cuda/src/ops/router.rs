//! MOE_ROUTER: `kernels/router.cu`.

use halyard_sdk::{
    Error, Result,
    abi::ops::{Sym, attrs::MoeRouter as Attrs},
};

use super::{
    Launch, Op, Prepared,
    args::{Args, address, small},
};
use crate::driver::{Function, Grid};

/// Tokens a block, a warp each.
const TOKENS: u32 = 4;
const THREADS: u32 = TOKENS * 32;

/// Each lane of a warp scores a group.
const MOST_GROUPS: i64 = 32;
/// Keys of a block's experts fit the shared memory that every device has.
const MOST_EXPERTS: i64 = 2048;

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    logits: u64,
    bias: u64,
    ids: u64,
    weight: u64,
    logits_stride: i64,
    ids_stride: i64,
    weight_stride: i64,
    tokens: u32,
    experts: u32,
    top: u32,
    groups: u32,
    kept_groups: u32,
    sum_of_two: u32,
    sigmoid: u32,
    norm: u32,
    scale: f32,
}

struct Router {
    kernel: Function<Params>,
    attrs: Attrs,
}

/// Refuses more experts or groups than the kernel has room for; a negative number is not known yet.
fn check(attrs: &Attrs, experts: i64) -> Result<()> {
    let groups = attrs.n_group;
    if groups > MOST_GROUPS || experts > MOST_EXPERTS {
        return Err(Error::unsupported(format!(
            "moe_router: {experts} experts in {groups} groups; at most {MOST_EXPERTS} in {MOST_GROUPS} are supported"
        )));
    }
    Ok(())
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let attrs: Attrs = op.attrs()?;
    check(&attrs, op.dim(Sym::E))?;
    Ok(Prepared::native(Router { kernel: op.kernel("router", "moe_router")?, attrs }))
}

impl Launch for Router {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, ids, weight) = (args.view(0)?, args.view(2)?, args.view(3)?);
        check(&self.attrs, logits.dims[1])?;
        let attrs = &self.attrs;
        let (tokens, experts) =
            (small("tokens", logits.dims[0])?, small("experts", logits.dims[1])?);
        let params = Params {
            logits: address(logits),
            bias: args.optional(1).map_or(0, address),
            ids: address(ids),
            weight: address(weight),
            logits_stride: logits.strides[0],
            ids_stride: ids.strides[0],
            weight_stride: weight.strides[0],
            tokens,
            experts,
            top: small("chosen experts", ids.dims[1])?,
            groups: attrs.n_group as u32,
            kept_groups: attrs.topk_group as u32,
            sum_of_two: u32::from(attrs.group_sum_of_two),
            sigmoid: u32::from(attrs.sigmoid),
            norm: u32::from(attrs.norm),
            scale: attrs.scale as f32,
        };
        let shared = TOKENS * experts * 4;
        let grid = Grid { blocks: [tokens.div_ceil(TOKENS), 1, 1], threads: THREADS, shared };
        args.enqueue(&self.kernel, grid, &params)
    }
}
