//! What goes over the wire: requests and responses of the HTTP API, as serde types and nothing else.
//!
//! Requests take `null` for "not given" and ignore fields they do not know. Fields that are known but
//! not supported are kept as raw values, so that the handlers can refuse them by name.

mod chat;
mod completion;
mod error;
mod fields;
mod logprobs;
mod model;
mod tokenize;
mod usage;

pub use chat::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatRequest, Content, ContentPart,
    Delta, Message, ResponseMessage, ToolChoice,
};
pub use completion::{
    Completion, CompletionChoice, CompletionChunk, CompletionChunkChoice, CompletionRequest, Prompt,
};
pub use error::{ErrorBody, ErrorObject};
pub use fields::{Common, ResponseFormat, Stop, StreamOptions, Unsupported};
pub use logprobs::{
    ChatLogprob, ChatLogprobs, CompletionLogprobs, Ordered, PromptLogprob, PromptLogprobs,
    TopLogprob,
};
pub use model::{ModelCard, ModelList, ModelPermission};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
pub use usage::{PromptTokensDetails, Usage};

use serde::Serialize;

/// Why a choice ended or did not begin, as the API spells it; see
/// [`CompletionChoice::finish_reason`].
pub type FinishReason = &'static str;

/// The stop string or stop token id that ended a choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of the request's `stop` strings.
    Text(String),
    /// One of the request's `stop_token_ids`.
    Id(u32),
}

#[cfg(test)]
mod tests;
