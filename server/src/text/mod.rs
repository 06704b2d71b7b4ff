//! The seam to text: tokens to and from strings, and messages to prompts.

mod model;

use std::fmt;

use serde_json::{Map, Value};

pub use model::ModelText;

/// What the API needs of a tokenizer and a chat template. A trait so that the API can be driven by a
/// tokenizer of bytes.
pub trait Text: fmt::Debug + Send + Sync {
    /// The ids of a text.
    ///
    /// # Errors
    /// What the tokenizer cannot take, for people.
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String>;

    /// The text of ids; bytes that form no UTF-8 become U+FFFD.
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String;

    /// The bytes that an id stands for, special tokens included.
    fn token_bytes(&self, id: u32) -> Vec<u8>;

    /// Decodes ids one by one, as they come after a prompt.
    fn stream(&self, skip_special_tokens: bool) -> Box<dyn TextStream>;

    /// The prompt that a conversation makes.
    ///
    /// # Errors
    /// See [`ChatError`].
    fn chat(&self, chat: &Chat<'_>) -> Result<String, ChatError>;

    /// Longest piece of text, in bytes, that one token can stand for.
    fn longest_token_bytes(&self) -> usize;
}

/// Decodes ids one by one, never cutting a code point.
pub trait TextStream: Send {
    /// The text that this id completes; may be empty.
    fn push(&mut self, id: u32) -> String;
    /// What is left, with U+FFFD for unfinished bytes.
    fn finish(&mut self) -> String;
}

/// Why a conversation makes no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// The template does not take these messages, or there is no template.
    #[error("{0}")]
    Messages(String),
    /// The template itself is wrong.
    #[error("{0}")]
    Template(String),
}

/// A conversation to be rendered.
#[derive(Clone, Debug)]
pub struct Chat<'a> {
    /// A list of objects with `role`, `content` (a string or a list of parts of text) and whatever else
    /// the client gave.
    pub messages: &'a Value,
    /// Tools, for templates that list them.
    pub tools: Option<&'a Value>,
    /// Documents, for templates that list them.
    pub documents: Option<&'a Value>,
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Leave the last message open.
    pub continue_final_message: bool,
    /// Further variables.
    pub kwargs: Map<String, Value>,
}
