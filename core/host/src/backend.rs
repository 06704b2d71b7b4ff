//! A backend: built in, or loaded from a shared library.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use halyard_abi::{BackendModuleRef, InfoKey, KeyValue, RSlice};

use crate::{
    Device, Result,
    error::Named,
    loader::{self, Door},
    module::Module,
};

/// A backend. Cheap to clone; its library is never unloaded.
#[derive(Clone, Debug)]
pub struct Backend {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    module: Module,
    id: String,
    library: Option<PathBuf>,
    sha256: OnceLock<String>,
}

impl Backend {
    /// A backend that is linked into this program.
    #[must_use]
    pub fn builtin(module: BackendModuleRef) -> Self {
        Self::new(Module::Rust(module), None, OnceLock::new())
    }

    pub(crate) fn from_library(module: Module, path: PathBuf, sha256: String) -> Self {
        Self::new(module, Some(path), OnceLock::from(sha256))
    }

    fn new(module: Module, library: Option<PathBuf>, sha256: OnceLock<String>) -> Self {
        let id = module.info(InfoKey::ID);
        Self { inner: Arc::new(Inner { module, id, library, sha256 }) }
    }

    /// Its id: `cpu`, `cuda`, `ascend`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The library it came from; `None` if it is built in.
    #[must_use]
    pub fn library(&self) -> Option<&Path> {
        self.inner.library.as_deref()
    }

    /// The door it came through; the Rust door if it is built in.
    #[must_use]
    pub fn door(&self) -> Door {
        self.inner.module.door()
    }

    /// SHA-256 of its library, or of this program if it is built in; empty if that file cannot be read.
    #[must_use]
    pub fn sha256(&self) -> &str {
        self.inner.sha256.get_or_init(|| {
            std::env::current_exe().and_then(|exe| loader::sha256_of(&exe)).unwrap_or_default()
        })
    }

    /// A string about the backend; empty if there is no answer.
    #[must_use]
    pub fn info(&self, key: InfoKey) -> String {
        self.inner.module.info(key)
    }

    /// How well it would run here; `<= 0` means it cannot.
    #[must_use]
    pub fn probe(&self) -> i32 {
        self.inner.module.probe()
    }

    /// Devices present.
    ///
    /// # Errors
    /// If the backend cannot tell.
    pub fn device_count(&self) -> Result<u32> {
        self.inner.module.device_count().named("device_count")
    }

    /// Opens a device.
    ///
    /// # Errors
    /// If there is no such device, it cannot be opened, or an option is not known.
    pub fn open(&self, ordinal: u32, options: &[(&str, &str)]) -> Result<Device> {
        let pairs: Vec<_> = options
            .iter()
            .map(|&(key, value)| KeyValue { key: key.into(), value: value.into() })
            .collect();
        let raw = self.inner.module.open(ordinal, RSlice::from_slice(&pairs)).named("open")?;
        Ok(Device::new(raw, self.clone(), ordinal, options))
    }
}
