//! Builds a backend's library as it is now, and loads it as a server would.

use std::{env, path::PathBuf, process::Command};

use halyard_core::{
    Backend,
    loader::{SearchPath, Trust, discover, load as load_found},
};

/// Builds a package of this workspace and loads its library.
pub(crate) fn load(package: &str) -> Backend {
    let path = build(package);
    let found = discover(&SearchPath::standard(&[path])).expect("it has just been built");
    // Who may write to a developer's target folder is not what is tested here.
    let trust = Trust { insecure: true, ..Trust::default() };
    load_found(&found[0], &trust).unwrap_or_else(|error| panic!("{package}: {error}"))
}

/// This test lies in `<target>/<profile>/deps`; the library goes to the same profile.
fn build(package: &str) -> PathBuf {
    let exe = env::current_exe().expect("a test knows its path");
    let profile = exe.ancestors().nth(2).expect("deps lies in the profile's folder");
    let target = profile.parent().expect("the profile lies in the target folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", package, "--target-dir"]).arg(target);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("{cargo:?}: {error}"));
    assert!(status.success(), "{cargo:?}: {status}");
    let name = package.strip_prefix("halyard-").unwrap_or(package).replace('-', "_");
    profile.join(format!("libhalyard_{name}.so"))
}
