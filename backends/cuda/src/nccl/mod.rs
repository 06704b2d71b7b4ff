//! NCCL as safe Rust: nothing is linked, the library is looked for when a communicator is wanted.
//!
//! Communicators never block: what NCCL has not done yet is asked for until it is done, the time is over, or somebody aborts. So an abort
//! comes through while a call waits for other ranks, too.

mod comm;

use std::ffi::{CStr, c_char};

use cudarc::nccl::sys::{self, ncclDataType_t as Type, ncclRedOp_t as Op, ncclResult_t as Raw};
use halyard_sdk::{Code, DType, Error, ReduceOp, Result};

pub(crate) use comm::{Comm, Move};

/// The first version whose communicators split: 2.18.1.
const OLDEST: i32 = 21_801;

/// Loads NCCL; its version.
///
/// # Errors
/// `UNSUPPORTED` if there is none or an older one.
pub(crate) fn start() -> Result<i32> {
    // SAFETY: looking for the library runs its initialisers, which NCCL's own are made for.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::unsupported(
            "no libnccl.so: devices that work together need NCCL 2.18 or newer on the library path (the package libnccl-dev, or \
             libnccl2 with a link libnccl.so to libnccl.so.2)",
        ));
    }
    // SAFETY: the library is there.
    let library = unsafe { sys::culib() };
    // SAFETY: whether it has the entry is all that is asked.
    if unsafe { library.get::<unsafe extern "C" fn()>(b"ncclGetVersion") }.is_err() {
        return Err(Error::unsupported(
            "libnccl.so is no NCCL: it has no ncclGetVersion; look at the library path",
        ));
    }
    let mut version = 0;
    // SAFETY: the version goes to a variable of ours.
    named("ncclGetVersion", unsafe { sys::ncclGetVersion(&raw mut version) })?;
    if version < OLDEST {
        return Err(Error::unsupported(format!(
            "NCCL {} is installed, at least {} is needed",
            dotted(version),
            dotted(OLDEST)
        )));
    }
    Ok(version)
}

/// `2.18.1` of 21801.
pub(crate) fn dotted(version: i32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// A communicator's id.
#[derive(Clone, Copy)]
pub(crate) struct UniqueId(sys::ncclUniqueId);

impl UniqueId {
    pub(crate) const BYTES: usize = 128;

    pub(crate) fn fresh() -> Result<Self> {
        let mut id = sys::ncclUniqueId { internal: [0; Self::BYTES] };
        // SAFETY: the id goes to a variable of ours.
        named("ncclGetUniqueId", unsafe { sys::ncclGetUniqueId(&raw mut id) })?;
        Ok(Self(id))
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(sys::ncclUniqueId { internal: bytes.map(|b| b as c_char) })
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.internal.map(|b| b as u8)
    }
}

/// NCCL's number of a dtype, where it moves elements as such.
pub(crate) fn data_type(dtype: DType) -> Option<Type> {
    Some(match dtype {
        DType::I8 => Type::ncclInt8,
        DType::U8 => Type::ncclUint8,
        DType::I32 => Type::ncclInt32,
        DType::U32 => Type::ncclUint32,
        DType::I64 => Type::ncclInt64,
        DType::U64 => Type::ncclUint64,
        DType::F16 => Type::ncclFloat16,
        DType::BF16 => Type::ncclBfloat16,
        DType::F32 => Type::ncclFloat32,
        _ => return None,
    })
}

/// NCCL's number of a reduction.
fn reduction(op: ReduceOp) -> Result<Op> {
    Ok(match op {
        ReduceOp::SUM => Op::ncclSum,
        ReduceOp::PROD => Op::ncclProd,
        ReduceOp::MIN => Op::ncclMin,
        ReduceOp::MAX => Op::ncclMax,
        ReduceOp::AVG => Op::ncclAvg,
        other => return Err(Error::unsupported(format!("reduction {other}"))),
    })
}

/// Says which call failed, and why. What is in progress is no failure.
fn named(call: &str, result: Raw) -> Result<()> {
    if matches!(result, Raw::ncclSuccess | Raw::ncclInProgress) {
        return Ok(());
    }
    let text = |from: *const c_char| {
        if from.is_null() {
            return String::new();
        }
        // SAFETY: NCCL's texts end with a zero, and live until the thread's next failure.
        unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
    };
    // SAFETY: any code has a text.
    let kind = text(unsafe { sys::ncclGetErrorString(result) });
    // SAFETY: the communicator may be left out.
    let detail = text(unsafe { sys::ncclGetLastError(std::ptr::null_mut()) });
    let message = format!("{call}: {kind}: {detail}");
    Err(Error { vendor_code: result as i32, ..Error::new(Code::COMM_ERROR, message) })
}
