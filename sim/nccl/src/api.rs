//! The C functions. Pointers of the caller appear only here.

use std::{
    ffi::{c_char, c_int},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::PoisonError,
};

use halyard_sdk::{DType, ReduceOp};
use halyard_sim_cuda_calls::{Place, Stream};

use crate::{
    call::{Call, Kind},
    comm::{self, UniqueId, begin_join, find, in_progress},
    group,
    result::{self, Code, Failure, Outcome},
};

/// NCCL 2.24.3: the newest whose numbers are known here.
const VERSION: c_int = 22_403;
/// `NCCL_CONFIG_UNDEF_INT`
const UNDEFINED: c_int = c_int::MIN;
/// `NCCL_API_MAGIC`
const MAGIC: u32 = 0xcafe_beef;
/// `NCCL_SPLIT_NOCOLOR`
const NO_COLOR: c_int = -1;

/// Where a result goes. The caller of an entry promises that it may be written, or is null.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    fn set(&self, value: T) -> Outcome {
        if self.0.is_null() {
            return Err(Failure::argument("a null pointer for a result"));
        }
        // SAFETY: the caller of the entry promises that the pointer, which is not null, may be written.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// The beginning of `ncclConfig_t`, which all its versions have.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
}

/// Whether functions wait, as a configuration or its absence says.
fn blocking(config: *const Config, otherwise: bool) -> Outcome<bool> {
    if config.is_null() {
        return Ok(otherwise);
    }
    // SAFETY: the caller of the entry promises a configuration behind a pointer that is not null.
    let config = unsafe { config.read_unaligned() };
    if config.magic != MAGIC || config.size < size_of::<Config>() || config.version < 21_700 {
        return Err(Failure::argument("a configuration without NCCL_CONFIG_INITIALIZER"));
    }
    match config.blocking {
        UNDEFINED => Ok(otherwise),
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Failure::argument(format!("a configuration with blocking {other}"))),
    }
}

/// Runs an entry.
fn guard(entry: impl FnOnce() -> Outcome) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(entry));
    let outcome = outcome.unwrap_or_else(|_| {
        Err(Failure::new(Code::InternalError, "a bug in the software NCCL: panic"))
    });
    match outcome {
        Ok(()) => 0,
        Err(failure) => {
            if failure.code != Code::InProgress {
                result::remember(&failure.text);
            }
            failure.code as u32
        }
    }
}

/// Defines entries: each exported by its name, its body guarded.
macro_rules! entries {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => { $(
        #[doc = concat!("`", stringify!($name), "` of NCCL.")]
        ///
        /// # Safety
        /// Pointers are as NCCL asks.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
            guard(move || $body)
        }
    )* };
}

fn dtype(number: c_int) -> Outcome<DType> {
    Ok(match number {
        0 => DType::I8,
        1 => DType::U8,
        2 => DType::I32,
        3 => DType::U32,
        4 => DType::I64,
        5 => DType::U64,
        6 => DType::F16,
        7 => DType::F32,
        9 => DType::BF16,
        10 => DType::F8E4M3,
        11 => DType::F8E5M2,
        8 => return Err(Failure::argument("ncclFloat64 is not in the software NCCL")),
        other => return Err(Failure::argument(format!("data type {other}"))),
    })
}

fn reduction(number: c_int) -> Outcome<ReduceOp> {
    Ok(match number {
        0 => ReduceOp::SUM,
        1 => ReduceOp::PROD,
        2 => ReduceOp::MAX,
        3 => ReduceOp::MIN,
        4 => ReduceOp::AVG,
        other => return Err(Failure::argument(format!("reduction {other}"))),
    })
}

fn member_number(number: c_int) -> Outcome<u32> {
    u32::try_from(number).map_err(|_| Failure::argument(format!("rank {number}")))
}

/// What most calls have in common.
struct Common {
    count: usize,
    dtype: c_int,
    comm: usize,
    stream: usize,
}

fn call(kind: Kind, send: u64, recv: u64, common: &Common) -> Outcome {
    let Common { count, dtype: number, comm, stream } = *common;
    let (count, dtype, stream) = (count as u64, dtype(number)?, Stream(stream));
    if let Kind::AllReduce(ReduceOp::AVG)
    | Kind::ReduceScatter(ReduceOp::AVG)
    | Kind::Reduce { op: ReduceOp::AVG, .. } = kind
        && matches!(
            dtype,
            DType::I8 | DType::U8 | DType::I32 | DType::U32 | DType::I64 | DType::U64
        )
    {
        return Err(Failure::argument("the software NCCL has means of floats only"));
    }
    group::call(&find(comm)?, Call { kind, send, recv, count, dtype, stream })
}

/// Joins every device of a list, as a process that has them all does.
fn init_all(comms: &Out<usize>, devices: &[c_int]) -> Outcome {
    let id = UniqueId::fresh()?;
    let world =
        c_int::try_from(devices.len()).map_err(|_| Failure::argument("too many devices"))?;
    let mut made = Vec::with_capacity(devices.len());
    for (rank, &device) in (0..world).zip(devices) {
        made.push(begin_join(id, rank, world, Place::of(device)?, true)?);
    }
    let joined = made.iter().try_for_each(|(_, comm)| comm.wait());
    for (i, (handle, _)) in made.iter().enumerate() {
        if joined.is_err() {
            comm::remove(*handle)?;
        } else {
            // SAFETY: the caller of the entry promises room for a handle a device.
            let place = unsafe { comms.0.add(i) };
            // SAFETY: as above.
            unsafe { place.write(*handle) };
        }
    }
    joined
}

/// Joins one rank.
fn init(out: &Out<usize>, world: c_int, id: UniqueId, rank: c_int, blocking: bool) -> Outcome {
    let (handle, comm) = begin_join(id, rank, world, Place::current()?, blocking)?;
    out.set(handle)?;
    match group::join(&comm) {
        Err(failure) if failure.code != Code::InProgress => {
            comm::remove(handle)?;
            out.set(0)?;
            Err(failure)
        }
        other => other,
    }
}

entries! {
    fn ncclGetVersion(version: Out<c_int>) {
        version.set(VERSION)
    }

    fn ncclGetUniqueId(id: Out<UniqueId>) {
        id.set(UniqueId::fresh()?)
    }

    fn ncclCommInitRank(comm: Out<usize>, world: c_int, id: UniqueId, rank: c_int) {
        init(&comm, world, id, rank, true)
    }

    fn ncclCommInitRankConfig(comm: Out<usize>, world: c_int, id: UniqueId, rank: c_int, config: *const Config) {
        init(&comm, world, id, rank, blocking(config, true)?)
    }

    fn ncclCommInitAll(comms: Out<usize>, count: c_int, list: *const c_int) {
        let count = usize::try_from(count).map_err(|_| Failure::argument("devices below zero"))?;
        if comms.0.is_null() || count == 0 {
            return Err(Failure::argument("no devices, or no room for their communicators"));
        }
        let devices: Vec<c_int> = match list.is_null() {
            true => (0..).take(count).collect(),
            // SAFETY: the caller of the entry promises `count` numbers.
            false => unsafe { std::slice::from_raw_parts(list, count) }.to_vec(),
        };
        init_all(&comms, &devices)
    }

    fn ncclCommSplit(comm: usize, color: c_int, key: c_int, part: Out<usize>, config: *const Config) {
        let comm = find(comm)?;
        if color < 0 && color != NO_COLOR {
            return Err(Failure::argument(format!("color {color}")));
        }
        if blocking(config, comm.blocking)? != comm.blocking {
            return Err(Failure::argument("a part waits as its whole does, in the software NCCL"));
        }
        let (handle, join) = match comm.split(color, key)? {
            Some((handle, join)) => (handle, Some(join)),
            None => (0, None),
        };
        part.set(handle)?;
        match join {
            Some(join) => group::join(&join),
            None if comm.blocking => Ok(()),
            None => Err(in_progress()),
        }
    }

    fn ncclCommCount(comm: usize, count: Out<c_int>) {
        count.set(find(comm)?.member()?.world.cast_signed())
    }

    fn ncclCommCuDevice(comm: usize, device: Out<c_int>) {
        device.set(find(comm)?.place.device())
    }

    fn ncclCommUserRank(comm: usize, rank: Out<c_int>) {
        rank.set(find(comm)?.member()?.rank.cast_signed())
    }

    fn ncclCommFinalize(comm: usize) {
        let comm = find(comm)?;
        let member = comm.member()?;
        comm.turns.flush(&member)
    }

    fn ncclCommDestroy(comm: usize) {
        let comm = comm::remove(comm)?;
        let memory = comm.streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        comm.place.within(|| memory.into_iter().try_for_each(|pinned| Ok(pinned.free()?)))
    }

    // What aborted work may still use is never freed.
    fn ncclCommAbort(comm: usize) {
        comm::remove(comm)?.fail(Failure::new(Code::RemoteError, "the communicator was aborted"));
        Ok(())
    }

    fn ncclCommGetAsyncError(comm: usize, error: Out<u32>) {
        match find(comm)?.async_error() {
            Ok(()) => error.set(0),
            Err(failure) => {
                result::remember(&failure.text);
                error.set(failure.code as u32)
            }
        }
    }

    fn ncclGroupStart() {
        group::start();
        Ok(())
    }

    fn ncclGroupEnd() {
        group::end()
    }

    fn ncclAllReduce(send: u64, recv: u64, count: usize, dtype: c_int, op: c_int, comm: usize, stream: usize) {
        call(Kind::AllReduce(reduction(op)?), send, recv, &Common { count, dtype, comm, stream })
    }

    fn ncclBroadcast(send: u64, recv: u64, count: usize, dtype: c_int, root: c_int, comm: usize, stream: usize) {
        let kind = Kind::Broadcast { root: member_number(root)? };
        call(kind, send, recv, &Common { count, dtype, comm, stream })
    }

    fn ncclReduce(send: u64, recv: u64, count: usize, dtype: c_int, op: c_int, root: c_int, comm: usize, stream: usize) {
        let kind = Kind::Reduce { op: reduction(op)?, root: member_number(root)? };
        call(kind, send, recv, &Common { count, dtype, comm, stream })
    }

    fn ncclAllGather(send: u64, recv: u64, count: usize, dtype: c_int, comm: usize, stream: usize) {
        call(Kind::AllGather, send, recv, &Common { count, dtype, comm, stream })
    }

    fn ncclReduceScatter(send: u64, recv: u64, count: usize, dtype: c_int, op: c_int, comm: usize, stream: usize) {
        call(Kind::ReduceScatter(reduction(op)?), send, recv, &Common { count, dtype, comm, stream })
    }

    fn ncclSend(send: u64, count: usize, dtype: c_int, peer: c_int, comm: usize, stream: usize) {
        call(Kind::Send { peer: member_number(peer)? }, send, 0, &Common { count, dtype, comm, stream })
    }

    fn ncclRecv(recv: u64, count: usize, dtype: c_int, peer: c_int, comm: usize, stream: usize) {
        call(Kind::Recv { peer: member_number(peer)? }, 0, recv, &Common { count, dtype, comm, stream })
    }
}

/// `ncclGetErrorString` of NCCL.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn ncclGetErrorString(code: u32) -> *const c_char {
    result::meaning(code).as_ptr()
}

/// `ncclGetLastError` of NCCL: the text lives until this thread's next failure.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn ncclGetLastError(_comm: usize) -> *const c_char {
    result::last_error()
}
