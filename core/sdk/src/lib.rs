//! For those who write a backend.
//!
//! Implement [`Backend`], [`Device`] and [`Kernel`] (a device that is the host's own processor implements the much smaller
//! [`InlineDevice`] instead of `Device`), then export it:
//!
//! ```text
//! halyard_sdk::export_backend!(MyBackend);
//! ```
//!
//! `export_c!` gives it the C door, too, for hosts that are not written in Rust.
//!
//! The SDK adds what every backend owes its host: panics never leave the library and poison the device, `tracing` events reach the
//! host's log, and typed parsers refuse attributes they do not know.
//!
//! - [`backend`]: the traits to implement
//! - [`inline`]: memory, streams and events for devices whose launches run before they return
//! - [`comm`]: collectives between such devices, in shared memory
//! - [`tensor`]: checked element access to a launch's tensors, for code that wants clarity before speed
//! - [`vendor`]: for devices behind a vendor's driver: handles, buffers, waits, measurements
//! - [`weights`]: the bookkeeping of weights: handles, which rows have come, their parts in host memory
//! - [`Signature`]: what a kernel was prepared for, checked at each launch
//! - typed op attributes: [`halyard_abi::ops::attrs`]
//! - `guard`: the exported objects (not public: [`export_backend!`] and [`module`] make them)
#![expect(
    clippy::cast_possible_truncation,
    reason = "u64 to usize: hosts are 64-bit, which is asserted here"
)]
const _: () = assert!(usize::BITS == 64, "Halyard runs on 64-bit hosts");

pub mod backend;
pub mod comm;
mod export;
mod export_c;
mod guard;
pub mod inline;
mod log;
mod requests;
mod signature;
pub mod tensor;
pub mod vendor;
pub mod weights;

pub use backend::{Backend, Collective, Device, Kernel, Options, Support};
pub use export::module;
pub use halyard_abi as abi;
pub use halyard_abi::{
    A2av, AbiError as Error, AllocReq, Attr, Buffer, Code, CommDesc, CopyReq, DType, Event, Graph,
    InfoKey, KvDesc, KvLayout, LaunchArgs, MemRef, Metric, MetricKey, Notify, OpDesc, OpKind, Plan,
    PropKey, ReduceOp, Role, Scheme, Stream, TensorSpec, TensorView, Weight, WeightDesc,
    WeightFill, WeightPlan,
};
pub use inline::{HostMemory, InlineDevice};
pub use signature::Signature;
pub use tensor::HostTensor;
pub use weights::WeightTable;

/// What every method returns.
pub type Result<T> = core::result::Result<T, Error>;

#[doc(hidden)]
pub mod __private {
    pub use crate::{export::lib_header, export_c::entry as c_entry};
    pub use halyard_abi::exporting::LibHeader;
}
