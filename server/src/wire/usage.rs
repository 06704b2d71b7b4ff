//! Token counts.

use serde::Serialize;

/// How many tokens a request took and gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompts; each prompt counts once, however many choices it has.
    pub prompt_tokens: usize,
    /// The sum of the two others.
    pub total_tokens: usize,
    /// Tokens generated, of all choices.
    pub completion_tokens: usize,
    /// Only if the server was told to give it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// Where the prompt's tokens came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Taken from the prefix cache.
    pub cached_tokens: usize,
}
