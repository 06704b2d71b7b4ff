//! The profile `comm`: collectives between ranks that are threads of this process, against a plain reference.
//!
//! A case is put to one communicator of its world. `catalog` has the cases, `ranks` the threads, `round` the calls that move data and
//! what they have to give, `numbers` the dtypes and bounds, `conduct` everything else: how ranks wait, fail and part.

mod catalog;
mod conduct;
mod numbers;
mod ranks;
mod round;

use halyard_core::{CommId, Device};

use crate::{compare::Comparison, execute::Trouble};
pub(crate) use catalog::{Call, CommCase, Data, cases};

/// The profile's name.
pub(crate) const PROFILE: &str = "comm";

/// Runs a case of calls that move data on these devices, each a rank.
pub(crate) fn run_on(
    devices: &[Device],
    case: &CommCase,
    kind: Data,
    seed: u64,
) -> Result<Comparison, Trouble> {
    round::run(devices, case, kind, seed)
}

/// How a rank's data compares with the reference, and what it got that is the same everywhere.
pub(crate) type Played = (Comparison, Vec<Vec<u8>>);

/// Runs such cases as one rank, whose others are in other processes. A failure ends the communicator, so that the others do not wait.
pub(crate) fn run_rank(
    device: &Device,
    (id, rank, world): (&CommId, u32, u32),
    cases: &[(CommCase, Data)],
    seed: u64,
) -> Result<Vec<Played>, Trouble> {
    let mut rank = ranks::join_one(device, id, (rank, world), ranks::PATIENCE)?;
    let results = cases.iter().map(|(case, kind)| round::run_rank(&mut rank, case, *kind, seed));
    let results: Result<Vec<_>, Trouble> = results.collect();
    if results.is_err() {
        rank.comm.handle().abort()?;
    }
    results
}

/// Runs a case; gives how its data compares with the reference.
pub(crate) fn run(device: &Device, case: &CommCase, seed: u64) -> Result<Comparison, Trouble> {
    let devices = ranks::devices(device, case.world)?;
    match case.call {
        Call::Data(kind) => run_on(&devices, case, kind, seed),
        Call::Conduct(kind) => conduct::run(&devices, kind).map(|()| Comparison::empty("data")),
    }
}
