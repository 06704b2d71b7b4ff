//! What the host offers backends: its log.

use std::{borrow::Cow, sync::OnceLock};

use halyard_abi::{
    HostApi, HostApiRef, RStr,
    c::{ABI_VERSION, HostTable, Text},
    exporting::PrefixTypeTrait,
};
use tracing::Level;

/// The host's table for the Rust door; made once, lives for ever.
pub(crate) fn host_api() -> HostApiRef {
    static API: OnceLock<HostApiRef> = OnceLock::new();
    *API.get_or_init(|| {
        HostApi { ctx: 0, log_enabled: rust_log_enabled, log: rust_log }.leak_into_prefix()
    })
}

/// The host's table for the C door.
pub(crate) fn c_host_table() -> &'static HostTable {
    static TABLE: HostTable = HostTable {
        struct_size: size_of::<HostTable>(),
        abi_major: ABI_VERSION.0,
        abi_minor: ABI_VERSION.1,
        ctx: 0,
        log_enabled: c_log_enabled,
        log: c_log,
    };
    &TABLE
}

extern "C" fn rust_log_enabled(_ctx: u64, level: u32, _target: RStr<'_>) -> bool {
    log_enabled(level)
}

extern "C" fn rust_log(_ctx: u64, level: u32, target: RStr<'_>, message: RStr<'_>, json: RStr<'_>) {
    log(level, target.as_str(), message.as_str(), json.as_str());
}

unsafe extern "C" fn c_log_enabled(_ctx: usize, level: u32, _target: Text) -> i32 {
    i32::from(log_enabled(level))
}

unsafe extern "C" fn c_log(_ctx: usize, level: u32, target: Text, message: Text, json: Text) {
    let read = |text: Text| -> Cow<'static, str> {
        if text.ptr.is_null() || text.len == 0 {
            return Cow::Borrowed("");
        }
        // SAFETY: the backend passes text of this length that lives until this returns (the header's rule of ownership).
        let bytes = unsafe { std::slice::from_raw_parts(text.ptr, text.len) };
        Cow::Owned(String::from_utf8_lossy(bytes).into_owned())
    };
    log(level, &read(target), &read(message), &read(json));
}

// `tracing` wants the level in the callsite, so each level has its own.
fn log_enabled(level: u32) -> bool {
    match level {
        0 | 1 => tracing::enabled!(target: "backend", Level::ERROR),
        2 => tracing::enabled!(target: "backend", Level::WARN),
        3 => tracing::enabled!(target: "backend", Level::INFO),
        4 => tracing::enabled!(target: "backend", Level::DEBUG),
        _ => tracing::enabled!(target: "backend", Level::TRACE),
    }
}

fn log(level: u32, module: &str, message: &str, fields: &str) {
    match level {
        0 | 1 => tracing::error!(target: "backend", module, %fields, "{message}"),
        2 => tracing::warn!(target: "backend", module, %fields, "{message}"),
        3 => tracing::info!(target: "backend", module, %fields, "{message}"),
        4 => tracing::debug!(target: "backend", module, %fields, "{message}"),
        _ => tracing::trace!(target: "backend", module, %fields, "{message}"),
    }
}
