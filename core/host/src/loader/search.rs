//! Where backends are looked for.

use std::{
    collections::HashSet,
    env, fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Door, LoadError};

/// Places to look, first match wins. Never the current folder, never the system's library path.
#[derive(Clone, Debug, Default)]
pub struct SearchPath {
    places: Vec<PathBuf>,
}

/// A library that may be a backend.
#[derive(Clone, Debug)]
pub struct Found {
    /// The library.
    pub path: PathBuf,
    /// `<id>` of `libhalyard_backend_<id>.so`; the library itself has the last word.
    pub name: String,
    /// The manifest beside it, if there is one.
    pub manifest: Option<Manifest>,
    /// The door to take, as the manifest says; `None` takes the Rust door if it is there, else the C door.
    pub door: Option<Door>,
}

/// `libhalyard_backend_<id>.json`, optional, beside the library.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Version of the manifest's form: 1.
    pub manifest: u32,
    /// The backend's id.
    pub id: String,
    /// Who made it.
    #[serde(default)]
    pub vendor: String,
    /// Version of the backend.
    #[serde(default)]
    pub version: String,
    /// SHA-256 of the library.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The door to take, of a library that has both.
    #[serde(default)]
    pub door: Option<Door>,
}

const PREFIX: &str = "libhalyard_backend_";

impl SearchPath {
    /// `explicit` (a file or folder, from `--backend-path`) alone if given; else `HALYARD_BACKEND_PATH` (colon list; ignored in a
    /// privileged process), the program's `../lib/halyard/backends`, `$XDG_DATA_HOME/halyard/backends`,
    /// `/usr/local/lib/halyard/backends`, `/usr/lib/halyard/backends`.
    #[must_use]
    pub fn standard(explicit: &[PathBuf]) -> Self {
        if !explicit.is_empty() {
            return Self { places: explicit.to_vec() };
        }
        let mut places = Vec::new();
        if !privileged()
            && let Some(list) = env::var_os("HALYARD_BACKEND_PATH")
        {
            places.extend(env::split_paths(&list).filter(|p| p.is_absolute()));
        }
        if let Ok(exe) = env::current_exe()
            && let Some(prefix) = exe.parent().and_then(Path::parent)
        {
            places.push(prefix.join("lib/halyard/backends"));
        }
        let data = env::var_os("XDG_DATA_HOME").map(PathBuf::from);
        let home = || env::var_os("HOME").map(|h| PathBuf::from(h).join(".local/share"));
        if let Some(data) = data.filter(|p| p.is_absolute()).or_else(home) {
            places.push(data.join("halyard/backends"));
        }
        places.push("/usr/local/lib/halyard/backends".into());
        places.push("/usr/lib/halyard/backends".into());
        Self { places }
    }

    /// The places, in order.
    #[must_use]
    pub fn places(&self) -> &[PathBuf] {
        &self.places
    }
}

/// Libraries in the search path, without loading any. A file name found twice counts once, at the first place.
///
/// # Errors
/// If a place named explicitly as a file does not exist, or a manifest is malformed.
pub fn discover(search: &SearchPath) -> Result<Vec<Found>, LoadError> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for place in &search.places {
        if place.is_dir() {
            let Ok(entries) = fs::read_dir(place) else { continue };
            let mut files: Vec<_> = entries.flatten().map(|e| e.path()).collect();
            files.sort();
            for path in files {
                let named = backend_name(&path).is_some();
                if named && seen.insert(path.file_name().map(ToOwned::to_owned)) {
                    found.push(describe(path)?);
                }
            }
        } else if place.exists() {
            found.push(describe(place.clone())?);
        } else if place.extension().is_some_and(|e| e == "so") {
            let source = std::io::ErrorKind::NotFound.into();
            return Err(LoadError::Read { path: place.clone(), source });
        }
    }
    Ok(found)
}

/// `<id>` of `libhalyard_backend_<id>.so`.
fn backend_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(".so")
}

fn describe(path: PathBuf) -> Result<Found, LoadError> {
    let name =
        backend_name(&path).or_else(|| path.file_stem()?.to_str()).unwrap_or_default().to_owned();
    let manifest = read_manifest(&path.with_extension("json"))?;
    let door = manifest.as_ref().and_then(|m| m.door);
    Ok(Found { path, name, manifest, door })
}

fn read_manifest(path: &Path) -> Result<Option<Manifest>, LoadError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Read { path: path.to_owned(), source }),
    };
    let bad = |reason: String| LoadError::Manifest { path: path.to_owned(), reason };
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if manifest.manifest != 1 {
        return Err(bad(format!("form {}, this host knows 1", manifest.manifest)));
    }
    Ok(Some(manifest))
}

/// Whether this process has more rights than the user who started it.
fn privileged() -> bool {
    // SAFETY: reads the auxiliary vector; no pointers.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_searched_in_order_and_names_count_once() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (dir, name) in [(&a, "x"), (&b, "x"), (&b, "y")] {
            fs::write(dir.path().join(format!("{PREFIX}{name}.so")), b"").unwrap();
        }
        fs::write(b.path().join("libother.so"), b"").unwrap();
        let search = SearchPath { places: vec![a.path().into(), b.path().into()] };
        let found = discover(&search).unwrap();
        assert_eq!(found.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        assert!(found[0].path.starts_with(a.path()));
    }

    #[test]
    fn manifests_are_parsed_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.json");
        assert!(read_manifest(&path).unwrap().is_none());
        fs::write(&path, br#"{"manifest": 1, "id": "toy", "extra": 3, "door": "c"}"#).unwrap();
        let manifest = read_manifest(&path).unwrap().unwrap();
        assert_eq!((manifest.id.as_str(), manifest.door), ("toy", Some(Door::C)));
        let door = r#"{"manifest": 1, "id": "toy", "door": "back"}"#;
        for bad in ["{", r#"{"manifest": 2, "id": "toy"}"#, door, "[]", ""] {
            fs::write(&path, bad).unwrap();
            assert!(read_manifest(&path).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let search = SearchPath::standard(&["/nonexistent/libhalyard_backend_x.so".into()]);
        assert!(matches!(discover(&search), Err(LoadError::Read { .. })));
    }
}
