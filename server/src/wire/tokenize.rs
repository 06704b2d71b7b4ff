//! `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Message;

/// Text or messages to tokenize.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TokenizeRequest {
    /// The model's name; may be left out.
    pub model: Option<String>,
    /// A text.
    pub prompt: Option<String>,
    /// Or messages.
    pub messages: Option<Vec<Message>>,
    /// Prepend what the tokenizer prepends; default true for a text, false for messages.
    pub add_special_tokens: Option<bool>,
    /// Return the text of each token too.
    pub return_token_strs: Option<bool>,
    /// For messages: end with the opening of the assistant's turn.
    pub add_generation_prompt: Option<bool>,
    /// For messages: leave the last one open.
    pub continue_final_message: Option<bool>,
    /// For messages: passed to the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// For messages: tools the template may list.
    pub tools: Option<Value>,
}

/// The tokens.
#[derive(Clone, Debug, Serialize)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// Longest sequence the model takes.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, if asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Ids to turn into text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DetokenizeRequest {
    /// The model's name; may be left out.
    pub model: Option<String>,
    /// The ids.
    pub tokens: Vec<u32>,
}

/// The text.
#[derive(Clone, Debug, Serialize)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}
