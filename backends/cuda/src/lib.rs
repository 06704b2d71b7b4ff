//! The CUDA backend: NVIDIA GPUs from compute capability 8.0 on.
//!
//! - [`Cuda`]: the backend, exported through both doors
//! - `device`: what the host sees; `memory`: what its buffers own; `weights`: packing through the host's hook
//! - `kv`: the arrangement of paged caches
//! - `driver`: the driver API as safe Rust; nothing is linked, the driver is looked for when the backend is probed
//! - `collective`: devices that work together; `nccl`: NCCL as safe Rust, looked for when the first communicator is wanted
//! - `cublas`: cuBLASLt as safe Rust, looked for when a device is opened
//! - `nvml`: temperature, power and the like, where the driver's management library is there
//! - `kernels`: the PTX of `kernels/*.cu`, which `cargo xtask ptx` compiles; `ops`: one op a file, which kernels it launches and how
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are checked against the kernels' limits where they are prepared"
)]

mod backend;
mod capture;
mod collective;
mod cublas;
mod device;
mod driver;
mod kernels;
mod kv;
mod memory;
mod nccl;
mod nvml;
mod ops;
mod weights;

pub use backend::Cuda;
pub use device::CudaDevice;

halyard_sdk::export_backend!(Cuda);
halyard_sdk::export_c!(Cuda);
