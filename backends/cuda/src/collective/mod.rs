//! Collectives: NCCL moves the data, and combines what it combines as the contract demands (`docs/adr/0009`).
//!
//! - `communicator`: the trait; `call`: checked calls and what they enqueue
//! - `combine`: reductions of short floats, and those in which a NaN wins, by a kernel of ours
//! - `rank`: what the watch over calls under way (`halyard_sdk::vendor::Watched`) needs of NCCL

mod call;
mod combine;
mod communicator;
mod rank;

use std::sync::Arc;

use halyard_sdk::{
    Collective, CommDesc, Error, Result,
    abi::RSlice,
    comm,
    vendor::{self, Health},
};

use crate::{
    device::Shared,
    nccl::{self, Comm, UniqueId},
};
use communicator::Communicator;
use rank::Rank;

/// A communicator's rank whose calls are watched.
pub(crate) type Watched = vendor::Watched<Rank>;

/// Writes a fresh id to `out` if it fits; returns its size: NCCL's id, then that of the ranks' control.
///
/// # Errors
/// `UNSUPPORTED` without NCCL; what NCCL and the system say.
pub(crate) fn unique_id(out: &mut [u8]) -> Result<u32> {
    nccl::start()?;
    let mut id = UniqueId::fresh()?.to_bytes().to_vec();
    let control = comm::unique_id(&mut [])?;
    id.resize(UniqueId::BYTES + control as usize, 0);
    comm::unique_id(&mut id[UniqueId::BYTES..])?;
    if let Some(place) = out.get_mut(..id.len()) {
        place.copy_from_slice(&id);
    }
    Ok(id.len() as u32)
}

/// Joins a communicator; waits until all ranks have come.
///
/// # Errors
/// `UNSUPPORTED` without NCCL; `INVALID_ARGUMENT` for what cannot be; `COMM_ERROR` if a rank does not come in time.
pub(crate) fn join(shared: &Arc<Shared>, desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
    let version = nccl::start()?;
    let id = desc.id.as_slice();
    let Some((of_nccl, of_control)) = id.split_first_chunk::<{ UniqueId::BYTES }>() else {
        let bytes = id.len();
        return Err(Error::invalid(format!("{bytes} bytes that are no id of the CUDA backend")));
    };
    let desc = CommDesc { id: RSlice::from_slice(of_control), ..*desc };
    // First: whoever is missing is named, before NCCL waits for it.
    let health = Health::new(comm::Control::join(&desc)?);
    let (way, _bound) = (way(version), shared.bind()?);
    tracing::debug!(rank = desc.rank, world = desc.world, way, "joining a communicator");
    if desc.world > 1 {
        shared.share_memory()?;
    }
    let id = UniqueId::from_bytes(*of_nccl);
    let joined = Comm::join(id, desc.rank, desc.world, health.patience("joining"));
    let comm = joined.map_err(|error| {
        let message = format!("{} ({way})", error.message).into();
        health.fail(&Error { message, ..error })
    })?;
    Ok(Box::new(Communicator::new(shared, health, comm)?))
}

/// What decides how NCCL reaches the other ranks: the first to look at when it does not.
fn way(version: i32) -> String {
    let setting = |name: &str| match std::env::var(name) {
        Ok(value) => format!("{name}={value}"),
        Err(_) => format!("{name} not set"),
    };
    let (interface, infiniband) = (setting("NCCL_SOCKET_IFNAME"), setting("NCCL_IB_DISABLE"));
    format!("NCCL {}, {interface}, {infiniband}", nccl::dotted(version))
}
