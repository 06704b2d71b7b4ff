//! `/v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ChatLogprobs, FinishReason, PromptLogprobs, StopReason, Usage, fields::generation_request,
};

generation_request! {
    /// The body of `POST /v1/chat/completions`.
    pub struct ChatRequest {
        /// The conversation.
        pub messages: Option<Vec<Message>>,
        /// Wins over `max_tokens`.
        pub max_completion_tokens: Option<i64>,
        /// Report log-probabilities.
        pub logprobs: Option<bool>,
        /// Alternatives a token.
        pub top_logprobs: Option<i64>,
        /// Return the last message's text before the answer.
        pub echo: Option<bool>,
        /// End the prompt with the opening of the assistant's turn.
        pub add_generation_prompt: Option<bool>,
        /// Leave the last message open and continue it.
        pub continue_final_message: Option<bool>,
        /// Passed to the template.
        pub chat_template_kwargs: Option<Map<String, Value>>,
        /// Passed to the template.
        pub documents: Option<Value>,
        /// Passed to the template.
        pub reasoning_effort: Option<String>,
        /// A template for this request only; refused.
        pub chat_template: Option<String>,
        /// Refused unless absent.
        pub tools: Option<Value>,
        /// `none` is fine; the others are refused.
        pub tool_choice: Option<ToolChoice>,
        /// Refused: the older spelling of `tools`.
        pub functions: Option<Value>,
        /// Refused: the older spelling of `tool_choice`.
        pub function_call: Option<Value>,
        /// Refused: answers in sound.
        pub audio: Option<Value>,
        /// Refused if it asks for more than text.
        pub modalities: Option<Vec<String>>,
        /// Refused.
        pub web_search_options: Option<Value>,
    }
}

/// One message. Fields beyond these reach the template too.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, ...
    pub role: String,
    /// What was said.
    #[serde(default)]
    pub content: Option<Content>,
    /// The rest, for the template: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, ...
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A message's content.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a string, null or a list of parts such as {type: text, text}")]
pub enum Content {
    /// A string.
    Text(String),
    /// A list of parts.
    Parts(Vec<ContentPart>),
}

/// One part of a message's content.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a string or an object with a type")]
pub enum ContentPart {
    /// A bare string in the list.
    Text(String),
    /// `{type: text, text: ...}` or another type, which is refused.
    Typed {
        /// `text`, `image_url`, ...
        r#type: String,
        /// For `text`, `input_text`, `output_text`.
        text: Option<String>,
    },
}

/// Which tool must be called.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "none, auto, required or an object that names a function")]
pub enum ToolChoice {
    /// `none`, `auto`, `required`.
    Mode(String),
    /// A function by name.
    Function(Map<String, Value>),
}

/// The response of `/v1/chat/completions`.
#[derive(Clone, Debug, Serialize)]
pub struct ChatCompletion {
    /// `chatcmpl-...`
    pub id: String,
    /// `chat.completion`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name as asked for.
    pub model: String,
    /// `n` of them.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Changes when answers to a seed may change.
    pub system_fingerprint: String,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// One answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChoice {
    /// From 0.
    pub index: usize,
    /// The answer.
    pub message: ResponseMessage,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `abort`.
    pub finish_reason: Option<FinishReason>,
    /// What stopped it.
    pub stop_reason: Option<StopReason>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// An answer's message.
#[derive(Clone, Debug, Serialize)]
pub struct ResponseMessage {
    /// `assistant`
    pub role: String,
    /// The text.
    pub content: String,
}

/// One event of a stream.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChunk {
    /// The same in all.
    pub id: String,
    /// `chat.completion.chunk`
    pub object: &'static str,
    /// The same in all.
    pub created: u64,
    /// The model's name as asked for.
    pub model: String,
    /// One; none in the usage event.
    pub choices: Vec<ChatChunkChoice>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// See [`ChatCompletion`].
    pub system_fingerprint: String,
    /// In the first event of the first choice, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// A piece of one answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChatChunkChoice {
    /// From 0.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// If asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// None but in the last piece.
    pub finish_reason: Option<FinishReason>,
    /// Only in the last piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What is new in an answer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Delta {
    /// Only in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Text to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
