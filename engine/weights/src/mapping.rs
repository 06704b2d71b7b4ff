//! A read-only file in memory: the crate's only `unsafe`.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::error::WeightsError;

/// A mapped file, with the handle that tells whether it still has its length.
#[derive(Debug)]
pub(crate) struct Mapping {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl Mapping {
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |action| {
            let path = path.to_owned();
            move |source| WeightsError::Io { path, action, source }
        };
        let file = File::open(path).map_err(io("open"))?;
        if !file.metadata().map_err(io("stat"))?.is_file() {
            return Err(WeightsError::NotAModel {
                path: path.to_owned(),
                why: "not a regular file".to_owned(),
            });
        }
        // SAFETY: the mapping is read-only and only handed out as `&[u8]`, all of whose values are valid. That
        // nobody truncates the file meanwhile is the operator's side: `check_length` turns the common case (a
        // download that is being replaced) into an error before the bytes are touched.
        let map = unsafe { Mmap::map(&file) }.map_err(io("mmap"))?;
        Ok(Self { path: path.to_owned(), file, map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Fails if the file has become shorter than its mapping: reading beyond its end would be a SIGBUS.
    pub(crate) fn check_length(&self) -> Result<(), WeightsError> {
        let then = self.map.len() as u64;
        let now = self.file.metadata().map_err(|source| WeightsError::Io {
            path: self.path.clone(),
            action: "stat",
            source,
        })?;
        if now.len() < then {
            return Err(WeightsError::FileShrank { path: self.path.clone(), then, now: now.len() });
        }
        Ok(())
    }

    /// Tells the kernel to read ahead. A refusal is harmless.
    pub(crate) fn advise_sequential(&self) {
        let _ = self.map.advise(Advice::Sequential);
    }

    /// Drops the pages of `bytes` (if it lies in this file) from the process. They are read again when touched.
    pub(crate) fn release(&self, bytes: &[u8]) {
        let base = self.map.as_ptr().addr();
        let Some(offset) = bytes.as_ptr().addr().checked_sub(base) else { return };
        if bytes.is_empty() || offset.saturating_add(bytes.len()) > self.map.len() {
            return;
        }
        // SAFETY: DONTNEED on a read-only, file-backed mapping drops nothing but clean pages: a later read of
        // them, also through `bytes`, sees the file's contents again.
        let _ = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes.len())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cut_after_open_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let mapping = Mapping::open(&path).unwrap();
        mapping.check_length().unwrap();
        mapping.advise_sequential();
        mapping.release(&mapping.bytes()[5000..9000]);
        assert_eq!(mapping.bytes()[5000..9000], vec![7; 4000]);
        File::options().write(true).open(&path).unwrap().set_len(4000).unwrap();
        let error = mapping.check_length().unwrap_err();
        assert!(matches!(error, WeightsError::FileShrank { then: 10_000, now: 4000, .. }));
    }

    #[test]
    fn an_empty_file_and_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), []).unwrap();
        assert!(Mapping::open(&dir.path().join("x")).unwrap().bytes().is_empty());
        assert!(matches!(Mapping::open(dir.path()), Err(WeightsError::NotAModel { .. })));
    }
}
