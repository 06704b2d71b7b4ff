//! Checks before a library's first instruction runs.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Found, LoadError};

/// Which libraries may be loaded.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Skip the checks of owner and mode (`--insecure-plugins`).
    pub insecure: bool,
    /// SHA-256 that the library of this name must have (`--pin cuda=…`).
    pub pins: HashMap<String, String>,
}

/// A library that passed.
#[derive(Debug)]
pub(super) struct Trusted {
    /// Without symbolic links.
    pub(super) path: PathBuf,
    pub(super) sha256: String,
    pub(super) dev: u64,
    pub(super) ino: u64,
}

const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o022;

impl Trust {
    /// Refuses a library that is no regular file, whose file or folders somebody else can change, or whose hash is another than
    /// the manifest or a pin says.
    pub(super) fn check(&self, found: &Found) -> Result<Trusted, LoadError> {
        let read = |source| LoadError::Read { path: found.path.clone(), source };
        let path = fs::canonicalize(&found.path).map_err(read)?;
        let file = File::open(&path).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        let untrusted = |reason: String| LoadError::Untrusted { path: path.clone(), reason };
        if !meta.is_file() {
            return Err(untrusted("it is not a regular file".into()));
        }
        if !self.insecure {
            check_owner_and_mode(&path, &meta).map_err(untrusted)?;
        }
        let sha256 = digest(file).map_err(read)?;
        let wanted = found.manifest.as_ref().and_then(|m| m.sha256.as_ref());
        for (whose, wanted) in [("the manifest", wanted), ("--pin", self.pins.get(&found.name))] {
            if wanted.is_some_and(|w| !w.eq_ignore_ascii_case(&sha256)) {
                return Err(untrusted(format!(
                    "its SHA-256 is {sha256}, {whose} says {}",
                    wanted.map_or("", String::as_str)
                )));
            }
        }
        let (dev, ino) = (meta.dev(), meta.ino());
        Ok(Trusted { path, sha256, dev, ino })
    }
}

fn check_owner_and_mode(path: &Path, meta: &Metadata) -> Result<(), String> {
    // SAFETY: no arguments, cannot fail.
    let me = unsafe { libc::geteuid() };
    let mine = |m: &Metadata| m.uid() == 0 || m.uid() == me;
    let advice = "; fix that, or pass --insecure-plugins if you know why it is so";
    if !mine(meta) {
        return Err(format!("it belongs to user {}, not to root or you{advice}", meta.uid()));
    }
    if meta.mode() & OTHERS_WRITE != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(format!("others can write to it (mode {mode:o}): chmod go-w{advice}"));
    }
    for folder in path.ancestors().skip(1) {
        let m = fs::metadata(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        // In a sticky folder (/tmp) others can add files, but not replace ours.
        let replaceable = m.mode() & OTHERS_WRITE != 0 && m.mode() & STICKY == 0;
        if !mine(&m) || replaceable {
            let (mode, uid) = (m.mode() & 0o7777, m.uid());
            return Err(format!(
                "others can write to the folder {} (mode {mode:o}, user {uid}): chmod go-w{advice}",
                folder.display()
            ));
        }
    }
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_of(path: &Path) -> io::Result<String> {
    digest(File::open(path)?)
}

fn digest(mut file: File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            break;
        }
        hash.update(&chunk[..n]);
    }
    Ok(format!("{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn found(path: &Path) -> Found {
        Found { path: path.into(), name: "toy".into(), manifest: None, door: None }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lib.so");
        fs::write(&path, b"abc").unwrap();
        chmod(&path, 0o644);
        let trust = Trust::default();
        let ok = trust.check(&found(&path)).unwrap();
        assert!(ok.sha256.starts_with("ba7816bf8f01cfea"));
        chmod(&path, 0o646);
        let error = trust.check(&found(&path)).unwrap_err().to_string();
        assert!(error.contains("others can write to it (mode 646)"), "{error}");
        assert!(Trust { insecure: true, ..Trust::default() }.check(&found(&path)).is_ok());
        chmod(&path, 0o644);
        chmod(dir.path(), 0o777);
        let error = trust.check(&found(&path)).unwrap_err().to_string();
        assert!(error.contains("the folder"), "{error}");
        chmod(dir.path(), 0o700);
        assert!(matches!(
            trust.check(&found(dir.path())).unwrap_err(),
            LoadError::Untrusted { .. }
        ));
    }

    #[test]
    fn pins_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lib.so");
        fs::write(&path, b"abc").unwrap();
        chmod(&path, 0o600);
        let pins = HashMap::from([("toy".to_owned(), "00".to_owned())]);
        let error = Trust { pins, insecure: false }.check(&found(&path)).unwrap_err().to_string();
        assert!(error.contains("--pin says 00"), "{error}");
    }
}
