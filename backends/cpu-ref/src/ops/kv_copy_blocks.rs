//! `cache[pairs[p][1]] = cache[pairs[p][0]]`, both caches; a pair with a negative member is skipped.

use halyard_sdk::{
    HostTensor, OpDesc, Result,
    abi::ops::{attrs::KvCopyBlocks, check::Bindings},
};

use crate::{cache, glue::Args, rows};

pub(super) fn check(attrs: &KvCopyBlocks, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    cache::check(desc, [0, 1], &[])?;
    cache::check_latent(desc, attrs.latent, &desc.tensors[0])
}

pub(super) fn run(_: &KvCopyBlocks, args: &Args) -> Result<()> {
    let (k_cache, v_cache, pairs) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    for p in 0..pairs.dim(0) {
        let (from, to) = (pairs.get_int(&[p, 0]), pairs.get_int(&[p, 1]));
        if from < 0 || to < 0 {
            continue;
        }
        let from = rows::checked("kv_copy_blocks: source", from, k_cache.dim(0))?;
        let to = rows::checked("kv_copy_blocks: destination", to, k_cache.dim(0))?;
        copy_block(&k_cache, from, to);
        copy_block(&v_cache, from, to);
    }
    Ok(())
}

fn copy_block(cache: &HostTensor, from: usize, to: usize) {
    for token in 0..cache.dim(1) {
        for head in 0..cache.dim(2) {
            cache.set_row(&[to, token, head], rows::read(cache, &[from, token, head]));
        }
    }
}
