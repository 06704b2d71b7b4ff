//! Results, and the text of the last error of a thread.

use std::{
    cell::RefCell,
    ffi::{CStr, CString, c_char},
};

use halyard_sdk::Code as SdkCode;
use halyard_sim_cuda_calls::CallError;

/// `ncclResult_t`, without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Code {
    UnhandledCudaError = 1,
    SystemError = 2,
    InternalError = 3,
    InvalidArgument = 4,
    InvalidUsage = 5,
    RemoteError = 6,
    InProgress = 7,
}

/// A result that is no success, and why.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) text: String,
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    pub(crate) fn argument(text: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, text)
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Code::InvalidUsage, text)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let code = match error {
            CallError::NoContext => Code::InvalidUsage,
            CallError::NoDriver | CallError::Failed { .. } => Code::UnhandledCudaError,
        };
        Self::new(code, error.to_string())
    }
}

impl From<halyard_sdk::Error> for Failure {
    fn from(error: halyard_sdk::Error) -> Self {
        let code = match error.code {
            SdkCode::INVALID_ARGUMENT | SdkCode::UNSUPPORTED => Code::InvalidArgument,
            SdkCode::COMM_ERROR | SdkCode::COMM_ABORTED => Code::RemoteError,
            SdkCode::IO => Code::SystemError,
            _ => Code::InternalError,
        };
        Self::new(code, error.message.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps a failure's text for `ncclGetLastError` of this thread.
pub(crate) fn remember(text: &str) {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = text);
}

/// The text that was kept last; it lives until this thread fails again.
pub(crate) fn last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

/// What a code means.
pub(crate) fn meaning(code: u32) -> &'static CStr {
    match code {
        0 => c"no error",
        1 => c"unhandled cuda error",
        2 => c"unhandled system error",
        3 => c"internal error",
        4 => c"invalid argument",
        5 => c"invalid usage",
        6 => c"remote process exited or there was a network error",
        7 => c"operation in progress",
        _ => c"unknown result code",
    }
}
