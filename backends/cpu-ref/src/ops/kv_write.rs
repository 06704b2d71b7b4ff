//! Token `t`'s key and value go to `slots[t] = block * BLOCK + offset`; a negative slot is skipped. An 8-bit cache stores
//! `x / scale`.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::KvWrite, check::Bindings},
};

use crate::{
    cache::{self, Cache},
    glue::Args,
    rows,
};

pub(super) fn check(_: &KvWrite, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    cache::check(desc, [3, 4], &[5, 6])
}

pub(super) fn run(_: &KvWrite, args: &Args) -> Result<()> {
    let (k, v) = (args.tensor(0)?, args.tensor(1)?);
    let (k_cache, v_cache) = (Cache::open(args, 3, Some(5))?, Cache::open(args, 4, Some(6))?);
    for (t, place) in k_cache.places("kv_write", &args.tensor(2)?)?.into_iter().enumerate() {
        let Some(place) = place else { continue };
        for head in 0..k.dim(1) {
            k_cache.write(place, head, &rows::read(&k, &[t, head]));
            v_cache.write(place, head, &rows::read(&v, &[t, head]));
        }
    }
    Ok(())
}
