//! Libraries that cargo has put beside a test: development dependencies are always up to date.

use std::{
    env,
    path::{Path, PathBuf},
};

use halyard_core::{
    Backend,
    loader::{SearchPath, Trust, discover, load},
};
use libloading::Library;

pub(crate) fn beside(name: &str) -> PathBuf {
    env::current_exe().expect("a test knows its path").with_file_name(name)
}

/// A library of this workspace, loaded for good.
pub(crate) fn loaded(path: &Path) -> Library {
    // SAFETY: it is a library of this workspace, whose loading does nothing by itself.
    let library = unsafe { Library::new(path) };
    library.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A backend of this workspace, as a server would load it.
pub(crate) fn backend(id: &str) -> Backend {
    let path = beside(&format!("libhalyard_backend_{id}.so"));
    let found = discover(&SearchPath::standard(&[path])).expect("cargo has built it");
    // Who may write to a developer's target folder is not what is tested here.
    let trust = Trust { insecure: true, ..Trust::default() };
    load(&found[0], &trust).expect("it loads")
}
