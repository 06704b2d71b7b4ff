//! Results, and the text of the last failure of a thread.

use std::{
    cell::RefCell,
    ffi::{CString, c_char},
};

use halyard_sim_cuda_calls::CallError;

/// `cublasStatus_t`, without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    NotInitialized = 1,
    InvalidValue = 7,
    ExecutionFailed = 13,
    InternalError = 14,
    NotSupported = 15,
}

impl Status {
    fn meaning(status: u32) -> &'static str {
        match status {
            0 => "the operation completed successfully",
            1 => "the library was not initialized",
            7 => "an unsupported value or parameter was passed to the function",
            13 => "the GPU program failed to execute",
            14 => "an internal operation failed",
            15 => "the functionality requested is not supported",
            _ => "unknown status",
        }
    }
}

/// A result that is no success, and why.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) text: String,
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(crate) fn value(text: impl Into<String>) -> Self {
        Self::new(Status::InvalidValue, text)
    }

    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self::new(Status::NotSupported, text)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let status = match error {
            CallError::NoDriver | CallError::NoContext => Status::NotInitialized,
            CallError::Failed { .. } => Status::ExecutionFailed,
        };
        Self::new(status, error.to_string())
    }
}

thread_local! {
    /// Of the last failure: its status, its reason, and both as the text that a caller has.
    static LAST: RefCell<(u32, String, CString)> = RefCell::default();
}

/// Keeps a failure for [`text`] of this thread.
pub(crate) fn remember(failure: &Failure) {
    LAST.with(|last| {
        let mut last = last.borrow_mut();
        last.0 = failure.status as u32;
        last.1.clone_from(&failure.text);
    });
}

/// What a status means, and why the thread's last failure was one if it has this status. The text lives until the thread asks again.
pub(crate) fn text(status: u32) -> *const c_char {
    LAST.with(|last| {
        let mut last = last.borrow_mut();
        let mut text = Status::meaning(status).to_owned();
        if status != 0 && last.0 == status {
            text = format!("{text}: {}", last.1);
        }
        last.2 = CString::new(text.replace('\0', " ")).unwrap_or_default();
        last.2.as_ptr()
    })
}
