//! The libraries of this repository's backends, loaded as a server would, and put to the whole catalogue.

use std::{env, path::PathBuf};

use halyard_conformance::{Options, oracle, verify};
use halyard_core::{
    Door,
    loader::{Found, SearchPath, Trust, discover, load},
};

/// Runs the catalogue on the library of a plugin package, through one of its doors. Everything passes: both backends of this repository
/// have all of the catalogue. The package is a development dependency, so the library beside this test is always up to date.
#[expect(clippy::print_stdout, reason = "the table, for those who ask with --nocapture")]
pub(crate) fn certify(package: &str, id: &str, door: Door) {
    let mut found = discover(&SearchPath::standard(&[path(package)])).expect("cargo has built it");
    // Who may write to a developer's target folder is not what is tested here.
    let trust = Trust { insecure: true, ..Trust::default() };
    let found = Found { door: Some(door), ..found.remove(0) };
    let backend = load(&found, &trust).unwrap_or_else(|error| panic!("{package}: {error}"));
    assert_eq!((backend.id(), backend.door()), (id, door));

    let device = backend.open(0, &[]).expect("the device opens");
    let oracle = oracle().expect("the reference is linked in");
    let report = verify(&device, &oracle, &Options::default(), &mut |_| {});
    let report = report.expect("the catalogue is well-formed");
    println!("{}", report.table());
    assert!(report.passed(), "{}", report.table());
    for profile in &report.declared {
        assert!(report.profile_passed(profile), "{profile}");
    }
    assert_eq!(report.counts.unavailable, 0);
    assert_eq!(report.counts.unsupported, 0);
}

fn path(package: &str) -> PathBuf {
    let name = package.strip_prefix("halyard-").unwrap_or(package).replace('-', "_");
    let exe = env::current_exe().expect("a test knows its path");
    exe.with_file_name(format!("libhalyard_{name}.so"))
}
