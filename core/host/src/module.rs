//! A backend's module, whichever door it came through.

use halyard_abi::{BackendModuleRef, DeviceBox, InfoKey, KeyValue, R, RSlice};

use crate::{c_door::CModule, host_log::host_api, loader::Door};

/// What a library exports.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Module {
    /// Through the Rust door, or linked in.
    Rust(BackendModuleRef),
    /// Through the C door.
    C(CModule),
}

impl Module {
    pub(crate) fn door(&self) -> Door {
        match self {
            Self::Rust(_) => Door::Rust,
            Self::C(_) => Door::C,
        }
    }

    pub(crate) fn info(&self, key: InfoKey) -> String {
        match self {
            Self::Rust(module) => module.info()(key).into_string(),
            Self::C(module) => module.info(key),
        }
    }

    pub(crate) fn probe(&self) -> i32 {
        match self {
            Self::Rust(module) => module.probe()(),
            Self::C(module) => module.probe(),
        }
    }

    pub(crate) fn device_count(&self) -> R<u32> {
        match self {
            Self::Rust(module) => module.device_count()(),
            Self::C(module) => module.device_count(),
        }
    }

    pub(crate) fn open(&self, ordinal: u32, options: RSlice<'_, KeyValue<'_>>) -> R<DeviceBox> {
        match self {
            Self::Rust(module) => module.open()(host_api(), ordinal, options),
            Self::C(module) => module.open(ordinal, options),
        }
    }
}
