//! The first `cu_k[b + 1] - cu_k[b]` cached keys and values of sequence `b` into rows `cu_k[b]..` of `k` and `v`; rows at or after
//! `cu_k[B]` are zeros.

use halyard_sdk::{
    HostTensor, OpDesc, Result,
    abi::ops::{attrs::KvGather, check::Bindings},
};

use crate::{
    cache::{self, Cache},
    glue::Args,
    rows,
};

pub(super) fn check(attrs: &KvGather, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    cache::check(desc, [0, 1], &[6, 7])?;
    cache::check_latent(desc, attrs.latent, &desc.tensors[0])
}

pub(super) fn run(_: &KvGather, args: &Args) -> Result<()> {
    gather(args, &Cache::open(args, 0, Some(6))?, &args.tensor(4)?)?;
    gather(args, &Cache::open(args, 1, Some(7))?, &args.tensor(5)?)
}

fn gather(args: &Args, cache: &Cache, to: &HostTensor) -> Result<()> {
    let block_table = args.tensor(2)?;
    let sequences = rows::ranges("kv_gather: cu_k", &args.tensor(3)?, to.dim(0))?;
    for head in 0..to.dim(1) {
        for (b, places) in sequences.iter().enumerate() {
            let values = cache.read("kv_gather", &block_table, places.len(), [b, head])?;
            for (place, row) in places.clone().zip(values) {
                to.set_row(&[place, head], row);
            }
        }
        for padding in rows::end(&sequences)..to.dim(0) {
            to.set_row(&[padding, head], vec![0.0; to.dim(2)]);
        }
    }
    Ok(())
}
