//! Log-probabilities, in the three shapes the API has for them.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Chat: one entry a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// The tokens.
    pub content: Vec<ChatLogprob>,
}

/// Chat: one token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatLogprob {
    /// Its text.
    pub token: String,
    /// Its natural log-probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at this place, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// Chat: one alternative.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Its natural log-probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Completions: four lists of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where each token begins in the choice's text, in code points.
    pub text_offset: Vec<usize>,
    /// `null` for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// The likeliest tokens at each place and the chosen one.
    pub top_logprobs: Vec<Option<Ordered>>,
}

/// Texts and their log-probabilities: a JSON object that keeps its order, best first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ordered(pub Vec<(String, f32)>);

impl Serialize for Ordered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// One entry a prompt token, by id; `null` for the first.
pub type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptLogprob>>>;

/// One candidate at a prompt position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptLogprob {
    /// Its natural log-probability.
    pub logprob: f32,
    /// Its place among the likeliest, from 1; `null` beyond those that were asked for.
    pub rank: Option<usize>,
    /// Its text.
    pub decoded_token: String,
}
