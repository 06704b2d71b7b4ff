//! The engine: models, paged KV cache, scheduler, sampling.
//!
//! One OS thread a replica runs the loop; callers talk to it through an [`EngineHandle`], from any thread or task.

mod batch;
mod engine_loop;
mod error;
#[cfg(test)]
mod fake;
mod handle;
mod kv;
mod load;
mod models;
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
pub use request::{
    EngineEvent, EngineInfo, EngineRequest, FinishReason, Observer, PromptOutput, RequestError,
    RequestStats, SamplingParams, StepStats, SubmitError, TokenLogprobs, TokenOutput,
};
