//! Backends and hosts of other versions through the Rust door, as `docs/abi.md` says in its section on skew; `c_door.rs` has the C door's.
//!
//! The other versions are this tree's sources after a list of edits ([`older`], [`newer`]), built when the tests run. A copy frozen
//! today would test nothing tomorrow: before 1.0 every minor version refuses the others, so a frozen copy and the tree part with the first
//! change of the boundary, and only the refusal is left (`libraries.rs` has that). What must hold is that the boundary can
//! grow as it says it can, from wherever it is. From 1.0 on, frozen copies are worth their weight.

#![expect(clippy::unwrap_used, reason = "helpers of a test, outside its functions")]

#[path = "../fixture/mod.rs"]
mod fixture;
mod newer;
mod older;
mod version;

use fixture::{Fixture, add};
use halyard_core::{Code, DType, Launch, OpBuf, TensorSpec, Workspace, attrs};

/// An older backend lacks the methods after each trait's prefix: their defaults run, on this side.
#[test]
fn an_older_backend_in_this_host() {
    let backend = older::VERSION.plugin().load().unwrap();
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
    let device = backend.open(0, &[]).unwrap();
    let stream = device.stream(0).unwrap();
    let spec = TensorSpec::new(DType::F32, &[-1]);
    let kernel = device.prepare(OpBuf::new(&attrs::Add::default(), [spec; 3], [])).unwrap();
    let x = device.tensor_from(&stream, &[2], &[1f32, 2.0]).unwrap();
    let y = device.tensor(DType::F32, &[2]).unwrap();
    let mut launch = Launch::new(&kernel, &[Some(&x), Some(&x), Some(&y)], &[]).unwrap();
    let plan = launch.plan(&stream, &[]).unwrap();
    launch.set_plan(Some(plan)).unwrap();
    let workspace = Workspace::new(&device, launch.workspace_bytes()).unwrap();
    launch.run(&stream, &workspace, &[]).unwrap();
    let mut got = vec![0f32; 2];
    y.read(&stream, &mut got).unwrap();
    assert_eq!(got, [2.0, 4.0]);
}

/// A newer backend has more: methods, entries of its module, an op, an attribute. Nobody here asks for them, and what it asks of
/// the host beyond the host's table is not there.
#[test]
fn a_newer_backend_in_this_host() {
    let backend = newer::VERSION.plugin().load().unwrap();
    assert_eq!(backend.probe(), 1);
    assert_eq!(add(&backend, &[]).unwrap(), [11.0, 22.0, 3.0]);
    assert_eq!(add(&backend, &[("panics", "true")]).unwrap_err().code, Code::PANIC);
}

#[test]
fn this_backend_in_an_older_host() {
    let said = older::VERSION.host_loads(&Fixture::new("good"));
    assert_eq!(said, "probe 1\nadd Ok([11.0, 22.0, 3.0])\n");
}

/// A newer host has an op, an attribute, a method and an entry that this backend lacks: an unknown op is not supported, a newer attribute
/// is refused unless it says nothing new, a missing method runs its default, a missing entry is absent.
#[test]
fn this_backend_in_a_newer_host() {
    let said = newer::VERSION.host_loads(&Fixture::new("good"));
    let expected = "\
        probe 1\n\
        add Ok([11.0, 22.0, 3.0])\n\
        newer method: unsupported: this backend has no `newer`\n\
        newer op: only add\n\
        newer attribute at its default: Ok\n\
        newer attribute: prepare: unsupported: add revision 2, this build knows 1 to 1\n";
    assert_eq!(said, expected);
}

/// The newer pair among themselves: what is there on both sides works.
#[test]
fn a_newer_backend_in_a_newer_host() {
    let said = newer::VERSION.host_loads(&newer::VERSION.plugin());
    assert!(said.starts_with("probe 43\nadd Ok([11.0, 22.0, 3.0])\nnewer method: 7\n"), "{said}");
    assert!(said.ends_with("newer attribute: Ok\n"), "{said}");
}
