//! Every backend of this repository through the whole catalogue: linked in, and as the library that a server would load.

mod library;

use halyard_conformance::{Options, Report, oracle, verify};
use halyard_core::{Backend, Device, Door};

#[expect(clippy::print_stdout, reason = "the table, for those who ask with --nocapture")]
fn run(device: &Device) -> Report {
    let oracle = oracle().expect("the reference is linked in");
    let report = verify(device, &oracle, &Options::default(), &mut |_| {});
    let report = report.expect("the catalogue is well-formed");
    println!("{}", report.table());
    report
}

/// Everything passes: both backends of this repository have all of the catalogue.
#[track_caller]
fn certified(device: &Device) {
    let report = run(device);
    assert!(report.passed(), "{}", report.table());
    for profile in &report.declared {
        assert!(report.profile_passed(profile), "{profile}");
    }
    assert_eq!(report.counts.unavailable, 0);
    assert_eq!(report.counts.unsupported, 0);
}

#[test]
fn the_reference_agrees_with_itself() {
    certified(&oracle().unwrap());
}

#[test]
fn the_reference_as_a_library() {
    let backend: Backend = library::load("halyard-backend-cpu-ref", Door::Rust);
    assert_eq!(backend.id(), "cpu-ref");
    certified(&backend.open(0, &[]).unwrap());
}

#[test]
fn the_cpu_backend() {
    certified(&Backend::builtin(halyard_cpu::module()).open(0, &[]).unwrap());
}

#[test]
fn the_cpu_backend_as_a_library() {
    let backend = library::load("halyard-backend-cpu", Door::Rust);
    assert_eq!(backend.id(), "cpu");
    certified(&backend.open(0, &[]).unwrap());
}
