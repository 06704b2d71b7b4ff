//! The embedded CPU backend: SIMD kernels, worker pool, packed and quantised weights.
//!
//! - [`Cpu`]: the backend; [`module`] gives it to a host that links it, `plugin/` builds it as a library
//! - `device`: what the host sees; `weights`: packing through the host's hook; `ops`: one op a file
//! - `gemm`: matrix products; `attention`: attention; `kv`: the paged cache
//! - `pack`: packed weights; `elem`: rows of floats in memory; `cell`: what a cache holds; `fp8`: 8-bit floats
//! - `simd`, `isa`: sixteen-lane arithmetic, compiled once per instruction set and chosen at run time
//! - `pool`: the worker threads; `topology`, `huge`: the machine
//!
//! Kernels are written once, against `simd::Simd`. Every output element's operations and their order are
//! independent of batch size, tiles, chunks and threads, so its bits are too.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_ptr_alignment,
    clippy::multiple_unsafe_ops_per_block,
    reason = "numeric kernels: conversions between number types are their business, loads and stores are unaligned ones, and those of a kernel share one promise"
)]
#![cfg_attr(test, expect(clippy::float_cmp, reason = "tests of exactness"))]

mod attention;
mod cell;
mod device;
mod elem;
mod fp8;
mod gemm;
mod huge;
mod isa;
mod kv;
#[cfg(test)]
#[path = "../tests/device/noise.rs"]
mod noise;
mod ops;
mod pack;
mod pool;
mod simd;
mod topology;
mod weights;

pub use device::{Cpu, CpuDevice};
use halyard_sdk::abi::BackendModuleRef;

/// The backend for a host that links it.
#[must_use]
pub fn module() -> BackendModuleRef {
    halyard_sdk::module::<Cpu>()
}
