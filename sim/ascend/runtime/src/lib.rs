//! A substitute for the CANN libraries (AscendCL, aclnn, HCCL), for machines without an NPU.
//!
//! `layout` makes the libraries of a CANN release, with the vendor's names and the symbols that the release has; they all jump into
//! this one. `HALYARD_SIM_ASCEND_DEVICES=910B1,910B4` names the devices. It is strict: what a real device would let pass or answer with
//! undefined results ends with an error that names the call and the argument, in `aclGetRecentErrMsg` and on standard error.
//!
//! - `api`: the C functions; `code`: their results; `layout`: the libraries of a release
//! - `runtime`: devices and handles; `soc`: chips; `fault`: failures on request
//! - `object`, `executor`: what operators are called with, and their two phases
//! - `hccl`: collectives
//! - `stream`, `event`, `capture`: work that is done while the caller goes on, its order, and graphs of it
#![allow(non_snake_case, reason = "the entries have the names of the vendor's functions")]
mod api;
mod calls;
mod capture;
mod code;
mod event;
mod executor;
mod fault;
mod hccl;
pub mod layout;
mod object;
mod random;
mod runtime;
mod soc;
mod stream;
