//! The contract between Halyard and a backend.
//!
//! A backend is a shared library that hands out three kinds of object: a [`Device`](traits::Device), the
//! [`Kernel`](traits::Kernel)s it prepares and the [`Collective`](traits::Collective)s it joins. Everything that crosses the
//! boundary is plain data: integers, fixed arrays and borrowed `{pointer, length}` slices in `#[repr(C)]` structs. Sets that may
//! grow (dtypes, ops, attributes, error codes) are integer newtypes, never Rust enums, so that a value from a newer side is
//! merely unknown.
//!
//! - [`ids`]: the open sets of identifiers, and handles
//! - [`types`]: the structs
//! - [`error`]: codes and the error value
//! - [`traits`]: `Device`, `Kernel`, `Collective`, each method's contract
//! - [`module`]: what a library exports and what the host offers it, through the Rust door
//! - [`c`]: the same through the C door, `include/halyard_backend.h`
//! - [`ops`]: the op catalogue: slots, shapes, attributes, typed builders and parsers
//! - [`scheme`]: the parts of a weight
//! - [`collective`]: what a collective's arguments must be
//! - [`fp8`]: the 8-bit floats
//!
//! Backend authors use `halyard-sdk`, hosts use `halyard-core`; both re-export what they need from here.
#![expect(
    non_local_definitions,
    reason = "abi_stable 0.11's derives expand to impls inside constants; this crate only"
)]

pub mod c;
pub mod collective;
pub mod error;
pub mod fp8;
pub mod ids;
pub mod module;
pub mod ops;
pub mod scheme;
pub mod traits;
pub mod types;

pub use abi_stable::std_types::{RBox, ROption, RResult, RSlice, RSliceMut, RStr, RString};
pub use error::{AbiError, R};
pub use ids::{
    AttrKey, Code, DType, Event, Graph, InfoKey, MetricKey, OpKind, Plan, PropKey, ReduceOp, Role,
    Scheme, Stream, Weight,
};
pub use module::{BackendModule, BackendModuleRef, HostApi, HostApiRef};
pub use ops::OpBuf;
pub use traits::{CollectiveBox, DeviceBox, KernelBox};
pub use types::{
    A2av, AllocReq, Attr, Buffer, CommDesc, CopyReq, KeyValue, KvDesc, KvLayout, LaunchArgs,
    MemRef, Metric, Notify, OpDesc, TensorSpec, TensorView, WeightDesc, WeightFill, WeightPlan,
};

/// What a host needs of `abi_stable` to load a library; nothing else may use it.
pub mod loading {
    pub use abi_stable::StableAbi;
    pub use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
    pub use abi_stable::library::{
        AbiHeaderRef, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule,
    };
}

/// What those who make the boundary's objects need of `abi_stable`: the SDK, and the host for the C door; nothing else may use it.
pub mod exporting {
    pub use abi_stable::library::{
        __call_root_module_loader as call_root_module_loader, CheckTypeLayout, LibHeader,
        RootModuleResult,
    };
    pub use abi_stable::prefix_type::PrefixTypeTrait;
    pub use abi_stable::sabi_trait::TD_Opaque;
}
