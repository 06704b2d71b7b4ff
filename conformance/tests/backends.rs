//! Every backend at hand through the whole catalogue.

use halyard_conformance::{Options, Report, oracle, verify};
use halyard_core::Device;

fn run(device: &Device) -> Report {
    let report = verify(device, &oracle().unwrap(), &Options::default(), &mut |_| {}).unwrap();
    println!("{}", report.table());
    report
}

#[test]
fn the_reference_agrees_with_itself() {
    let report = run(&oracle().unwrap());
    assert!(report.passed());
}
