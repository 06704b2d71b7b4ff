//! The driver API as safe Rust: all `unsafe` of this crate that is not a kernel's launch or a launch's addresses.
//!
//! Every function wants its device's context bound ([`Context::bind`]), and says which driver call failed.

mod context;
mod error;
mod event;
mod graph;
mod memory;
mod module;
mod stream;

pub(crate) use context::{Bound, Context, count, start, version_text};
pub(crate) use event::Event;
pub(crate) use graph::Graph;
pub(crate) use halyard_sdk::vendor::Plane;
pub(crate) use memory::{Memory, alloc_pinned, copy, fill, free_pinned};
pub(crate) use module::{Function, Grid, Module};
pub(crate) use stream::Stream;
