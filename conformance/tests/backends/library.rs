//! The libraries of this repository's backends, loaded as a server would.

use std::{env, path::PathBuf};

use halyard_core::{
    Backend, Door,
    loader::{Found, SearchPath, Trust, discover, load as load_found},
};

/// Loads a plugin package's library through one of its doors. The package is a development dependency, so the library beside this test is always up to date.
pub(crate) fn load(package: &str, door: Door) -> Backend {
    let mut found = discover(&SearchPath::standard(&[path(package)])).expect("cargo has built it");
    // Who may write to a developer's target folder is not what is tested here.
    let trust = Trust { insecure: true, ..Trust::default() };
    let found = Found { door: Some(door), ..found.remove(0) };
    load_found(&found, &trust).unwrap_or_else(|error| panic!("{package}: {error}"))
}

fn path(package: &str) -> PathBuf {
    let name = package.strip_prefix("halyard-").unwrap_or(package).replace('-', "_");
    let exe = env::current_exe().expect("a test knows its path");
    exe.with_file_name(format!("libhalyard_{name}.so"))
}
