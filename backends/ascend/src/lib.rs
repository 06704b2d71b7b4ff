//! The Ascend backend: Ascend 910B (Atlas A2) through CANN.
//!
//! - [`Ascend`]: the backend, exported through both doors
//! - `device`: what the host sees; `memory`: what its buffers own; `weights`: packing through the host's hook
//! - `kv`: the arrangement of paged caches
//! - `collective`: communicators over HCCL
//! - `driver`: AscendCL, aclnn and HCCL as safe Rust; nothing is linked, libraries are looked for when the backend is probed
//! - `ops`: one op a file, which operators it enqueues and how
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are checked against the operators' limits where they are prepared"
)]

mod backend;
mod collective;
mod device;
mod driver;
mod kv;
mod memory;
mod ops;
mod weights;

pub use backend::Ascend;
pub use device::AscendDevice;

halyard_sdk::export_backend!(Ascend);
halyard_sdk::export_c!(Ascend);
