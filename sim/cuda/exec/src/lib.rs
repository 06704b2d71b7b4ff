//! Executes PTX on the processor, as a strict device would: a functional test tool, not a fast one.
//!
//! - [`Image`]: a module, parsed and decoded; [`Kernel`]: one of its kernels
//! - [`Memory`]: the memory of all devices; [`Order`], [`Past`]: what happens before what, [`Ticket`]: what has happened
//! - [`Executor`]: runs a [`Launch`]; [`Fault`]: what a kernel did wrong, with line, block and thread
//! - [`TensorMap`]: what a copy of a tile knows of a tensor
//! - [`Counters`], [`Roofline`], [`Occupancy`], [`Profile`]: what was done, and what it would take on a device
//! - `decode`: PTX to register slots and opcodes; `warp`: the interpreter; `compile`: what is between accesses, as machine code; `block`: turns and barriers; `shared`: shared
//!   memory and its races
//!
//! It is stricter than hardware on purpose. Every access is checked against its allocation; bytes that nothing wrote can't
//! be read; a copy by `cp.async` arrives only at the wait for it; blocks and warps run in an order that a seed decides;
//! uses of shared memory by two threads need a barrier between, unless both write the same bytes, uses of global memory by
//! two streams an event.
//! Tensor cores and approximate functions are computed in f32: compare with a tolerance, as with hardware.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an instruction set's arithmetic is modular, and its registers are read at several widths"
)]
#![allow(
    clippy::inline_always,
    reason = "the interpreter's parts must be compiled into the one function that has vector instructions enabled"
)]
#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests of exactness"))]

mod block;
mod compile;
mod counters;
mod decode;
mod fault;
mod image;
mod launch;
mod memory;
mod number;
mod profile;
mod program;
mod race;
mod random;
mod shared;
mod tensor_map;
mod warp;

pub use counters::{Counters, Occupancy, Roofline};
pub use decode::DecodeError;
pub use fault::{Fault, FaultKind};
pub use halyard_sim_memory::{Home, Memory, MemoryError, Order, Past, Ticket};
pub use image::{Image, Kernel, LoadError};
pub use launch::{Executor, Launch, LaunchError};
pub use profile::Profile;
pub use program::Class;
pub use tensor_map::TensorMap;
