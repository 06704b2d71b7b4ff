//! What the first phase answers to arguments that the documentation excludes.

use std::fmt;

/// Codes of `aclnnStatus` and of device faults.
pub mod code {
    /// A required pointer is null.
    pub const NULL: i32 = 161_001;
    /// An argument is outside of its documented limits.
    pub const INVALID: i32 = 161_002;
    /// Arguments that are fine each, in a combination that no kernel can be laid out for.
    pub const TILING: i32 = 561_002;
    /// No kernel for this dtype or chip.
    pub const NO_KERNEL: i32 = 561_003;
    /// The library's glue called an operator with other parameters than it has.
    pub const INNER: i32 = 561_000;
    /// An exception on a core: an index from device memory, an address, bytes that nothing wrote.
    pub const AICORE_EXCEPTION: i32 = 507_015;
}

/// Arguments that an operator does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The `aclnnStatus`, see [`code`].
    pub code: i32,
    /// Operator, argument, the value seen and what is expected.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Refusal {}

/// Leaves with code 161002, or the code before the semicolon, unless a condition holds.
macro_rules! ensure {
    ($code:expr; $condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::refusal::Refusal::new($code, format!($($message)+)));
        }
    };
    ($condition:expr, $($message:tt)+) => {
        ensure!($crate::refusal::code::INVALID; $condition, $($message)+)
    };
}
pub(crate) use ensure;
