//! The backend as a host finds it.

use halyard_sdk::{Backend, InfoKey, Options, Result};

use crate::{device::CudaDevice, driver, kernels::Arch, ops::profiles};

/// The CUDA backend, `cuda`.
#[derive(Clone, Copy, Debug)]
pub struct Cuda;

impl Backend for Cuda {
    type Device = CudaDevice;

    fn info(key: InfoKey) -> String {
        match key {
            InfoKey::ID => "cuda".into(),
            InfoKey::NAME => "NVIDIA CUDA".into(),
            InfoKey::VERSION => env!("CARGO_PKG_VERSION").into(),
            InfoKey::VENDOR => "Halyard".into(),
            InfoKey::PROFILES => profiles(),
            InfoKey::ARCH => Arch::ALL.map(Arch::name).join(","),
            InfoKey::BUILD if cfg!(debug_assertions) => "debug assertions".into(),
            InfoKey::DRIVER => driver::version_text(),
            InfoKey::PROBE_REASON => match driver::count() {
                Ok(0) => "the NVIDIA driver is there, but no device".into(),
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

    fn open(ordinal: u32, options: Options) -> Result<CudaDevice> {
        options.finish(&[])?;
        CudaDevice::open(ordinal)
    }
}
