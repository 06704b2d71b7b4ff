//! Backends with one planted bug each. A suite that lets one pass is broken: an escaped mutant is a missing case.
//!
//! A mutant is an entry of a table (`bugs`, grouped by what it is about): its op, what is wrong, and a change to what the right
//! backend (`cpu-ref`) is asked: to the descriptor, to a launch's arguments, to its outputs, or to the rows of a weight. Where no such
//! change makes the bug, a plain wrong loop (`attend`) does.
//!
//! - [`mutants()`]: all of them
//! - [`correct()`] and [`planted()`]: a device without and with one
//! - [`try_mutant()`]: whether the default cases of its op catch it
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test tensors are small, and their integers fit their dtypes"
)]

mod attend;
mod bugs;
mod call;
mod device;
mod mutant;
mod queue;
mod score;
mod weights;

pub use mutant::Mutant;
pub use score::{Caught, Verdict, table, try_all, try_mutant};

use halyard_core::{Backend, Device, Result};

/// Every mutant.
pub fn mutants() -> impl Iterator<Item = &'static Mutant> {
    bugs::all()
}

/// A device of the wrapper without a bug.
///
/// # Errors
/// If it cannot be opened.
pub fn correct() -> Result<Device> {
    Backend::builtin(halyard_sdk::module::<device::Mutants>()).open(0, &[])
}

/// A right device whose streams work on their own.
///
/// # Errors
/// If it cannot be opened.
pub fn queued() -> Result<Device> {
    Backend::builtin(halyard_sdk::module::<device::Mutants>()).open(0, &[("queued", "true")])
}

/// A device with a bug.
///
/// # Errors
/// If there is no mutant of this name.
pub fn planted(name: &str) -> Result<Device> {
    Backend::builtin(halyard_sdk::module::<device::Mutants>()).open(0, &[("mutant", name)])
}
