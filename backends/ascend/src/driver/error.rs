//! What CANN's results mean to a host.

use std::ffi::CStr;

use halyard_ascend_sys::acl::Acl;
use halyard_sdk::{Code, Error, Result};

/// Results by number: name, and what it means here.
const RESULTS: &[(i32, &str, Code)] = &[
    (100_000, "invalid parameter", Code::INTERNAL),
    (100_001, "not initialised", Code::INTERNAL),
    (100_002, "initialised before", Code::INTERNAL),
    (100_037, "finalised before", Code::INTERNAL),
    (
        100_039,
        "compiled against a stub of the library: is a real CANN on the library path?",
        Code::UNSUPPORTED,
    ),
    (107_000, "invalid runtime parameter", Code::INTERNAL),
    (107_001, "invalid device id", Code::INVALID_ARGUMENT),
    (107_002, "no context", Code::INTERNAL),
    (107_003, "stream of another context", Code::INTERNAL),
    (107_017, "invalid handle", Code::INTERNAL),
    (107_019, "wait timed out", Code::TIMEOUT),
    (107_020, "task timed out", Code::TIMEOUT),
    (107_022, "device task aborted", Code::KERNEL_FAULT),
    (107_023, "stream aborted", Code::INTERNAL),
    (107_024, "capture: an event that is not of it", Code::INTERNAL),
    (107_025, "capture: a stream that did not join again", Code::INTERNAL),
    (107_026, "capture: the model is captured", Code::INTERNAL),
    (107_027, "capture: the stream is captured", Code::INTERNAL),
    (107_028, "capture: the event is captured", Code::INTERNAL),
    (107_029, "capture: the stream is not captured", Code::INTERNAL),
    (107_030, "capture: not in this mode", Code::UNSUPPORTED),
    (107_031, "capture: the default stream", Code::INTERNAL),
    (161_001, "null argument of an operator", Code::INTERNAL),
    (161_002, "argument that the operator refuses", Code::UNSUPPORTED),
    (200_000, "allocation failed", Code::OUT_OF_MEMORY),
    (200_001, "function not supported", Code::UNSUPPORTED),
    (200_002, "invalid device", Code::INVALID_ARGUMENT),
    (200_003, "memory is not aligned", Code::INTERNAL),
    (200_006, "feature not supported", Code::UNSUPPORTED),
    (207_000, "feature not supported", Code::UNSUPPORTED),
    (207_001, "memory allocation failed", Code::OUT_OF_MEMORY),
    (207_004, "no device", Code::UNSUPPORTED),
    (207_005, "device resources are taken", Code::BUSY),
    (207_008, "no stream left", Code::BUSY),
    (207_018, "device out of memory", Code::OUT_OF_MEMORY),
    (300_000, "storage over its limit", Code::OUT_OF_MEMORY),
    (361_001, "runtime failed in an operator", Code::INTERNAL),
    (500_000, "internal error", Code::INTERNAL),
    (500_001, "internal failure", Code::INTERNAL),
    (500_002, "failure of the graph engine", Code::INTERNAL),
    (500_003, "failure of the runtime", Code::INTERNAL),
    (500_004, "failure of the driver", Code::INTERNAL),
    (507_000, "internal error of the runtime", Code::INTERNAL),
    (507_008, "unknown chip", Code::UNSUPPORTED),
    (507_010, "lost the device's heartbeat", Code::DEVICE_LOST),
    (507_011, "model execution failed", Code::KERNEL_FAULT),
    (507_014, "AI core timed out", Code::KERNEL_FAULT),
    (507_015, "AI core exception", Code::KERNEL_FAULT),
    (507_034, "vector core timed out", Code::KERNEL_FAULT),
    (507_035, "vector core exception", Code::KERNEL_FAULT),
    (507_046, "stream synchronisation timed out", Code::TIMEOUT),
    (507_047, "event synchronisation timed out", Code::TIMEOUT),
    (507_053, "device memory error", Code::DEVICE_LOST),
    (507_054, "uncorrectable error of device memory", Code::DEVICE_LOST),
    (507_899, "driver failed", Code::DEVICE_LOST),
    (507_903, "capture: it became invalid", Code::INTERNAL),
    (561_000, "inner error of an operator", Code::INTERNAL),
    (561_001, "operator without an answer for this shape", Code::UNSUPPORTED),
    (561_002, "operator without a tiling for this shape", Code::UNSUPPORTED),
    (561_003, "kernel not found: is the chip's kernel (ops) package installed?", Code::UNSUPPORTED),
    (561_101, "operator's executor could not be made", Code::INTERNAL),
    (561_103, "null inside an operator", Code::INTERNAL),
    (
        561_107,
        "operator path not found: source CANN's set_env.sh (ASCEND_OPP_PATH)",
        Code::UNSUPPORTED,
    ),
    (561_112, "kernel package not found", Code::UNSUPPORTED),
];

/// The vendor's messages of this thread since they were last asked for.
pub(super) fn last_message(acl: &Acl) -> String {
    let Some(ask) = acl.aclGetRecentErrMsg else { return String::new() };
    // SAFETY: takes nothing.
    let text = unsafe { ask() };
    if text.is_null() {
        return String::new();
    }
    // SAFETY: a C string that is valid until the next call, and copied here.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The error of a call that returned `result`.
pub(super) fn translate(acl: &Acl, call: &str, result: i32) -> Error {
    let known = RESULTS.iter().find(|(number, ..)| *number == result);
    let (name, code) = known.map_or(("unknown result", Code::INTERNAL), |&(_, n, c)| (n, c));
    let said = last_message(acl);
    let separator = if said.is_empty() { "" } else { ": " };
    let message = format!("{call}: {name}{separator}{said}");
    Error { vendor_code: result, ..Error::new(code, message) }
}

/// `Ok` for 0.
pub(super) fn check(acl: &Acl, call: &str, result: i32) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(translate(acl, call, result)) }
}

/// The error for a function that the installed release lacks.
pub(super) fn missing(name: &str) -> Error {
    Error::unsupported(format!("the installed CANN has no {name}"))
}
