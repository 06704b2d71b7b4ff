//! The CPU backend through its C door, collectives too, in a process of its own: a library is loaded once, through one door.

#[path = "backends/library.rs"]
mod library;

use halyard_core::Door;

#[test]
fn the_cpu_backend() {
    library::certify("halyard-backend-cpu", "cpu", Door::C);
}
