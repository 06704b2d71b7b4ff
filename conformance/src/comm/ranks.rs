//! Ranks as threads.

use std::{thread, time::Duration};

use halyard_core::{Code, CommId, CommSpec, Communicator, Device, DeviceError, PropKey, Stream};

use crate::execute::Trouble;

/// Bound of waits that are not meant to reach it.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A rank: what it needs to make calls.
#[derive(Debug)]
pub(super) struct Rank {
    pub(super) device: Device,
    pub(super) stream: Stream,
    pub(super) comm: Communicator,
}

impl Rank {
    pub(super) fn number(&self) -> u32 {
        self.comm.rank()
    }

    /// How a call ended, once its work is over.
    pub(super) fn ended(&self, issued: Result<(), DeviceError>) -> Result<(), DeviceError> {
        issued?;
        self.stream.sync()?;
        self.comm.handle().status()
    }
}

/// A device a rank. The host's own processor is shared by all; others take one each.
pub(super) fn devices(device: &Device, world: u32) -> Result<Vec<Device>, Trouble> {
    if device.property(PropKey::INLINE) == Some(1) || world == 1 {
        return Ok(vec![device.clone(); world as usize]);
    }
    let present = device.backend().device_count()?;
    if present < world {
        let message = format!("{world} ranks need as many devices, {present} are present");
        let call = "device_count";
        let code = Code::OUT_OF_MEMORY;
        return Err(Trouble::Device(DeviceError { code, vendor_code: 0, call, message }));
    }
    let open = |ordinal| Ok(device.backend().open(ordinal, &[])?);
    (0..world).map(open).collect()
}

/// Joins a rank of a communicator.
pub(super) fn join(
    devices: &[Device],
    id: &CommId,
    rank: u32,
    timeout: Duration,
) -> Result<Rank, DeviceError> {
    let world = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    join_one(&devices[rank as usize], id, (rank, world), timeout)
}

/// The same where the other ranks' devices may be elsewhere.
pub(super) fn join_one(
    device: &Device,
    id: &CommId,
    (rank, world): (u32, u32),
    timeout: Duration,
) -> Result<Rank, DeviceError> {
    let spec = CommSpec { id, rank, world, timeout, name: "conformance", number: None };
    let comm = device.join(&spec)?;
    Ok(Rank { stream: device.stream(0)?, device: device.clone(), comm })
}

/// Runs `f` on every rank of one communicator, each on a thread; gives what each gave, by rank. If one fails, the others are
/// released by an abort, and the failure that came first by itself counts.
pub(super) fn on_all<T: Send>(
    devices: &[Device],
    timeout: Duration,
    f: impl Fn(&mut Rank) -> Result<T, Trouble> + Sync,
) -> Result<Vec<T>, Trouble> {
    let id = devices[0].comm_id()?;
    let one = |rank| -> Result<T, Trouble> {
        let mut rank = join(devices, &id, rank, timeout)?;
        let result = f(&mut rank);
        if result.is_err() {
            rank.comm.handle().abort()?;
        }
        result
    };
    first_failure(in_threads(devices.len(), one))
}

/// What `f` gives for each rank, each on a thread of its own.
pub(super) fn in_threads<T: Send>(
    world: usize,
    f: impl Fn(u32) -> Result<T, Trouble> + Sync,
) -> Vec<Result<T, Trouble>> {
    thread::scope(|scope| {
        let f = &f;
        let ranks = 0..u32::try_from(world).unwrap_or(u32::MAX);
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || f(rank))).collect();
        let panicked = |_| Err(Trouble::Violation("a thread of a rank panicked".into()));
        threads.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect()
    })
}

fn first_failure<T>(results: Vec<Result<T, Trouble>>) -> Result<Vec<T>, Trouble> {
    let released = |t: &Trouble| matches!(t, Trouble::Device(e) if e.code == Code::COMM_ABORTED);
    let mut values = Vec::new();
    let mut failures = Vec::new();
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => values.push(value),
            Err(trouble) => failures.push((rank, trouble)),
        }
    }
    let at = failures.iter().position(|(_, t)| !released(t)).unwrap_or(0);
    match failures.into_iter().nth(at) {
        None => Ok(values),
        Some((rank, Trouble::Violation(text))) => {
            Err(Trouble::Violation(format!("on rank {rank}: {text}")))
        }
        Some((_, other)) => Err(other),
    }
}
