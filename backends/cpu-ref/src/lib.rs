//! The oracle: every op of the catalogue in plain loops, arithmetic and accumulation in `f64`, one rounding at each written tensor.
//!
//! It is the definition that other backends are compared with, so it is written to be read beside the formulas of
//! [`halyard_sdk::abi::ops::catalogue`]: no SIMD, no threads, no packing. It is not meant to serve.
//!
//! - [`CpuRef`]: the backend
//! - `ops`: one op a file
//! - `dequant`: the weight formats, a row at a time
//! - `attention`, `cache`, `quant`: what several ops share
//! - `glue`: the only `unsafe` code: a launch's tensors and the bytes of a weight
//! - [`sampling`]: the rule of SAMPLE on plain numbers, and its random number generator

mod attention;
mod backend;
mod cache;
mod dequant;
mod glue;
mod ops;
mod order;
mod quant;
mod rows;
pub mod sampling;
mod weights;

pub use backend::{CpuRef, RefDevice};

/// The backend, for a host that links it in.
#[must_use]
pub fn module() -> halyard_sdk::abi::BackendModuleRef {
    halyard_sdk::module::<CpuRef>()
}
