//! The error value that crosses the boundary.

use abi_stable::{
    StableAbi,
    std_types::{RResult, RString},
};

use crate::ids::Code;

/// Why a call failed.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct AbiError {
    /// What kind of failure.
    pub code: Code,
    /// The vendor library's own code, 0 if none.
    pub vendor_code: i32,
    /// One line of English that names the failing vendor call, if there was one.
    pub message: RString,
}

/// What every fallible call returns.
pub type R<T> = RResult<T, AbiError>;

impl AbiError {
    /// An error without a vendor's code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, vendor_code: 0, message: RString::from(message.into()) }
    }

    /// The caller broke the contract.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    /// The backend can never do this.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Code::UNSUPPORTED, message)
    }
}

impl core::fmt::Display for AbiError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if self.vendor_code != 0 {
            write!(f, " (vendor code {})", self.vendor_code)?;
        }
        Ok(())
    }
}

impl core::error::Error for AbiError {}
