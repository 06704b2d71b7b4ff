//! Communicators.

use std::{
    ffi::c_void,
    ptr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use cudarc::nccl::sys::{self, ncclComm_t, ncclDataType_t as Type, ncclResult_t as Raw};
use halyard_sdk::{Code, Error, ReduceOp, Result};

use super::{UniqueId, named, reduction};
use crate::driver::Stream;

/// How long a wait for NCCL sleeps before it asks again.
const SLICE: Duration = Duration::from_micros(100);

/// A rank of a communicator. Functions that take a device's memory or streams want its context bound.
#[derive(Debug)]
pub(crate) struct Comm {
    /// None once it was aborted or destroyed.
    raw: Mutex<Option<Handle>>,
}

#[derive(Clone, Copy, Debug)]
struct Handle(ncclComm_t);

// SAFETY: a communicator is a name that NCCL takes from any thread; the lock around it serialises calls.
unsafe impl Send for Handle {}

/// A call: addresses of device memory, counts of elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Move {
    AllReduce {
        src: u64,
        dst: u64,
        count: u64,
        dtype: Type,
        op: ReduceOp,
    },
    /// `count` is that of `dst`.
    ReduceScatter {
        src: u64,
        dst: u64,
        count: u64,
        dtype: Type,
        op: ReduceOp,
    },
    /// `count` is that of `src`.
    AllGather {
        src: u64,
        dst: u64,
        count: u64,
        dtype: Type,
    },
    Broadcast {
        buf: u64,
        count: u64,
        dtype: Type,
        root: u32,
    },
    Send {
        src: u64,
        count: u64,
        dtype: Type,
        peer: u32,
    },
    Recv {
        dst: u64,
        count: u64,
        dtype: Type,
        peer: u32,
    },
}

impl Move {
    /// # Safety
    /// The communicator is alive; for the rest as for [`Comm::issue`].
    unsafe fn issue(&self, comm: ncclComm_t, on: &Stream) -> Result<()> {
        let stream = on.raw().cast();
        let input = |address: u64| address as *const c_void;
        let output = |address: u64| address as *mut c_void;
        let (call, result) = match *self {
            Self::AllReduce { src, dst, count, dtype, op } => {
                let (src, dst, op) = (input(src), output(dst), reduction(op)?);
                // SAFETY: the caller's promise.
                let result = unsafe {
                    sys::ncclAllReduce(src, dst, count as usize, dtype, op, comm, stream)
                };
                ("ncclAllReduce", result)
            }
            Self::ReduceScatter { src, dst, count, dtype, op } => {
                let (src, dst, op) = (input(src), output(dst), reduction(op)?);
                // SAFETY: the caller's promise.
                let result = unsafe {
                    sys::ncclReduceScatter(src, dst, count as usize, dtype, op, comm, stream)
                };
                ("ncclReduceScatter", result)
            }
            Self::AllGather { src, dst, count, dtype } => {
                let (src, dst) = (input(src), output(dst));
                // SAFETY: the caller's promise.
                let result =
                    unsafe { sys::ncclAllGather(src, dst, count as usize, dtype, comm, stream) };
                ("ncclAllGather", result)
            }
            Self::Broadcast { buf, count, dtype, root } => {
                let (src, dst, root) = (input(buf), output(buf), root.cast_signed());
                // SAFETY: the caller's promise.
                let result = unsafe {
                    sys::ncclBroadcast(src, dst, count as usize, dtype, root, comm, stream)
                };
                ("ncclBroadcast", result)
            }
            Self::Send { src, count, dtype, peer } => {
                let (src, peer) = (input(src), peer.cast_signed());
                // SAFETY: the caller's promise.
                let result =
                    unsafe { sys::ncclSend(src, count as usize, dtype, peer, comm, stream) };
                ("ncclSend", result)
            }
            Self::Recv { dst, count, dtype, peer } => {
                let (dst, peer) = (output(dst), peer.cast_signed());
                // SAFETY: the caller's promise.
                let result =
                    unsafe { sys::ncclRecv(dst, count as usize, dtype, peer, comm, stream) };
                ("ncclRecv", result)
            }
        };
        named(call, result)
    }
}

/// What communicators are made with: never to block.
fn config() -> sys::ncclConfig_t {
    // `NCCL_CONFIG_INITIALIZER` of 2.18, whose fields are these.
    const UNDEFINED: i32 = i32::MIN;
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: super::OLDEST.cast_unsigned(),
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: ptr::null(),
        splitShare: UNDEFINED,
    }
}

/// Asks until NCCL is done with what it was told, or `patience` gives an error.
fn settle(ask: impl Fn() -> Result<bool>, patience: impl Fn() -> Result<()>) -> Result<()> {
    while ask()? {
        patience()?;
        thread::sleep(SLICE);
    }
    Ok(())
}

impl Comm {
    /// Joins as a rank; its device is the one whose context is bound.
    ///
    /// # Errors
    /// What NCCL says; what `patience` gives.
    pub(crate) fn join(
        id: UniqueId,
        rank: u32,
        world: u32,
        patience: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let (mut raw, mut config) = (ptr::null_mut(), config());
        let (rank, world) = (rank.cast_signed(), world.cast_signed());
        // SAFETY: both pointers are to variables of ours.
        let begun = unsafe {
            sys::ncclCommInitRankConfig(&raw mut raw, world, id.0, rank, &raw mut config)
        };
        named("ncclCommInitRankConfig", begun)?;
        let this = Self { raw: Mutex::new(Some(Handle(raw))) };
        let joined = settle(|| this.in_progress(), patience);
        if joined.is_err() {
            this.abort();
        }
        joined.map(|()| this)
    }

    fn raw(&self) -> MutexGuard<'_, Option<Handle>> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether NCCL is still at what it was told.
    ///
    /// # Errors
    /// The asynchronous error, if there is one.
    pub(crate) fn in_progress(&self) -> Result<bool> {
        let raw = self.raw();
        let Some(Handle(comm)) = *raw else { return Err(gone()) };
        let mut state = Raw::ncclSuccess;
        // SAFETY: the communicator is alive while the lock is held; its state goes to a variable of ours.
        let asked = unsafe { sys::ncclCommGetAsyncError(comm, &raw mut state) };
        named("ncclCommGetAsyncError", asked)?;
        named("NCCL", state)?;
        Ok(state == Raw::ncclInProgress)
    }

    /// Enqueues calls, several as a group, and waits until NCCL has taken them.
    ///
    /// # Errors
    /// What NCCL says; what `patience` gives.
    ///
    /// # Safety
    /// Addresses are of device memory with room for the counts, which nothing else uses until the streams have reached this point.
    pub(crate) unsafe fn issue(
        &self,
        moves: &[Move],
        on: &Stream,
        patience: impl Fn() -> Result<()>,
    ) -> Result<()> {
        {
            let raw = self.raw();
            let Some(Handle(comm)) = *raw else { return Err(gone()) };
            if moves.len() > 1 {
                // SAFETY: it takes nothing.
                named("ncclGroupStart", unsafe { sys::ncclGroupStart() })?;
            }
            // SAFETY: the communicator is alive while the lock is held; for the rest the caller's promise.
            let issued = moves.iter().try_for_each(|m| unsafe { m.issue(comm, on) });
            if moves.len() > 1 {
                // SAFETY: it takes nothing.
                let ended = named("ncclGroupEnd", unsafe { sys::ncclGroupEnd() });
                issued.and(ended)?;
            } else {
                issued?;
            }
        }
        settle(|| self.in_progress(), patience)
    }

    /// The part with this rank's color; none if that is negative.
    ///
    /// # Errors
    /// What NCCL says; what `patience` gives.
    pub(crate) fn split(
        &self,
        color: i32,
        key: i32,
        patience: impl Fn() -> Result<()>,
    ) -> Result<Option<Self>> {
        let (mut part, mut config) = (ptr::null_mut(), config());
        {
            let raw = self.raw();
            let Some(Handle(comm)) = *raw else { return Err(gone()) };
            // All negative colors are `NCCL_SPLIT_NOCOLOR`.
            let color = color.max(-1);
            // SAFETY: the communicator is alive while the lock is held; both pointers are to variables of ours.
            let begun =
                unsafe { sys::ncclCommSplit(comm, color, key, &raw mut part, &raw mut config) };
            named("ncclCommSplit", begun)?;
        }
        settle(|| self.in_progress(), &patience)?;
        if part.is_null() {
            return Ok(None);
        }
        let part = Self { raw: Mutex::new(Some(Handle(part))) };
        let joined = settle(|| part.in_progress(), patience);
        if joined.is_err() {
            part.abort();
        }
        joined.map(|()| Some(part))
    }

    /// Ends the communicator; calls that wait in it end.
    pub(crate) fn abort(&self) {
        let Some(Handle(comm)) = self.raw().take() else { return };
        // SAFETY: the communicator was alive, and nobody has it any more.
        if let Err(error) = named("ncclCommAbort", unsafe { sys::ncclCommAbort(comm) }) {
            tracing::warn!(%error, "an aborted communicator");
        }
    }

    /// Ends the communicator after its work; one that is not done within `patience` is aborted.
    pub(crate) fn close(&self, patience: Duration) {
        let start = Instant::now();
        let finalized = self.finalize().and_then(|()| {
            settle(
                || self.in_progress(),
                || match start.elapsed() < patience {
                    true => Ok(()),
                    false => Err(Error::new(Code::TIMEOUT, "still at work")),
                },
            )
        });
        if finalized.is_err() {
            return self.abort();
        }
        let Some(Handle(comm)) = self.raw().take() else { return };
        // SAFETY: the communicator was alive, and nobody has it any more.
        if let Err(error) = named("ncclCommDestroy", unsafe { sys::ncclCommDestroy(comm) }) {
            tracing::warn!(%error, "a communicator at its end");
        }
    }

    fn finalize(&self) -> Result<()> {
        let raw = self.raw();
        let Some(Handle(comm)) = *raw else { return Err(gone()) };
        // SAFETY: the communicator is alive while the lock is held.
        named("ncclCommFinalize", unsafe { sys::ncclCommFinalize(comm) })
    }
}

impl Drop for Comm {
    /// One that nobody ended, since making what it belongs to failed.
    fn drop(&mut self) {
        self.abort();
    }
}

/// What a call gets when an abort came first.
fn gone() -> Error {
    Error::new(Code::COMM_ERROR, "the communicator has ended")
}
