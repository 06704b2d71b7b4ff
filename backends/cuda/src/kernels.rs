//! The PTX of `kernels/*.cu`, compiled and committed by `cargo xtask ptx`, and its modules on a device.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use halyard_sdk::{Code, Error, Result};

use crate::driver::{Function, Module};

/// An architecture that kernels are compiled for. A device takes the newest that it can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    /// Compute capability 8.0: A100.
    Sm80,
    /// 8.9: L20, RTX 4090.
    Sm89,
    /// 9.0: H100.
    Sm90,
}

impl Arch {
    pub(crate) const ALL: [Self; 3] = [Self::Sm80, Self::Sm89, Self::Sm90];

    /// The newest for a device of this compute capability.
    ///
    /// # Errors
    /// `UNSUPPORTED` if it is older than all.
    pub(crate) fn of(major: u32, minor: u32) -> Result<Self> {
        match (major, minor) {
            (9.., _) => Ok(Self::Sm90),
            (8, 9..) => Ok(Self::Sm89),
            (8, _) => Ok(Self::Sm80),
            _ => Err(Error::unsupported(format!(
                "the device has compute capability {major}.{minor}, at least 8.0 is needed"
            ))),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm89 => "sm_89",
            Self::Sm90 => "sm_90",
        }
    }
}

macro_rules! modules {
    ($($name:ident),* $(,)?) => {
        /// A module's text.
        fn ptx(arch: Arch, module: &str) -> Option<&'static str> {
            Some(match (arch, module) {
                $(
                    (Arch::Sm80, stringify!($name)) => include_str!(concat!("../kernels/ptx/sm_80/", stringify!($name), ".ptx")),
                    (Arch::Sm89, stringify!($name)) => include_str!(concat!("../kernels/ptx/sm_89/", stringify!($name), ".ptx")),
                    (Arch::Sm90, stringify!($name)) => include_str!(concat!("../kernels/ptx/sm_90/", stringify!($name), ".ptx")),
                )*
                _ => return None,
            })
        }
    };
}

modules!(
    attention,
    convert,
    elementwise,
    experts,
    flash_bf16,
    flash_f16,
    gemm_fp8,
    gemm_gguf_bf16,
    gemm_gguf_f16,
    gemm_gguf_k_bf16,
    gemm_gguf_k_f16,
    gemm_mma,
    gemm_quant_bf16,
    gemm_quant_f16,
    gemm_simt,
    gemm_simt_quant,
    gemv,
    gemv_quant,
    kv,
    logits,
    moe,
    norm,
    qkv,
    quantise,
    reduce,
    rope,
    router,
    rows,
    select,
    stage,
);

/// The first driver that reads the PTX of products of f8e4m3 (PTX 8.4), as `cuDriverGetVersion` says it: CUDA 12.4, driver 550.
const FP8_DRIVER: i32 = 12_040;

/// The modules that a device has loaded, each when the first kernel of it is wanted.
#[derive(Debug)]
pub(crate) struct Kernels {
    arch: Arch,
    /// Whether `gemm_fp8` has kernels that the device and its driver take.
    fp8: bool,
    loaded: Mutex<HashMap<&'static str, Arc<Module>>>,
}

impl Kernels {
    /// For a device of this architecture and a driver of this version.
    pub(crate) fn new(arch: Arch, driver: i32) -> Self {
        let fp8 = arch != Arch::Sm80 && driver >= FP8_DRIVER;
        Self { arch, fp8, loaded: Mutex::default() }
    }

    /// Whether tensor cores multiply codes of f8e4m3.
    pub(crate) fn fp8(&self) -> bool {
        self.fp8
    }

    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    /// A kernel of `kernels/MODULE.cu`; the device's context is bound.
    ///
    /// # Errors
    /// `INTERNAL` if there is none, or one whose parameters are no `P`; what the driver says of the module.
    pub(crate) fn function<P: Copy>(
        &self,
        module: &'static str,
        kernel: &str,
    ) -> Result<Function<P>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(module) {
            return module.function(kernel);
        }
        let text = ptx(self.arch, module)
            .ok_or_else(|| Error::new(Code::INTERNAL, format!("there is no module {module}")))?;
        let fresh = Arc::new(Module::load(module, text)?);
        loaded.insert(module, Arc::clone(&fresh));
        fresh.function(kernel)
    }

    pub(crate) fn clear(&self) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
