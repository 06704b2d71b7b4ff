//! Token `t`'s latent `c` and rotated part `r` go to `slots[t] = block * BLOCK + offset`; a negative slot is skipped.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::MlaWrite, check::Bindings},
};

use crate::{
    cache::{self, Cache},
    glue::Args,
    rows,
};

pub(super) fn check(_: &MlaWrite, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    cache::check(desc, [3, 4], &[])
}

pub(super) fn run(_: &MlaWrite, args: &Args) -> Result<()> {
    let (c, r) = (args.tensor(0)?, args.tensor(1)?);
    let (c_cache, r_cache) = (Cache::open(args, 3, None)?, Cache::open(args, 4, None)?);
    for (t, place) in c_cache.places("mla_write", &args.tensor(2)?)?.into_iter().enumerate() {
        let Some(place) = place else { continue };
        c_cache.write(place, 0, &rows::read(&c, &[t]));
        r_cache.write(place, 0, &rows::read(&r, &[t]));
    }
    Ok(())
}
