//! Reports that passed, kept on disk.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use halyard_core::{Device, InfoKey, OpBuf};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::GateReport;

/// A file of the cache.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// All of the key: the file's name is only its hash.
    key: String,
    report: GateReport,
}

/// See [`super::standard_cache_dir`].
pub(super) fn standard_dir(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // A relative folder would depend on where the program is started.
    let folder = |name: &str| var(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let own = || folder("HALYARD_CACHE_DIR");
    let user = || {
        let home = || folder("HOME").map(|h| h.join(".cache"));
        folder("XDG_CACHE_HOME").or_else(home).map(|c| c.join("halyard"))
    };
    own().or_else(user).map(|dir| dir.join("gate"))
}

/// Everything that could change a verdict, a line each; `None` if the backend's code cannot be identified.
pub(super) fn key(device: &Device, kernel_set: &[OpBuf], seed: u64) -> Option<String> {
    let backend = device.backend();
    if backend.sha256().is_empty() {
        return None;
    }
    let mut lines = vec![
        format!("conformance {} opset {}", env!("CARGO_PKG_VERSION"), halyard_abi::module::OPSET),
        format!("backend {} {}", backend.id(), backend.info(InfoKey::VERSION)),
        format!("sha256 {} door {}", backend.sha256(), backend.door()),
        format!("seed {seed}"),
    ];
    for key in [InfoKey::NAME, InfoKey::ARCH, InfoKey::DRIVER] {
        lines.push(format!("{key} {}", device.info(key)));
    }
    let mut kernels: Vec<String> = kernel_set.iter().map(ToString::to_string).collect();
    kernels.sort();
    kernels.dedup();
    lines.extend(kernels);
    Some(lines.join("\n"))
}

fn file(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{:x}.json", Sha256::digest(key.as_bytes())))
}

/// A report that passed under this key. A file that cannot be understood is as good as none.
pub(super) fn load(dir: &Path, key: &str) -> Option<GateReport> {
    let path = file(dir, key);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "could not read a kept gate report");
            return None;
        }
    };
    match serde_json::from_slice::<Kept>(&bytes) {
        Ok(kept) if kept.key == key && kept.report.passed() => {
            Some(GateReport { from_cache: true, ..kept.report })
        }
        Ok(_) => {
            tracing::warn!(path = %path.display(), "a kept gate report is of something else; verifying anew");
            None
        }
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "a kept gate report is damaged; verifying anew");
            None
        }
    }
}

/// Keeps a report: complete under its name, or not at all.
pub(super) fn store(dir: &Path, key: &str, report: &GateReport) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let path = file(dir, key);
    let kept = Kept { key: key.to_owned(), report: report.clone() };
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&unfinished, serde_json::to_vec_pretty(&kept)?)?;
    fs::rename(&unfinished, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> GateReport {
        GateReport {
            backend: "toy".into(),
            device: "a toy".into(),
            seed: 0,
            kernels: Vec::new(),
            millis: 5,
            from_cache: false,
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_damage_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("gate");
        assert!(load(&dir, "key").is_none());
        store(&dir, "key", &report()).unwrap();
        let back = load(&dir, "key").unwrap();
        assert!(back.from_cache && back.millis == 5);
        assert!(load(&dir, "other").is_none());
        fs::rename(file(&dir, "key"), file(&dir, "other")).unwrap();
        assert!(load(&dir, "other").is_none(), "the whole key is compared");
        fs::write(file(&dir, "key"), b"{\"key\": \"ke").unwrap();
        assert!(load(&dir, "key").is_none());
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let with = |vars: &'static [(&str, &str)]| {
            standard_dir(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
        };
        assert_eq!(with(&[("HALYARD_CACHE_DIR", "/c")]), Some("/c/gate".into()));
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]),
            Some("/x/halyard/gate".into())
        );
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]),
            Some("/h/.cache/halyard/gate".into())
        );
        assert_eq!(with(&[]), None);
    }
}
