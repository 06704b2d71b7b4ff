//! For hosts: load a backend, check it, and use it without `unsafe`.
//!
//! - [`Backend`]: a backend, built in or loaded from a shared library by [`loader`]
//! - [`Device`], [`Stream`]: an opened device and its queues
//! - [`DeviceBuffer`], [`Tensor`], [`KvCache`]: memory that frees itself when no work uses it any more
//! - [`Weight`], [`WeightBuilder`]: weights in the backend's packed form
//! - [`Communicator`]: one rank of several devices that work together
//! - [`Graph`]: work that a stream captured, to be enqueued again as a whole
//! - [`Kernel`], [`Launch`]: prepared operations and their kept argument blocks; [`Decompose`]: from what a backend has, if it lacks one
//!
//! Descriptors and arguments are validated here, once, against the op catalogue ([`ops`]); backends rely on it.
#![expect(
    clippy::cast_possible_truncation,
    reason = "u64 to usize: hosts are 64-bit, which halyard-sdk and this crate assert"
)]
const _: () = assert!(usize::BITS == 64, "Halyard runs on 64-bit hosts");

mod backend;
mod c_door;
mod comm;
mod decompose;
mod device;
mod error;
mod graph;
mod host_log;
mod kernel;
mod launch;
pub mod loader;
mod memory;
mod module;
mod stream;
mod tensor;
mod weight;

pub use backend::Backend;
pub use comm::{CommHandle, CommId, CommSpec, Communicator, Group, Rows};
pub use decompose::Decompose;
pub use device::{Device, Support};
pub use error::{Call, DeviceError};
pub use graph::Graph;
pub use halyard_abi::{
    Code, DType, InfoKey, KvDesc, KvLayout, Metric, MetricKey, OpBuf, OpKind, PropKey, ReduceOp,
    Role, Scheme, TensorSpec, WeightDesc, WeightPlan,
    collective::MAX_WORLD,
    fp8, ops,
    ops::{Sym, attrs},
    scheme::FP8_BLOCK,
    traits::{BATCH_INVARIANT, CAPTURABLE, DETERMINISTIC, HOST_LENGTHS, PLAN_UPDATE},
    types::{WEIGHT_PERM, WEIGHT_ZERO},
};
pub use kernel::{Kernel, Plan};
pub use launch::{Launch, Workspace};
pub use loader::{Door, LoadError};
pub use memory::{DeviceBuffer, Element, Upload};
pub use stream::{Event, Stream};
pub use tensor::{KvCache, Tensor};
pub use weight::{Weight, WeightBuilder};

/// What every call on a device returns.
pub type Result<T> = core::result::Result<T, DeviceError>;
