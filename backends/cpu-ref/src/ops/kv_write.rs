//! Token `t`'s key and value go to `slots[t] = block * BLOCK + offset`; a negative slot is skipped.

use halyard_sdk::{
    OpDesc, Result,
    abi::ops::{attrs::KvWrite, check::Bindings},
};

use super::{check_caches, checked_row};
use crate::{glue::Args, rows};

pub(super) fn check(_: &KvWrite, desc: &OpDesc<'_>, _: &Bindings) -> Result<()> {
    check_caches(desc, [3, 4], &[5, 6])
}

pub(super) fn run(_: &KvWrite, args: &Args) -> Result<()> {
    let (k, v, slots) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?);
    let (k_cache, v_cache) = (args.tensor(3)?, args.tensor(4)?);
    let (blocks, block) = (k_cache.dim(0), k_cache.dim(1));
    let slots = rows::ints(&slots);
    for &slot in slots.iter().filter(|&&s| s >= 0) {
        checked_row("kv_write: slot", slot, blocks * block)?;
    }
    for (t, slot) in slots.into_iter().enumerate() {
        let Ok(slot) = usize::try_from(slot) else { continue };
        for head in 0..k.dim(1) {
            let place = [slot / block, slot % block, head];
            rows::write(&k_cache, &place, rows::read(&k, &[t, head]));
            rows::write(&v_cache, &place, rows::read(&v, &[t, head]));
        }
    }
    Ok(())
}
