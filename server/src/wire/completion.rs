//! `/v1/completions`.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, SeqAccess, Visitor},
};

use super::{
    CompletionLogprobs, FinishReason, PromptLogprobs, StopReason, Usage, fields::generation_request,
};

generation_request! {
    /// The body of `POST /v1/completions`.
    pub struct CompletionRequest {
        /// What to continue.
        pub prompt: Option<Prompt>,
        /// Alternatives a token to report the log-probabilities of.
        pub logprobs: Option<i64>,
        /// Return the prompt before the text.
        pub echo: Option<bool>,
        /// Refused: prompts as tensors.
        pub prompt_embeds: Option<serde_json::Value>,
    }
}

/// One prompt or several, as text or as ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A string.
    Text(String),
    /// A list of strings; also the empty list.
    Texts(Vec<String>),
    /// A list of ids.
    Ids(Vec<u32>),
    /// A list of lists of ids.
    IdLists(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptVisitor)
    }
}

/// By hand and not `untagged`: that would buffer every id as a value of many times its size.
struct PromptVisitor;

/// The first element of a list, which says what the others are.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a string, a token id (0 to 4294967295) or a list of token ids")]
enum First {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Visitor<'de> for PromptVisitor {
    type Value = Prompt;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of strings, a list of token ids or a list of such lists")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompt, E> {
        Ok(Prompt::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Prompt, E> {
        Ok(Prompt::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompt, A::Error> {
        Ok(match seq.next_element()? {
            None => Prompt::Texts(Vec::new()),
            Some(First::Text(first)) => Prompt::Texts(rest(first, seq)?),
            Some(First::Id(first)) => Prompt::Ids(rest(first, seq)?),
            Some(First::Ids(first)) => Prompt::IdLists(rest(first, seq)?),
        })
    }
}

fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    first: T,
    mut seq: A,
) -> Result<Vec<T>, A::Error> {
    let mut all = vec![first];
    while let Some(next) = seq.next_element()? {
        all.push(next);
    }
    Ok(all)
}

/// The response of `/v1/completions`.
#[derive(Clone, Debug, Serialize)]
pub struct Completion {
    /// `cmpl-...`
    pub id: String,
    /// `text_completion`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name as asked for.
    pub model: String,
    /// By prompt, then by choice.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Changes when answers to a seed may change.
    pub system_fingerprint: String,
}

/// One continuation of one prompt.
#[derive(Clone, Debug, Serialize)]
pub struct CompletionChoice {
    /// `prompt · n + choice`
    pub index: usize,
    /// The text.
    pub text: String,
    /// If asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length`, `abort`, or none yet.
    pub finish_reason: Option<FinishReason>,
    /// What stopped it.
    pub stop_reason: Option<StopReason>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// One event of a stream.
#[derive(Clone, Debug, Serialize)]
pub struct CompletionChunk {
    /// The same in all.
    pub id: String,
    /// `text_completion`
    pub object: &'static str,
    /// The same in all.
    pub created: u64,
    /// The model's name as asked for.
    pub model: String,
    /// One; none in the usage event.
    pub choices: Vec<CompletionChunkChoice>,
    /// If asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// See [`Completion`].
    pub system_fingerprint: String,
}

/// A piece of one choice; the same shape as the whole.
pub type CompletionChunkChoice = CompletionChoice;
