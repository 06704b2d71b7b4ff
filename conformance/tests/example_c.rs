//! The example backend in C: built by its Makefile, held to the profiles that it declares.

use std::{path::Path, process::Command};

use halyard_conformance::{Options, oracle, verify};
use halyard_core::{
    Door,
    loader::{SearchPath, Trust, discover, load},
};

#[test]
fn the_example_in_c() {
    let out = tempfile::tempdir().expect("a folder for the library");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/backend-c");
    let mut make = Command::new("make");
    make.arg("--silent").arg("-C").arg(&example).arg(format!("OUT={}", out.path().display()));
    assert!(make.status().expect("make is installed").success(), "the example must build");
    let found = discover(&SearchPath::standard(&[out.path().into()])).expect("make has built it");
    let trust = Trust { insecure: true, ..Trust::default() };
    let backend = load(&found[0], &trust).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((backend.id(), backend.door()), ("ctoy", Door::C));
    let device = backend.open(0, &[]).expect("the device opens");
    let oracle = oracle().expect("the reference is linked in");
    let profiles = ["dense", "sample"].map(String::from).to_vec();
    let options = Options { profiles, ..Options::default() };
    let report = verify(&device, &oracle, &options, &mut |_| {}).expect("the catalogue is right");
    assert!(report.passed(), "{}", report.table());
    for profile in ["dense", "sample"] {
        assert!(report.profile_passed(profile), "{profile}");
    }
}
