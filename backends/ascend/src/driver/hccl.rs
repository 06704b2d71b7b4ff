//! HCCL as safe Rust. It is loaded when a communicator is first wanted.

use std::{
    collections::HashMap,
    ffi::{CStr, c_void},
    ptr,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use halyard_ascend_sys::{
    Libraries,
    hccl::{
        HCCL_DATA_TYPE_BFP16, HCCL_DATA_TYPE_FP16, HCCL_DATA_TYPE_FP32, HCCL_DATA_TYPE_INT8,
        HCCL_DATA_TYPE_INT32, HCCL_DATA_TYPE_INT64, HCCL_DATA_TYPE_UINT8, HCCL_DATA_TYPE_UINT32,
        HCCL_DATA_TYPE_UINT64, HCCL_RECV, HCCL_REDUCE_MAX, HCCL_REDUCE_MIN, HCCL_REDUCE_PROD,
        HCCL_REDUCE_SUM, HCCL_ROOT_INFO_BYTES, HCCL_SEND, Hccl, HcclComm, HcclRootInfo,
        HcclSendRecvItem,
    },
};
use halyard_sdk::{Code, DType, Error, ReduceOp, Result};

use super::{Driver, Stream, error};

/// Calls a function of HCCL: a `Result`. To be used inside `unsafe`.
macro_rules! hccl {
    ($lib:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match $lib.hccl.$name {
            Some(function) => $lib.check(stringify!($name), function($($arg),*)),
            None => Err(error::missing(stringify!($name))),
        }
    };
}

#[derive(Debug)]
struct Library {
    hccl: Hccl,
    driver: &'static Driver,
}

/// The library, loaded once a process.
///
/// # Errors
/// `UNSUPPORTED` without HCCL.
fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
    let loaded = LIBRARY.get_or_init(|| {
        let driver = super::start()?;
        let libraries = Libraries::open_collectives();
        let libraries = libraries.map_err(|e| Error::unsupported(e.to_string()))?;
        let hccl = Hccl::load(&libraries);
        if hccl.HcclGetRootInfo.is_none() {
            return Err(Error::unsupported(
                "libhccl.so is no HCCL: it has no HcclGetRootInfo; look at the library path",
            ));
        }
        Ok(Library { hccl, driver })
    });
    loaded.as_ref().map_err(Clone::clone)
}

impl Library {
    fn check(&self, call: &str, result: i32) -> Result<()> {
        if result == 0 {
            return Ok(());
        }
        let said = error::last_message(&self.driver.acl);
        let separator = if said.is_empty() { "" } else { ": " };
        let message = format!("{call}: {}{separator}{said}", self.name(result));
        Err(Error { vendor_code: result, ..Error::new(Code::COMM_ERROR, message) })
    }

    /// HCCL's text of a result.
    fn name(&self, result: i32) -> String {
        let number = format!("HcclResult {result}");
        let Some(ask) = self.hccl.HcclGetErrorString else { return number };
        // SAFETY: any number has a text.
        let text = unsafe { ask(result) };
        if text.is_null() {
            return number;
        }
        // SAFETY: a C string of the library's.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        format!("{text} ({number})")
    }
}

/// By which ranks of one communicator find each other.
#[derive(Clone, Copy)]
pub(crate) struct RootInfo(HcclRootInfo);

impl RootInfo {
    pub(crate) const BYTES: usize = HCCL_ROOT_INFO_BYTES;

    /// The device's context is bound.
    ///
    /// # Errors
    /// `UNSUPPORTED` without HCCL; what it says, such as of an interface that is not there.
    pub(crate) fn fresh() -> Result<Self> {
        let library = library()?;
        let mut info = HcclRootInfo { internal: [0; Self::BYTES] };
        // SAFETY: the bytes go to a variable of ours.
        unsafe { hccl!(library, HcclGetRootInfo(&raw mut info)) }?;
        Ok(Self(info))
    }

    pub(crate) fn from_bytes(internal: [u8; Self::BYTES]) -> Self {
        Self(HcclRootInfo { internal })
    }

    pub(crate) fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0.internal
    }
}

/// HCCL's number of a dtype, where it moves elements as such.
pub(crate) fn data_type(dtype: DType) -> Option<i32> {
    Some(match dtype {
        DType::I8 => HCCL_DATA_TYPE_INT8,
        DType::U8 => HCCL_DATA_TYPE_UINT8,
        DType::I32 => HCCL_DATA_TYPE_INT32,
        DType::U32 => HCCL_DATA_TYPE_UINT32,
        DType::I64 => HCCL_DATA_TYPE_INT64,
        DType::U64 => HCCL_DATA_TYPE_UINT64,
        DType::F16 => HCCL_DATA_TYPE_FP16,
        DType::BF16 => HCCL_DATA_TYPE_BFP16,
        DType::F32 => HCCL_DATA_TYPE_FP32,
        _ => return None,
    })
}

/// HCCL's number of a reduction.
fn reduction(op: ReduceOp) -> Result<i32> {
    Ok(match op {
        ReduceOp::SUM => HCCL_REDUCE_SUM,
        ReduceOp::PROD => HCCL_REDUCE_PROD,
        ReduceOp::MIN => HCCL_REDUCE_MIN,
        ReduceOp::MAX => HCCL_REDUCE_MAX,
        other => return Err(Error::unsupported(format!("reduction {other}"))),
    })
}

/// Elements as HCCL counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elements {
    pub(crate) count: u64,
    pub(crate) dtype: i32,
}

impl Elements {
    /// Elements of their kind, or bytes.
    pub(crate) fn of(dtype: DType, count: u64) -> Self {
        match data_type(dtype) {
            Some(dtype) => Self { count, dtype },
            None => Self { count: dtype.bytes(count).unwrap_or(0), dtype: HCCL_DATA_TYPE_UINT8 },
        }
    }
}

/// Rows of an exchange between all ranks: counts and places in elements, by rank.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) at: u64,
    pub(crate) counts: Vec<u64>,
    pub(crate) places: Vec<u64>,
}

/// A message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) sends: bool,
    pub(crate) at: u64,
    pub(crate) elements: Elements,
    pub(crate) bytes: u64,
    pub(crate) peer: u32,
}

/// A call: addresses of device memory.
#[derive(Clone, Debug)]
pub(crate) enum Move {
    Barrier,
    AllReduce {
        src: u64,
        dst: u64,
        elements: Elements,
        op: ReduceOp,
    },
    /// Elements of `dst`.
    ReduceScatter {
        src: u64,
        dst: u64,
        elements: Elements,
        op: ReduceOp,
    },
    /// Elements of `src`.
    AllGather {
        src: u64,
        dst: u64,
        elements: Elements,
    },
    /// So many from each rank to each.
    AllToAll {
        src: u64,
        dst: u64,
        elements: Elements,
    },
    AllToAllV {
        send: Parts,
        recv: Parts,
        dtype: i32,
    },
    Broadcast {
        at: u64,
        elements: Elements,
        root: u32,
    },
    Message(Message),
    /// Messages that do not wait for each other, at most one each way between two ranks.
    Batch(Vec<Message>),
}

fn address(at: u64) -> *mut c_void {
    at as *mut c_void
}

impl Move {
    /// # Safety
    /// The communicator is alive; for the rest as for [`Comm::issue`].
    unsafe fn issue(&self, lib: &Library, comm: HcclComm, on: &Stream) -> Result<()> {
        let stream = on.raw();
        macro_rules! issue {
            ($name:ident($($arg:expr),* $(,)?)) => {
                // SAFETY: the caller's promise. Arrays of the host are read before the call returns.
                unsafe { hccl!(lib, $name($($arg,)* comm, stream)) }
            };
        }
        match self {
            Self::Barrier => issue!(HcclBarrier()),
            Self::AllReduce { src, dst, elements: e, op } => {
                let (src, dst, op) = (address(*src), address(*dst), reduction(*op)?);
                issue!(HcclAllReduce(src, dst, e.count, e.dtype, op))
            }
            Self::ReduceScatter { src, dst, elements: e, op } => {
                let (src, dst, op) = (address(*src), address(*dst), reduction(*op)?);
                issue!(HcclReduceScatter(src, dst, e.count, e.dtype, op))
            }
            Self::AllGather { src, dst, elements: e } => {
                issue!(HcclAllGather(address(*src), address(*dst), e.count, e.dtype))
            }
            Self::AllToAll { src, dst, elements: e } => {
                let (src, dst, n, t) = (address(*src), address(*dst), e.count, e.dtype);
                issue!(HcclAlltoAll(src, n, t, dst, n, t))
            }
            Self::AllToAllV { send, recv, dtype: t } => {
                let array = |numbers: &Vec<u64>| numbers.as_ptr().cast::<c_void>();
                let (src, dst) = (address(send.at), address(recv.at));
                let (to, to_at) = (array(&send.counts), array(&send.places));
                let (from, from_at) = (array(&recv.counts), array(&recv.places));
                issue!(HcclAlltoAllV(src, to, to_at, *t, dst, from, from_at, *t))
            }
            Self::Broadcast { at, elements: e, root } => {
                issue!(HcclBroadcast(address(*at), e.count, e.dtype, *root))
            }
            Self::Message(Message { sends: true, at, elements: e, peer, .. }) => {
                issue!(HcclSend(address(*at), e.count, e.dtype, *peer))
            }
            Self::Message(Message { at, elements: e, peer, .. }) => {
                issue!(HcclRecv(address(*at), e.count, e.dtype, *peer))
            }
            Self::Batch(messages) => {
                let mut items: Vec<_> = messages.iter().map(item).collect();
                issue!(HcclBatchSendRecv(items.as_mut_ptr(), items.len() as u32))
            }
        }
    }
}

fn item(m: &Message) -> HcclSendRecvItem {
    HcclSendRecvItem {
        sendRecvType: if m.sends { HCCL_SEND } else { HCCL_RECV },
        buf: address(m.at),
        count: m.elements.count,
        dataType: m.elements.dtype,
        remoteRank: m.peer,
    }
}

/// Messages in rounds of which each has at most one each way between two ranks, as a batch of HCCL's has to: the n-th message to a rank is
/// in the n-th round, on both sides.
pub(crate) fn rounds(messages: &[Message]) -> Vec<Vec<Message>> {
    let mut before: HashMap<(bool, u32), usize> = HashMap::new();
    let mut rounds: Vec<Vec<Message>> = Vec::new();
    for message in messages {
        let round = before.entry((message.sends, message.peer)).or_default();
        if rounds.len() == *round {
            rounds.push(Vec::new());
        }
        rounds[*round].push(*message);
        *round += 1;
    }
    rounds
}

/// A rank of a communicator. Functions want the device's context bound.
#[derive(Debug)]
pub(crate) struct Comm {
    library: &'static Library,
    /// None once it was given back.
    raw: Mutex<Option<Handle>>,
}

#[derive(Clone, Copy, Debug)]
struct Handle(HcclComm);

// SAFETY: a communicator is a name that HCCL takes from any thread; the lock around it serialises calls.
unsafe impl Send for Handle {}

impl Comm {
    /// Joins as a rank; waits until all ranks have come or HCCL's own time is over.
    ///
    /// # Errors
    /// What HCCL says.
    pub(crate) fn join(info: &RootInfo, rank: u32, world: u32) -> Result<Self> {
        let library = library()?;
        let mut raw = ptr::null_mut();
        // SAFETY: both pointers are to variables that live through the call.
        unsafe {
            hccl!(library, HcclCommInitRootInfo(world, &raw const info.0, rank, &raw mut raw))
        }?;
        Ok(Self { library, raw: Mutex::new(Some(Handle(raw))) })
    }

    fn raw(&self) -> MutexGuard<'_, Option<Handle>> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// The error that HCCL found by itself, if there is one.
    pub(crate) fn check(&self) -> Result<()> {
        let raw = self.raw();
        let Some(Handle(comm)) = *raw else { return Err(gone()) };
        let mut found = 0;
        // SAFETY: the communicator is alive while the lock is held; the error goes to a variable of ours.
        unsafe { hccl!(self.library, HcclGetCommAsyncError(comm, &raw mut found)) }?;
        self.library.check("HCCL", found)
    }

    /// Enqueues a call.
    ///
    /// # Errors
    /// What HCCL says.
    ///
    /// # Safety
    /// Addresses are of device memory with room for the elements, which nothing else uses until the stream has reached this point.
    pub(crate) unsafe fn issue(&self, call: &Move, on: &Stream) -> Result<()> {
        let raw = self.raw();
        let Some(Handle(comm)) = *raw else { return Err(gone()) };
        // SAFETY: the communicator is alive while the lock is held; for the rest the caller's promise.
        unsafe { call.issue(self.library, comm, on) }
    }

    /// Gives the communicator back. Nothing of it is under way.
    pub(crate) fn close(&self) {
        let Some(Handle(comm)) = self.raw().take() else { return };
        // SAFETY: the communicator was alive, and nobody has it any more.
        if let Err(error) = unsafe { hccl!(self.library, HcclCommDestroy(comm)) } {
            tracing::debug!(%error, "a communicator at its end");
        }
    }
}

/// What a call gets when the end came first.
fn gone() -> Error {
    Error::new(Code::COMM_ERROR, "the communicator has ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_message_between_two_ranks_is_in_the_second_round() {
        let elements = Elements::of(DType::F32, 1);
        let message = |sends, peer, at| Message { sends, at, elements, bytes: 4, peer };
        let all = [
            message(true, 1, 0),
            message(true, 1, 4),
            message(false, 1, 8),
            message(true, 2, 12),
            message(false, 1, 16),
        ];
        let places: Vec<Vec<u64>> =
            rounds(&all).iter().map(|r| r.iter().map(|m| m.at).collect()).collect();
        assert_eq!(places, [vec![0, 8, 12], vec![4, 16]]);
        assert!(rounds(&[]).is_empty());
    }
}
