//! The engine: models, paged KV cache, scheduler, sampling.
//!
//! A [`Plan`] says how a checkpoint will run on a device and which kernels that takes; [`Plan::load`]
//! makes it an engine. One OS thread a replica runs the loop; callers talk to it through an
//! [`EngineHandle`], from any thread or task.
//!
//! How a token comes to be, and where to read on:
//! - `handle`, `validate`: a request is checked and becomes a `sequence`
//! - `engine_loop`: the thread; takes sequences in, steps, sends events out
//! - `scheduler`: who computes how many tokens in a step, on blocks from `kv`
//! - `batch`: the step's tokens as flat lists, filled up to one of the `buckets` where graphs are captured
//! - `runner`: computes a batch on a device and chooses tokens, with parameters from `sampling`
//! - `models`: what each family computes, recorded as a `program` that the runner runs
//! - `load`: sizes, memory, weights
//! - [`process`]: ranks of a model that are processes of their own

mod batch;
mod buckets;
mod engine_loop;
mod error;
#[cfg(test)]
mod fake;
mod handle;
mod kv;
mod load;
mod models;
pub mod process;
mod program;
mod request;
mod runner;
mod sampling;
mod scheduler;
mod sequence;
mod shared;
mod validate;

pub use error::LoadError;
pub use handle::{EngineHandle, RequestHandle};
pub use load::{Dtype, LoadOptions, LoadProgress, Plan};
pub use program::ExchangeKind;
pub use request::{
    DecodeGraphs, EngineEvent, EngineInfo, EngineRequest, FinishReason, Observer, PromptOutput,
    RequestError, RequestStats, SamplingParams, StepStats, SubmitError, TokenLogprobs, TokenOutput,
};
