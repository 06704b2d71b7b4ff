//! Types and constants of `acl/acl_base.h`, `acl/acl_rt.h` and `aclnn/acl_meta.h`. Enumerations are C's `int`.

use std::ffi::c_void;

pub type aclError = i32;
pub type aclnnStatus = i32;
pub type aclrtStream = *mut c_void;
pub type aclrtEvent = *mut c_void;
pub type aclrtContext = *mut c_void;
pub type aclmdlRI = *mut c_void;
pub type aclrtTaskGrp = *mut c_void;
pub type aclrtCallback = unsafe extern "C" fn(*mut c_void);

macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            _private: [u8; 0],
        }
    )*};
}

opaque! { aclTensor aclTensorList aclScalar aclIntArray aclOpExecutor }

/// Bytes of an `aclCANNPackageVersion`, which begins with the version's text.
pub const CANN_PACKAGE_VERSION_BYTES: usize = 512;
pub const ACL_PKG_NAME_CANN: i32 = 0;
pub const ACL_PKG_NAME_TOOLKIT: i32 = 4;

pub const ACL_FLOAT: i32 = 0;
pub const ACL_FLOAT16: i32 = 1;
pub const ACL_INT8: i32 = 2;
pub const ACL_INT32: i32 = 3;
pub const ACL_UINT8: i32 = 4;
pub const ACL_INT64: i32 = 9;
pub const ACL_BOOL: i32 = 12;
pub const ACL_BF16: i32 = 27;
pub const ACL_INT4: i32 = 29;

pub const ACL_FORMAT_ND: i32 = 2;
pub const ACL_FORMAT_FRACTAL_NZ: i32 = 29;

pub const ACL_MEMCPY_HOST_TO_DEVICE: i32 = 1;
pub const ACL_MEMCPY_DEVICE_TO_HOST: i32 = 2;
pub const ACL_MEMCPY_DEVICE_TO_DEVICE: i32 = 3;

pub const ACL_MEM_MALLOC_HUGE_FIRST: i32 = 0;
pub const ACL_HBM_MEM: i32 = 1;

pub const ACL_EVENT_SYNC: u32 = 0x1;
pub const ACL_EVENT_TIME_LINE: u32 = 0x8;
pub const ACL_EVENT_RECORDED_STATUS_COMPLETE: i32 = 1;
pub const ACL_STREAM_STATUS_COMPLETE: i32 = 0;

pub const ACL_MODEL_RI_CAPTURE_MODE_RELAXED: i32 = 2;

pub const ACL_DEVICE_INFO_AI_CORE_NUM: i32 = 0;
