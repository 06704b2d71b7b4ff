//! What the driver's results mean to a host.

use cudarc::driver::{DriverError, sys::CUresult};
use halyard_sdk::{Code, Error, Result};

/// Says which driver call failed.
pub(crate) trait Named<T> {
    /// The result, with the call's name in the error.
    fn named(self, call: &str) -> Result<T>;
}

impl<T> Named<T> for core::result::Result<T, DriverError> {
    fn named(self, call: &str) -> Result<T> {
        self.map_err(|error| translate(call, error))
    }
}

impl Named<()> for CUresult {
    fn named(self, call: &str) -> Result<()> {
        self.result().named(call)
    }
}

fn translate(call: &str, error: DriverError) -> Error {
    let text = |of: core::result::Result<&core::ffi::CStr, DriverError>| {
        of.map_or_else(|_| "unknown".into(), |t| t.to_string_lossy().into_owned())
    };
    let message = format!("{call}: {}: {}", text(error.error_name()), text(error.error_string()));
    Error { vendor_code: error.0 as i32, ..Error::new(code(error.0), message) }
}

fn code(result: CUresult) -> Code {
    use CUresult as C;
    match result {
        C::CUDA_ERROR_OUT_OF_MEMORY => Code::OUT_OF_MEMORY,
        C::CUDA_ERROR_NOT_READY => Code::NOT_READY,
        C::CUDA_ERROR_NOT_SUPPORTED => Code::UNSUPPORTED,
        C::CUDA_ERROR_DEVICE_UNAVAILABLE => Code::BUSY,
        C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_LAUNCH_TIMEOUT
        | C::CUDA_ERROR_ASSERT
        | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | C::CUDA_ERROR_INVALID_PC
        | C::CUDA_ERROR_LAUNCH_FAILED => Code::KERNEL_FAULT,
        C::CUDA_ERROR_ECC_UNCORRECTABLE
        | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | C::CUDA_ERROR_SYSTEM_NOT_READY
        | C::CUDA_ERROR_DEINITIALIZED
        | C::CUDA_ERROR_UNKNOWN => Code::DEVICE_LOST,
        _ => Code::INTERNAL,
    }
}
