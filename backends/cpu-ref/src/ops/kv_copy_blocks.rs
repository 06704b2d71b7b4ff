//! `cache[pairs[p][1]] = cache[pairs[p][0]]`, both caches; a pair with a negative member is skipped.

use halyard_sdk::{
    HostTensor, OpDesc, Result,
    abi::ops::{attrs::KvCopyBlocks, check::Bindings},
};

use super::{check_caches, checked_row};
use crate::{glue::Args, rows};

pub(super) fn check(_: &KvCopyBlocks, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_caches(desc, [0, 1], &[])
}

pub(super) fn run(_: &KvCopyBlocks, args: &Args) -> Result<()> {
    let (k_cache, v_cache, pairs) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    for p in 0..pairs.dim(0) {
        let (from, to) = (pairs.get_int(&[p, 0]), pairs.get_int(&[p, 1]));
        if from < 0 || to < 0 {
            continue;
        }
        let from = checked_row("kv_copy_blocks: source", from, k_cache.dim(0))?;
        let to = checked_row("kv_copy_blocks: destination", to, k_cache.dim(0))?;
        copy_block(&k_cache, from, to);
        copy_block(&v_cache, from, to);
    }
    Ok(())
}

fn copy_block(cache: &HostTensor, from: usize, to: usize) {
    for token in 0..cache.dim(1) {
        for head in 0..cache.dim(2) {
            rows::write(cache, &[to, token, head], rows::read(cache, &[from, token, head]));
        }
    }
}
