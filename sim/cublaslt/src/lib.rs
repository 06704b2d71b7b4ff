//! A substitute for cuBLASLt, for machines without GPUs: products of matrices of f32, f16 and bf16 with sums in f32.
//!
//! A product copies its matrices to pinned memory, calls a function of the host there, and copies the result back, all in the order of
//! the caller's stream. Nothing is used but the public driver API, so any driver library does; it is made for the software GPU of
//! `sim/cuda`.
//!
//! It is stricter than cuBLASLt: objects must be alive and of their kind, an algorithm belongs to the very product that it was found for,
//! and every byte of a matrix must be in memory of the device. `cublasLtGetStatusString` says what was wrong with the thread's last call.
//!
//! - `api`: the C functions; `status`: their results and texts
//! - `object`: handles, layouts, descriptions and preferences; `problem`: a product and what is asked of it
//! - `multiply`: the numbers; `enqueue`: work of a stream; `driver`: matrices in the driver's memory
#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes: usize is u64 here, matrices fit in memory"
)]
#![allow(non_snake_case, reason = "the entries have the names of cuBLASLt's API")]

mod api;
mod driver;
mod enqueue;
mod multiply;
mod object;
mod problem;
mod status;
