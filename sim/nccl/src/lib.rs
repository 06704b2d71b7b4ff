//! A substitute for NCCL, for machines without GPUs: ranks are threads of a process or processes of one host.
//!
//! A call copies its input to pinned memory, calls a function of the host there, and copies the result back, all in the order of the
//! caller's stream. The function exchanges the bytes with the other ranks by [`halyard_sdk::comm`]. Nothing is used but the public
//! driver API, so any driver library does; it is made for the software GPU of `sim/cuda`.
//!
//! It is stricter than NCCL: calls that do not belong together end the communicator with an asynchronous error whose text
//! `ncclGetLastError` gives, where NCCL would hang or combine bytes that do not belong together.
//!
//! - `api`: the C functions; `result`: their results and texts
//! - `comm`: communicators, and how ranks come together; `group`: what waits for `ncclGroupEnd`
//! - `call`: calls and their checks; `staging`: work of a stream
//! - `fault`: a link that fails on request
#![expect(
    clippy::cast_possible_truncation,
    reason = "counts and sizes: usize is u64 here, ranks are few"
)]
#![allow(non_snake_case, reason = "the entries have the names of NCCL's API")]

mod api;
mod call;
mod comm;
mod fault;
mod group;
mod result;
mod staging;
