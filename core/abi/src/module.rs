//! What a backend library exports, and what the host offers it.

use abi_stable::{
    StableAbi, declare_root_module_statics,
    library::RootModule,
    package_version_strings,
    sabi_types::VersionStrings,
    std_types::{RSlice, RStr, RString},
};

use crate::{error::R, ids::InfoKey, traits::DeviceBox, types::KeyValue};

/// The opset this build describes: grows with ops, optional slots, attributes and revisions.
pub const OPSET: u32 = 1;

/// What a host offers a backend. Lives for ever.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
#[sabi(kind(Prefix(prefix_ref = HostApiRef)))]
pub struct HostApi {
    /// Passed back to every function.
    pub ctx: u64,
    /// Whether a message of this level (1 error … 5 trace) and target would be kept.
    pub log_enabled: extern "C" fn(ctx: u64, level: u32, target: RStr<'_>) -> bool,
    /// Logs a message; `fields_json` is a JSON object.
    #[sabi(last_prefix_field)]
    pub log: extern "C" fn(
        ctx: u64,
        level: u32,
        target: RStr<'_>,
        message: RStr<'_>,
        fields_json: RStr<'_>,
    ),
}

/// A backend library's root.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
#[sabi(kind(Prefix(prefix_ref = BackendModuleRef)))]
pub struct BackendModule {
    /// A string about the backend; must not initialise a driver.
    pub info: extern "C" fn(InfoKey) -> RString,
    /// How well it would run here; `<= 0` means it cannot (driver absent, instruction set missing).
    pub probe: extern "C" fn() -> i32,
    /// Devices present.
    pub device_count: extern "C" fn() -> R<u32>,
    /// Opens the device with this ordinal. Unknown options are an error.
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(HostApiRef, u32, RSlice<'_, KeyValue<'_>>) -> R<DeviceBox>,
}

impl RootModule for BackendModuleRef {
    declare_root_module_statics! {BackendModuleRef}
    const BASE_NAME: &'static str = "halyard_backend";
    const NAME: &'static str = "halyard_backend";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

impl core::fmt::Debug for BackendModuleRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BackendModuleRef").field("id", &self.info()(InfoKey::ID)).finish()
    }
}

impl core::fmt::Debug for HostApiRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HostApiRef")
    }
}
