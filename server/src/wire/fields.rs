//! The fields that completions and chat completions share.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// Writes a request struct with its own fields first and the shared ones after, and the conversion
/// that takes the shared ones out.
///
/// A macro and not `#[serde(flatten)]`, which buffers the body and loses the place of an error.
macro_rules! generation_request {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// The model's name; may be left out.
            pub model: Option<String>,
            /// Sampling temperature, `[0, 2]`.
            pub temperature: Option<f32>,
            /// Nucleus mass, `(0, 1]`.
            pub top_p: Option<f32>,
            /// Keep the k likeliest; `0` and `-1` are off.
            pub top_k: Option<i64>,
            /// Drop tokens less likely than this share of the likeliest.
            pub min_p: Option<f32>,
            /// `[-2, 2]`.
            pub presence_penalty: Option<f32>,
            /// `[-2, 2]`.
            pub frequency_penalty: Option<f32>,
            /// Above 0; 1 is off.
            pub repetition_penalty: Option<f32>,
            /// Choices a prompt.
            pub n: Option<i64>,
            /// Candidates a prompt, of which the `n` best are returned.
            pub best_of: Option<i64>,
            /// Makes the draws reproducible.
            pub seed: Option<i64>,
            /// Strings to stop at.
            pub stop: Option<$crate::wire::Stop>,
            /// Ids to stop at.
            pub stop_token_ids: Option<Vec<u32>>,
            /// Return the stop string or stop token with the text.
            pub include_stop_str_in_output: Option<bool>,
            /// Go on past the model's end-of-sequence ids.
            pub ignore_eos: Option<bool>,
            /// Do not stop before this many tokens.
            pub min_tokens: Option<i64>,
            /// Most tokens to generate.
            pub max_tokens: Option<i64>,
            /// Id (as a string) to what is added to its logit, `[-100, 100]`.
            pub logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// Only these ids may be chosen.
            pub allowed_token_ids: Option<Vec<u32>>,
            /// Log-probabilities of the prompt's tokens and this many alternatives.
            pub prompt_logprobs: Option<i64>,
            /// Answer as a stream of events.
            pub stream: Option<bool>,
            /// What the stream holds beside the text.
            pub stream_options: Option<$crate::wire::StreamOptions>,
            /// Prepend what the tokenizer prepends (`<s>`).
            pub add_special_tokens: Option<bool>,
            /// Leave special tokens out of the text.
            pub skip_special_tokens: Option<bool>,
            /// Keep only the last tokens of the prompt; `-1` keeps what fits.
            pub truncate_prompt_tokens: Option<i64>,
            /// Return the ids of prompt and output.
            pub return_token_ids: Option<bool>,
            /// Write tokens in log-probabilities as `token_id:N`.
            pub return_tokens_as_token_ids: Option<bool>,
            /// Smaller goes first.
            pub priority: Option<i64>,
            /// Requests of different salts share no cached blocks.
            pub cache_salt: Option<String>,
            /// Goes into the response's id.
            pub request_id: Option<String>,
            /// Plain text, or a shape the text must have.
            pub response_format: Option<$crate::wire::ResponseFormat>,
            /// Refused when they mean something.
            pub suffix: Option<serde_json::Value>,
            /// See `suffix`.
            pub structured_outputs: Option<serde_json::Value>,
            /// See `suffix`.
            pub guided_json: Option<serde_json::Value>,
            /// See `suffix`.
            pub guided_regex: Option<serde_json::Value>,
            /// See `suffix`.
            pub guided_choice: Option<serde_json::Value>,
            /// See `suffix`.
            pub guided_grammar: Option<serde_json::Value>,
            /// See `suffix`.
            pub use_beam_search: Option<bool>,
            /// See `suffix`.
            pub bad_words: Option<Vec<String>>,
            /// See `suffix`.
            pub logits_processors: Option<serde_json::Value>,
            /// See `suffix`.
            pub kv_transfer_params: Option<serde_json::Value>,
            /// See `suffix`.
            pub repetition_detection: Option<serde_json::Value>,
        }

        impl $name {
            /// Takes the shared fields out.
            pub fn take_common(&mut self) -> $crate::wire::Common {
                $crate::wire::Common {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    repetition_penalty: self.repetition_penalty,
                    n: self.n,
                    best_of: self.best_of,
                    seed: self.seed,
                    stop: self.stop.take(),
                    stop_token_ids: self.stop_token_ids.take(),
                    include_stop_str_in_output: self.include_stop_str_in_output.unwrap_or(false),
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    min_tokens: self.min_tokens,
                    logit_bias: self.logit_bias.take(),
                    allowed_token_ids: self.allowed_token_ids.take(),
                    prompt_logprobs: self.prompt_logprobs,
                    stream: self.stream.unwrap_or(false),
                    stream_options: self.stream_options.take(),
                    skip_special_tokens: self.skip_special_tokens.unwrap_or(true),
                    truncate_prompt_tokens: self.truncate_prompt_tokens,
                    return_token_ids: self.return_token_ids.unwrap_or(false),
                    return_tokens_as_token_ids: self.return_tokens_as_token_ids.unwrap_or(false),
                    priority: self.priority,
                    cache_salt: self.cache_salt.take(),
                    request_id: self.request_id.take(),
                    response_format: self.response_format.take(),
                    unsupported: $crate::wire::Unsupported {
                        suffix: self.suffix.take(),
                        structured_outputs: self.structured_outputs.take(),
                        guided_json: self.guided_json.take(),
                        guided_regex: self.guided_regex.take(),
                        guided_choice: self.guided_choice.take(),
                        guided_grammar: self.guided_grammar.take(),
                        use_beam_search: self.use_beam_search.unwrap_or(false),
                        bad_words: self.bad_words.take().unwrap_or_default(),
                        logits_processors: self.logits_processors.take(),
                        kv_transfer_params: self.kv_transfer_params.take(),
                        repetition_detection: self.repetition_detection.take(),
                    },
                }
            }
        }
    };
}
pub(super) use generation_request;

/// The fields that completions and chat completions share, taken out of either by `take_common`.
/// Ranges are not checked yet.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "documented where they are read, on the requests")]
pub struct Common {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub n: Option<i64>,
    pub best_of: Option<i64>,
    pub seed: Option<i64>,
    pub stop: Option<Stop>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub include_stop_str_in_output: bool,
    pub ignore_eos: bool,
    pub min_tokens: Option<i64>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub allowed_token_ids: Option<Vec<u32>>,
    pub prompt_logprobs: Option<i64>,
    pub stream: bool,
    pub stream_options: Option<StreamOptions>,
    pub skip_special_tokens: bool,
    pub truncate_prompt_tokens: Option<i64>,
    pub return_token_ids: bool,
    pub return_tokens_as_token_ids: bool,
    pub priority: Option<i64>,
    pub cache_salt: Option<String>,
    pub request_id: Option<String>,
    pub response_format: Option<ResponseFormat>,
    pub unsupported: Unsupported,
}

/// Fields that are understood and refused.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the names are the API's")]
pub struct Unsupported {
    pub suffix: Option<Value>,
    pub structured_outputs: Option<Value>,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<Value>,
    pub guided_choice: Option<Value>,
    pub guided_grammar: Option<Value>,
    pub use_beam_search: bool,
    pub bad_words: Vec<String>,
    pub logits_processors: Option<Value>,
    pub kv_transfer_params: Option<Value>,
    pub repetition_detection: Option<Value>,
}

/// One stop string or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Stop {
    /// As a list.
    #[must_use]
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(stop) => vec![stop],
            Self::Many(stops) => stops,
        }
    }
}

/// What a stream holds beside the text.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// One more event with the usage, before `[DONE]`.
    pub include_usage: Option<bool>,
    /// With it, the usage so far in every event.
    pub continuous_usage_stats: Option<bool>,
}

/// The shape that is asked of the text.
#[derive(Clone, Debug, Deserialize)]
pub struct ResponseFormat {
    /// `text`, `json_object`, `json_schema` or `structural_tag`.
    pub r#type: String,
}
