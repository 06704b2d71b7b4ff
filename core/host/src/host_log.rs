//! What the host offers backends: its log.

use std::sync::OnceLock;

use halyard_abi::{HostApi, HostApiRef, RStr, exporting::PrefixTypeTrait};
use tracing::Level;

/// The host's table; made once, lives for ever.
pub(crate) fn host_api() -> HostApiRef {
    static API: OnceLock<HostApiRef> = OnceLock::new();
    *API.get_or_init(|| HostApi { ctx: 0, log_enabled, log }.leak_into_prefix())
}

// `tracing` wants the level in the callsite, so each level has its own.
extern "C" fn log_enabled(_ctx: u64, level: u32, _target: RStr<'_>) -> bool {
    match level {
        0 | 1 => tracing::enabled!(target: "backend", Level::ERROR),
        2 => tracing::enabled!(target: "backend", Level::WARN),
        3 => tracing::enabled!(target: "backend", Level::INFO),
        4 => tracing::enabled!(target: "backend", Level::DEBUG),
        _ => tracing::enabled!(target: "backend", Level::TRACE),
    }
}

extern "C" fn log(
    _ctx: u64,
    level: u32,
    target: RStr<'_>,
    message: RStr<'_>,
    fields_json: RStr<'_>,
) {
    let (module, message, fields) = (target.as_str(), message.as_str(), fields_json.as_str());
    match level {
        0 | 1 => tracing::error!(target: "backend", module, %fields, "{message}"),
        2 => tracing::warn!(target: "backend", module, %fields, "{message}"),
        3 => tracing::info!(target: "backend", module, %fields, "{message}"),
        4 => tracing::debug!(target: "backend", module, %fields, "{message}"),
        _ => tracing::trace!(target: "backend", module, %fields, "{message}"),
    }
}
