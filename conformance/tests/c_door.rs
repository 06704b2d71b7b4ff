//! The CPU backend through its C door, in a process of its own: a library is loaded once, through one door.

#[path = "backends/library.rs"]
mod library;

use halyard_conformance::{Options, oracle, verify};
use halyard_core::Door;

/// Every entry of the table that has to do with numbers is called by these profiles; the kernels are those of the Rust door.
const PROFILES: [&str; 3] = ["dense", "sample", "quant:q4_1"];

#[test]
fn the_cpu_backend_through_the_c_door() {
    let backend = library::load("halyard-backend-cpu", Door::C);
    assert_eq!((backend.id(), backend.door()), ("cpu", Door::C));
    let device = backend.open(0, &[]).expect("the device opens");
    let profiles = PROFILES.map(String::from).to_vec();
    let options = Options { profiles, ..Options::default() };
    let oracle = oracle().expect("the reference is linked in");
    let report = verify(&device, &oracle, &options, &mut |_| {}).expect("the catalogue is right");
    assert!(report.passed(), "{}", report.table());
    for profile in PROFILES {
        assert!(report.profile_passed(profile), "{profile}");
    }
}
