//! Every backend of this repository through the Rust door, as the library that a server would load. A linked-in backend is the same
//! objects without the loader; the gate's tests and the engine's run on those.

mod library;

use halyard_core::Door;

#[test]
fn the_reference() {
    library::certify("halyard-backend-cpu-ref", "cpu-ref", Door::Rust);
}

#[test]
fn the_cpu_backend() {
    library::certify("halyard-backend-cpu", "cpu", Door::Rust);
}
