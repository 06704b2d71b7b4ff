//! Functions of AscendCL and of the aclnn base.

use std::ffi::{c_char, c_void};

use crate::{Libraries, types::*};

macro_rules! functions {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        /// The functions, each if the installed release has it.
        #[derive(Debug)]
        pub struct Acl {
            $(pub $name: Option<unsafe extern "C" fn($($arg: $ty),*) -> $ret>,)*
        }

        impl Acl {
            /// Looks each function up.
            #[must_use]
            pub fn load(libraries: &Libraries) -> Self {
                // SAFETY: the types are those of the vendor's headers.
                Self { $($name: unsafe { libraries.symbol(stringify!($name)) },)* }
            }

            /// Functions that are not there.
            pub fn missing(&self) -> impl Iterator<Item = &'static str> {
                let all = [$((stringify!($name), self.$name.is_none()),)*];
                all.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name)
            }
        }
    };
}

functions! {
    aclInit(configPath: *const c_char) -> aclError;
    aclGetRecentErrMsg() -> *const c_char;
    aclrtGetVersion(major: *mut i32, minor: *mut i32, patch: *mut i32) -> aclError;
    aclsysGetCANNVersion(name: i32, version: *mut c_void) -> aclError;
    aclrtGetSocName() -> *const c_char;
    aclrtGetDeviceCount(count: *mut u32) -> aclError;
    aclrtSetDevice(deviceId: i32) -> aclError;
    aclrtCreateContext(context: *mut aclrtContext, deviceId: i32) -> aclError;
    aclrtDestroyContext(context: aclrtContext) -> aclError;
    aclrtSetCurrentContext(context: aclrtContext) -> aclError;
    aclrtGetCurrentContext(context: *mut aclrtContext) -> aclError;
    aclGetDeviceCapability(deviceId: u32, deviceInfo: i32, value: *mut i64) -> aclError;
    aclrtGetMemInfo(attr: i32, free: *mut usize, total: *mut usize) -> aclError;
    aclrtCreateStreamWithConfig(stream: *mut aclrtStream, priority: u32, flag: u32) -> aclError;
    aclrtDestroyStream(stream: aclrtStream) -> aclError;
    aclrtSynchronizeStream(stream: aclrtStream) -> aclError;
    aclrtStreamAbort(stream: aclrtStream) -> aclError;
    aclrtStreamQuery(stream: aclrtStream, status: *mut i32) -> aclError;
    aclrtStreamWaitEvent(stream: aclrtStream, event: aclrtEvent) -> aclError;
    aclrtCreateEventExWithFlag(event: *mut aclrtEvent, flag: u32) -> aclError;
    aclrtDestroyEvent(event: aclrtEvent) -> aclError;
    aclrtRecordEvent(event: aclrtEvent, stream: aclrtStream) -> aclError;
    aclrtQueryEventStatus(event: aclrtEvent, status: *mut i32) -> aclError;
    aclrtSynchronizeEvent(event: aclrtEvent) -> aclError;
    aclrtEventElapsedTime(ms: *mut f32, start: aclrtEvent, end: aclrtEvent) -> aclError;
    aclrtMalloc(devPtr: *mut *mut c_void, size: usize, policy: i32) -> aclError;
    aclrtFree(devPtr: *mut c_void) -> aclError;
    aclrtMallocHost(hostPtr: *mut *mut c_void, size: usize) -> aclError;
    aclrtFreeHost(hostPtr: *mut c_void) -> aclError;
    aclrtMemcpyAsync(
        dst: *mut c_void,
        destMax: usize,
        src: *const c_void,
        count: usize,
        kind: i32,
        stream: aclrtStream,
    ) -> aclError;
    aclrtMemcpy2dAsync(
        dst: *mut c_void,
        dpitch: usize,
        src: *const c_void,
        spitch: usize,
        width: usize,
        height: usize,
        kind: i32,
        stream: aclrtStream,
    ) -> aclError;
    aclrtLaunchHostFunc(
        stream: aclrtStream,
        function: aclrtCallback,
        args: *mut c_void,
    ) -> aclError;
    aclmdlRICaptureBegin(stream: aclrtStream, mode: i32) -> aclError;
    aclmdlRICaptureEnd(stream: aclrtStream, modelRI: *mut aclmdlRI) -> aclError;
    aclmdlRICaptureTaskGrpBegin(stream: aclrtStream) -> aclError;
    aclmdlRICaptureTaskGrpEnd(stream: aclrtStream, handle: *mut aclrtTaskGrp) -> aclError;
    aclmdlRICaptureTaskUpdateBegin(stream: aclrtStream, handle: aclrtTaskGrp) -> aclError;
    aclmdlRICaptureTaskUpdateEnd(stream: aclrtStream) -> aclError;
    aclmdlRIExecuteAsync(modelRI: aclmdlRI, stream: aclrtStream) -> aclError;
    aclmdlRIDestroy(modelRI: aclmdlRI) -> aclError;

    aclCreateTensor(
        viewDims: *const i64,
        viewDimsNum: u64,
        dataType: i32,
        stride: *const i64,
        offset: i64,
        format: i32,
        storageDims: *const i64,
        storageDimsNum: u64,
        tensorData: *mut c_void,
    ) -> *mut aclTensor;
    aclDestroyTensor(tensor: *const aclTensor) -> aclnnStatus;
    aclCreateTensorList(value: *const *const aclTensor, size: u64) -> *mut aclTensorList;
    aclDestroyTensorList(list: *const aclTensorList) -> aclnnStatus;
    aclCreateScalar(value: *mut c_void, dataType: i32) -> *mut aclScalar;
    aclDestroyScalar(scalar: *const aclScalar) -> aclnnStatus;
    aclCreateIntArray(value: *const i64, size: u64) -> *mut aclIntArray;
    aclDestroyIntArray(array: *const aclIntArray) -> aclnnStatus;
    aclSetAclOpExecutorRepeatable(executor: *mut aclOpExecutor) -> aclnnStatus;
    aclDestroyAclOpExecutor(executor: *mut aclOpExecutor) -> aclnnStatus;
    aclSetTensorAddr(
        executor: *mut aclOpExecutor,
        index: usize,
        tensor: *mut aclTensor,
        addr: *mut c_void,
    ) -> aclnnStatus;
}
