//! The backend as a host finds it.

use halyard_sdk::{Backend, InfoKey, Options, Result};

use crate::{device::AscendDevice, driver, ops::PROFILES};

/// The Ascend backend, `ascend`.
#[derive(Clone, Copy, Debug)]
pub struct Ascend;

impl Backend for Ascend {
    type Device = AscendDevice;

    fn info(key: InfoKey) -> String {
        match key {
            InfoKey::ID => "ascend".into(),
            InfoKey::NAME => "Huawei Ascend (CANN)".into(),
            InfoKey::VERSION => env!("CARGO_PKG_VERSION").into(),
            InfoKey::VENDOR => "Halyard".into(),
            InfoKey::PROFILES => PROFILES.into(),
            InfoKey::ARCH => "Ascend910B".into(),
            InfoKey::BUILD if cfg!(debug_assertions) => "debug assertions".into(),
            InfoKey::DRIVER => driver::version_text(),
            InfoKey::PROBE_REASON => match driver::count() {
                Ok(0) => "CANN is there, but no device".into(),
                Ok(n) => format!("{n} devices"),
                Err(error) => error.message.into(),
            },
            _ => String::new(),
        }
    }

    fn probe() -> i32 {
        match driver::count() {
            Ok(0) | Err(_) => 0,
            Ok(_) => 100,
        }
    }

    fn device_count() -> Result<u32> {
        driver::count()
    }

    fn open(ordinal: u32, options: Options) -> Result<AscendDevice> {
        options.finish(&[])?;
        AscendDevice::open(ordinal)
    }
}
