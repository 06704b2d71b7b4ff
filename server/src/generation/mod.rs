//! From a checked request to pieces of text: submits a request's sequences to the engine, decodes
//! their tokens, finds stop strings, and merges them into one stream.

mod choice;
mod request;
mod run;

pub use choice::{Finish, Piece, Token};
pub use request::Defaults;
pub(crate) use request::{
    Limits, PromptIds, Sampling, check_length, is_known, num_logprobs, sampling, too_long,
};
pub(crate) use run::{Outcome, Plan, Run};
