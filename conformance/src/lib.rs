//! Proves a backend's kernels against the CPU reference, through the same boundary that a server uses.
//!
//! - [`verify()`]: the case catalogue (`cases/*.toml`) on a device, with a [`Report`]
//! - [`perf()`]: kernels timed at the shapes of real models, beside the device's limits; [`counted()`]: launched once, for a simulator
//! - [`gate()`]: exactly the kernels that a server is about to launch, at their real sizes
//! - [`oracle()`]: the reference, linked in
//!
//! Inside, in the order of a case's way: `catalog` (data to cases), `generate` (inputs from a seed), `weight` (weights in their
//! scheme's bytes), `execute` (guarded launches), `conduct` (launches after and beside
//! others, streams, leaks, errors), `judge` and `compare` (against the oracle, within `tolerance`), `report`. Collectives are apart, in
//! `comm`.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "sizes of test tensors are small; 64-bit hosts are asserted by halyard-core"
)]

mod array;
mod catalog;
mod comm;
mod compare;
mod conduct;
mod execute;
pub mod gate;
mod generate;
mod judge;
mod opbuf;
mod perf;
mod report;
mod rng;
mod symbols;
mod tolerance;
mod verify;
mod weight;

pub use catalog::CatalogError;
pub use compare::{Comparison, Worst};
pub use gate::gate;
pub use perf::{Counted, Counter, Limits, PerfReport, PerfRow, counted, perf};
pub use report::{CaseResult, Counts, Outcome, Report, html, junit};
pub use verify::{Options, Progress, verify, verify_while};

/// The oracle's device.
///
/// # Errors
/// If it cannot be opened.
pub fn oracle() -> halyard_core::Result<halyard_core::Device> {
    halyard_core::Backend::builtin(halyard_cpu_ref::module()).open(0, &[])
}
