//! Failures of calls on a device.

use halyard_abi::{AbiError, Code, RResult};

/// The boundary's method that failed.
pub type Call = &'static str;

/// A call on a device failed, or was refused before it reached the backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {code}{}{message}{}", colon(message), vendor(*vendor_code))]
pub struct DeviceError {
    /// What kind of failure.
    pub code: Code,
    /// The vendor library's own code, 0 if none.
    pub vendor_code: i32,
    /// Which method.
    pub call: Call,
    /// One line, for people.
    pub message: String,
}

fn colon(message: &str) -> &'static str {
    if message.is_empty() { "" } else { ": " }
}

fn vendor(code: i32) -> String {
    if code == 0 { String::new() } else { format!(" (vendor code {code})") }
}

impl DeviceError {
    pub(crate) fn new(call: Call, error: AbiError) -> Self {
        Self {
            code: error.code,
            vendor_code: error.vendor_code,
            call,
            message: error.message.into_string(),
        }
    }

    pub(crate) fn invalid(call: Call, message: impl Into<String>) -> Self {
        Self::new(call, AbiError::invalid(message))
    }

    /// Whether the device is unusable from now on.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        self.code.is_sticky()
    }

    /// Whether the backend can never do what was asked.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.code == Code::UNSUPPORTED
    }
}

/// Logs what could not be given back. A device that has failed takes nothing back any more, which was said when it failed.
pub(crate) fn could_not(what: &'static str, error: &DeviceError) {
    if error.is_sticky() {
        tracing::debug!(%error, "could not {what}");
    } else {
        tracing::warn!(%error, "could not {what}");
    }
}

/// Names the method of a failed call.
pub(crate) trait Named<T> {
    fn named(self, call: Call) -> crate::Result<T>;
}

impl<T> Named<T> for RResult<T, AbiError> {
    fn named(self, call: Call) -> crate::Result<T> {
        self.into_result().map_err(|e| DeviceError::new(call, e))
    }
}

impl<T> Named<T> for Result<T, AbiError> {
    fn named(self, call: Call) -> crate::Result<T> {
        self.map_err(|e| DeviceError::new(call, e))
    }
}
