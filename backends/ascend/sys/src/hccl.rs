//! Functions of HCCL.

use std::ffi::{c_char, c_void};

use crate::{Libraries, types::aclrtStream};

/// `HcclResult`; 0 is success.
pub type HcclResult = i32;
/// `HcclComm`
pub type HcclComm = *mut c_void;

/// Bytes of an [`HcclRootInfo`].
pub const HCCL_ROOT_INFO_BYTES: usize = 4108;

/// `HcclRootInfo`: bytes that other ranks get by our own means.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HcclRootInfo {
    pub internal: [u8; HCCL_ROOT_INFO_BYTES],
}

/// `HcclSendRecvItem`: a message of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HcclSendRecvItem {
    /// [`HCCL_SEND`] or [`HCCL_RECV`].
    pub sendRecvType: i32,
    pub buf: *mut c_void,
    pub count: u64,
    pub dataType: i32,
    pub remoteRank: u32,
}

const _: () = assert!(size_of::<HcclSendRecvItem>() == 32);

pub const HCCL_SEND: i32 = 0;
pub const HCCL_RECV: i32 = 1;

pub const HCCL_DATA_TYPE_INT8: i32 = 0;
pub const HCCL_DATA_TYPE_INT32: i32 = 2;
pub const HCCL_DATA_TYPE_FP16: i32 = 3;
pub const HCCL_DATA_TYPE_FP32: i32 = 4;
pub const HCCL_DATA_TYPE_INT64: i32 = 5;
pub const HCCL_DATA_TYPE_UINT64: i32 = 6;
pub const HCCL_DATA_TYPE_UINT8: i32 = 7;
pub const HCCL_DATA_TYPE_UINT32: i32 = 9;
pub const HCCL_DATA_TYPE_BFP16: i32 = 11;

pub const HCCL_REDUCE_SUM: i32 = 0;
pub const HCCL_REDUCE_PROD: i32 = 1;
pub const HCCL_REDUCE_MAX: i32 = 2;
pub const HCCL_REDUCE_MIN: i32 = 3;

macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        /// The functions, each if the installed release has it.
        #[derive(Debug)]
        pub struct Hccl {
            $(pub $name: Option<unsafe extern "C" fn($($arg: $ty),*) -> $ret>,)*
        }

        impl Hccl {
            /// Looks each function up.
            #[must_use]
            pub fn load(libraries: &Libraries) -> Self {
                // SAFETY: the types are those of the vendor's headers.
                Self { $($name: unsafe { libraries.symbol(stringify!($name)) },)* }
            }
        }
    };
}

functions! {
    HcclGetRootInfo(rootInfo: *mut HcclRootInfo) -> HcclResult;
    HcclCommInitRootInfo(nRanks: u32, rootInfo: *const HcclRootInfo, rank: u32, comm: *mut HcclComm) -> HcclResult;
    HcclCommDestroy(comm: HcclComm) -> HcclResult;
    HcclGetCommAsyncError(comm: HcclComm, asyncError: *mut HcclResult) -> HcclResult;
    HcclGetErrorString(code: HcclResult) -> *const c_char;
    HcclBarrier(comm: HcclComm, stream: aclrtStream) -> HcclResult;
    HcclAllReduce(
        sendBuf: *mut c_void,
        recvBuf: *mut c_void,
        count: u64,
        dataType: i32,
        op: i32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclAllGather(
        sendBuf: *mut c_void,
        recvBuf: *mut c_void,
        sendCount: u64,
        dataType: i32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclReduceScatter(
        sendBuf: *mut c_void,
        recvBuf: *mut c_void,
        recvCount: u64,
        dataType: i32,
        op: i32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclBroadcast(
        buf: *mut c_void,
        count: u64,
        dataType: i32,
        root: u32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclAlltoAll(
        sendBuf: *const c_void,
        sendCount: u64,
        sendType: i32,
        recvBuf: *const c_void,
        recvCount: u64,
        recvType: i32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclAlltoAllV(
        sendBuf: *const c_void,
        sendCounts: *const c_void,
        sdispls: *const c_void,
        sendType: i32,
        recvBuf: *const c_void,
        recvCounts: *const c_void,
        rdispls: *const c_void,
        recvType: i32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclSend(
        sendBuf: *mut c_void,
        count: u64,
        dataType: i32,
        destRank: u32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclRecv(
        recvBuf: *mut c_void,
        count: u64,
        dataType: i32,
        srcRank: u32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
    HcclBatchSendRecv(
        sendRecvInfo: *mut HcclSendRecvItem,
        itemNum: u32,
        comm: HcclComm,
        stream: aclrtStream,
    ) -> HcclResult;
}
