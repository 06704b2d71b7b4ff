//! Collectives: HCCL moves the data, and combines what it combines as the contract demands (`docs/adr/0009`).
//!
//! - `communicator`: the trait; `call`: checked calls and what they enqueue
//! - `combine`: reductions that HCCL does not make so, by operators in the order of ranks, rare ones on the host
//! - `rank`: what the watch over calls under way needs of HCCL; `fate`: which streams a communicator ended
//! - `preflight`: settings that keep ranks from finding each other

mod call;
mod combine;
mod communicator;
mod fate;
mod preflight;
mod rank;

use std::sync::Arc;

use halyard_sdk::{
    Collective, CommDesc, Error, Result, abi::RSlice, comm, comm::Control, vendor::Health,
};

use crate::{device::Shared, driver::hccl::RootInfo};
use communicator::Communicator;
pub(crate) use fate::Fates;

/// Bytes of a control's id.
fn control_bytes() -> Result<usize> {
    Ok(comm::unique_id(&mut [])? as usize)
}

/// Writes a fresh id to `out` if it fits; returns its size: HCCL's, then that of the ranks' control.
///
/// # Errors
/// `UNSUPPORTED` without HCCL; what HCCL and the system say.
pub(crate) fn unique_id(shared: &Shared, out: &mut [u8]) -> Result<u32> {
    let bytes = RootInfo::BYTES + control_bytes()?;
    if let Some(place) = out.get_mut(..bytes) {
        let (of_hccl, of_control) = place.split_at_mut(RootInfo::BYTES);
        of_hccl.copy_from_slice(fresh_info(shared)?.bytes());
        comm::unique_id(of_control)?;
    }
    Ok(bytes as u32)
}

/// HCCL's id, which this process offers the other ranks on an interface of the host.
fn fresh_info(shared: &Shared) -> Result<RootInfo> {
    preflight::check()?;
    let _bound = shared.bind()?;
    RootInfo::fresh().map_err(|error| preflight::explain(&error))
}

/// Joins a communicator; waits until all ranks have come.
///
/// # Errors
/// `UNSUPPORTED` without HCCL; `INVALID_ARGUMENT` for what cannot be; `COMM_ERROR` if a rank does not come in time.
pub(crate) fn join(shared: &Arc<Shared>, desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
    let id = desc.id.as_slice();
    let Some((of_hccl, of_control)) = id.split_first_chunk::<{ RootInfo::BYTES }>() else {
        let bytes = id.len();
        return Err(Error::invalid(format!("{bytes} bytes that are no id of the Ascend backend")));
    };
    let desc = CommDesc { id: RSlice::from_slice(of_control), ..*desc };
    // First: whoever is missing is named, before HCCL waits for it.
    let health = Health::new(Control::join(&desc)?);
    tracing::debug!(rank = desc.rank, world = desc.world, "joining a communicator");
    let info = RootInfo::from_bytes(*of_hccl);
    Ok(Box::new(Communicator::join(shared, health, info)?))
}
