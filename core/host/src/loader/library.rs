//! Loads a library and takes its module out, after the checks of version and layout.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use halyard_abi::{
    BackendModuleRef, c,
    loading::{AbiHeaderRef, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule},
};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::{Door, Found, LoadError, Trust, layout, trust::Trusted};
use crate::{
    Backend,
    c_door::{self, CModule, Refusal},
    module::Module,
};

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
        return match found.door {
            Some(door) if door != same.backend.door() => {
                Err(LoadError::OtherDoor { path: trusted.path, loaded: same.backend.door() })
            }
            _ => Ok(same.backend.clone()),
        };
    }
    let library = open(&trusted.path)?;
    let module = take_module(library, &trusted.path, found.door)?;
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

/// The module through the door that was asked for; else through the Rust door if there is one, else through the C door.
fn take_module(
    library: &'static Library,
    path: &Path,
    door: Option<Door>,
) -> Result<Module, LoadError> {
    let module = match door {
        Some(Door::Rust) => rust_door(library, path)?.map(Module::Rust),
        Some(Door::C) => c_door(library, path)?.map(Module::C),
        None => match rust_door(library, path)? {
            Some(module) => Some(Module::Rust(module)),
            None => c_door(library, path)?.map(Module::C),
        },
    };
    module.ok_or_else(|| match door {
        Some(door) => LoadError::NoDoor { path: path.into(), door },
        None => LoadError::NotABackend { path: path.into() },
    })
}

fn rust_door(library: &Library, path: &Path) -> Result<Option<BackendModuleRef>, LoadError> {
    let symbol = ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes();
    // SAFETY: a symbol of this name is an abi_stable header, a static of the library, which stays mapped.
    let Ok(header) = (unsafe { library.get::<AbiHeaderRef>(symbol) }) else { return Ok(None) };
    let init = |reason: String| LoadError::Init { path: path.into(), reason };
    let header = header.upgrade().map_err(|e| init(first_lines(&e.to_string())))?;
    check_version(header, path)?;
    layout::check(header)
        .map_err(|differences| LoadError::Layout { path: path.into(), differences })?;
    // SAFETY: `layout::check` has compared the library's types with ours.
    let module = unsafe { header.init_root_module_with_unchecked_layout::<BackendModuleRef>() };
    module.map(Some).map_err(|e| init(first_lines(&e.to_string())))
}

fn c_door(library: &Library, path: &Path) -> Result<Option<CModule>, LoadError> {
    // SAFETY: a symbol of this name is a function of this type: the header declares it.
    let Ok(entry) = (unsafe { library.get::<c::EntryFn>(c::ENTRY) }) else { return Ok(None) };
    c_door::open(*entry).map(Some).map_err(|refusal| {
        let path = path.into();
        match refusal {
            Refusal::Said(error) => LoadError::Init { path, reason: error.to_string() },
            Refusal::Short(bytes) => {
                let reason = format!("its table claims {bytes} bytes, fewer than its own head has");
                LoadError::Init { path, reason }
            }
            Refusal::Version(theirs) => {
                LoadError::Version { path, theirs: dotted(theirs), ours: dotted(c::ABI_VERSION) }
            }
            Refusal::Missing(entry) => LoadError::MissingEntry { path, entry },
        }
    })
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

fn check_version(header: &LibHeader, path: &Path) -> Result<(), LoadError> {
    let ours = BackendModuleRef::VERSION_STRINGS.version.as_str();
    let strings = header.version_strings();
    let theirs = strings.version.as_str();
    let number = |text: Option<&str>| text.and_then(|t| t.parse().ok());
    let mut numbers = theirs.split(['.', '-', '+']);
    let version = (number(numbers.next()), number(numbers.next()));
    match version {
        (Some(major), Some(minor)) if c::compatible(c::ABI_VERSION, (major, minor)) => Ok(()),
        _ => {
            Err(LoadError::Version { path: path.into(), theirs: theirs.into(), ours: ours.into() })
        }
    }
}

fn first_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|l| !l.is_empty()).take(3).collect();
    lines.join(" ")
}
