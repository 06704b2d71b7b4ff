//! Our own declarations of Huawei's CANN: AscendCL (`acl`), the operators (`aclnn`), collectives (`hccl`) and
//! the driver's management (`dcmi`).
//!
//! Nothing is linked: libraries are opened when [`Libraries::open`] is called and stay open for the life of the process. Each symbol is
//! looked up by itself, never by a release's number: a function that a release lacks is `None`.
#![expect(non_camel_case_types, non_snake_case, reason = "names are those of the vendor's headers")]
#![expect(missing_docs, reason = "the vendor's manuals document the functions of these names")]

pub mod acl;
pub mod aclnn;
pub mod dcmi;
pub mod hccl;
mod load;
pub mod types;

pub use load::{Libraries, OpenError};
