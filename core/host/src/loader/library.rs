//! Loads a library and takes its module out, after the checks of version and layout.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use halyard_abi::{
    BackendModuleRef,
    loading::{AbiHeaderRef, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule},
};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::{Found, LoadError, Trust, layout, trust::Trusted};
use crate::Backend;

/// The C door's entry.
const C_SYMBOL: &str = "halyard_backend_v1";

/// A file is loaded once: a second copy would have its own statics and driver contexts.
static LOADED: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

struct Loaded {
    dev: u64,
    ino: u64,
    path: PathBuf,
    backend: Backend,
}

/// Loads a backend after checking that it may be; the same file again gives the same backend.
///
/// # Errors
/// See [`LoadError`].
pub fn load(found: &Found, trust: &Trust) -> Result<Backend, LoadError> {
    let trusted = trust.check(found)?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = loaded.iter().find(|l| (l.dev, l.ino) == (trusted.dev, trusted.ino)) {
        return Ok(same.backend.clone());
    }
    let library = open(&trusted.path)?;
    let module = take_module(library, &trusted.path)?;
    let backend = Backend::from_library(module, trusted.path.clone(), trusted.sha256.clone());
    check_id(&backend, found, &trusted, &loaded)?;
    let Trusted { path, dev, ino, .. } = trusted;
    loaded.push(Loaded { dev, ino, path, backend: backend.clone() });
    Ok(backend)
}

fn check_id(
    backend: &Backend,
    found: &Found,
    trusted: &Trusted,
    loaded: &[Loaded],
) -> Result<(), LoadError> {
    let (id, path) = (backend.id(), || trusted.path.clone());
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if id.is_empty() || !id.chars().all(plain) {
        let reason = format!("its id is `{}`; expected a-z, 0-9, - and _", id.escape_debug());
        return Err(LoadError::Init { path: path(), reason });
    }
    if let Some(manifest) = &found.manifest
        && manifest.id != id
    {
        let reason = format!("id `{}`, the library says `{id}`", manifest.id);
        return Err(LoadError::Manifest { path: found.path.with_extension("json"), reason });
    }
    if let Some(other) = loaded.iter().find(|l| l.backend.id() == id) {
        let (id, other) = (id.to_owned(), other.path.clone());
        return Err(LoadError::Duplicate { path: path(), id, other });
    }
    Ok(())
}

/// Opens a library for good: its code and statics stay mapped until the process ends, since nothing can prove that no object of
/// it lives.
fn open(path: &Path) -> Result<&'static Library, LoadError> {
    let flags = RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: loading runs the library's constructors; `Trust::check` has decided that it may.
    let opened = unsafe { Library::open(Some(path), flags) };
    let library = opened.map_err(|error| LoadError::Open {
        path: path.into(),
        // libloading's own text is "dlopen failed"; the system's is the source.
        reason: error.source().map_or_else(|| error.to_string(), ToString::to_string),
    })?;
    Ok(Box::leak(Box::new(library)))
}

fn take_module(library: &'static Library, path: &Path) -> Result<BackendModuleRef, LoadError> {
    let symbol = ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes();
    // SAFETY: a symbol of this name is an abi_stable header, a static of the library, which stays mapped.
    let Ok(header) = (unsafe { library.get::<AbiHeaderRef>(symbol) }) else {
        // SAFETY: only whether the symbol exists is asked.
        let c_door = unsafe { library.get::<*const ()>(C_SYMBOL.as_bytes()) }.is_ok();
        let path = path.into();
        return Err(match c_door {
            true => LoadError::CDoor { path, symbol: C_SYMBOL },
            false => LoadError::NotABackend { path },
        });
    };
    let init = |reason: String| LoadError::Init { path: path.into(), reason };
    let header = header.upgrade().map_err(|e| init(first_lines(&e.to_string())))?;
    check_version(header, path)?;
    layout::check(header)
        .map_err(|differences| LoadError::Layout { path: path.into(), differences })?;
    // SAFETY: `layout::check` has compared the library's types with ours.
    let module = unsafe { header.init_root_module_with_unchecked_layout::<BackendModuleRef>() };
    module.map_err(|e| init(first_lines(&e.to_string())))
}

/// Before 1.0 the boundary may change with every minor version, so that has to match too.
fn check_version(header: &LibHeader, path: &Path) -> Result<(), LoadError> {
    let ours = BackendModuleRef::VERSION_STRINGS.version.as_str();
    let strings = header.version_strings();
    let theirs = strings.version.as_str();
    let key = |version: &str| {
        let mut numbers = version.split(['.', '-', '+']).map(|n| n.parse::<u32>().ok());
        let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
        (major, if major == Some(0) { minor } else { None })
    };
    if key(ours) == key(theirs) {
        return Ok(());
    }
    Err(LoadError::Version { path: path.into(), theirs: theirs.into(), ours: ours.into() })
}

fn first_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(3).collect();
    lines.join(" ")
}
