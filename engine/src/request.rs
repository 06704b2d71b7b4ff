//! What a caller asks of the engine and what it gets back.
//!
//! These types speak token ids only. Text (templates, tokenizing, detokenizing, stop strings) is the
//! caller's; the engine sees neither JSON nor UTF-8.

use std::time::{Duration, Instant};

/// A prompt to be continued.
#[derive(Clone, Debug)]
pub struct EngineRequest {
    /// The prompt, at least one id, every id below the vocabulary size.
    pub prompt: Vec<u32>,
    /// How to choose the tokens and when to stop.
    pub params: SamplingParams,
    /// Mixed into the prefix-cache hashes: requests with different salts never share cached blocks.
    pub cache_salt: Option<u64>,
    /// Smaller goes first; ties in order of arrival.
    pub priority: i32,
    /// When the caller received the request; queue time and time to first token count from here.
    pub arrival: Instant,
}

/// How tokens are chosen. The defaults are those of the OpenAI API: plain sampling at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// `0` is greedy; otherwise logits are divided by it. Range `[0, 2]` at the API, any `>= 0` here.
    pub temperature: f32,
    /// Keep the `top_k` largest logits; `0` keeps all.
    pub top_k: u32,
    /// Keep the shortest prefix of the sorted distribution with at least this mass; `(0, 1]`.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the likeliest; `[0, 1]`.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; `1` is off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens seen in the output; `0` is off.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output; `0` is off.
    pub frequency_penalty: f32,
    /// Makes the request's draws reproducible, whatever runs beside it. `None` draws a fresh seed.
    pub seed: Option<u64>,
    /// Added to the logits of these ids before penalties.
    pub logit_bias: Vec<(u32, f32)>,
    /// If set, only these ids may be chosen.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Upper bound of generated tokens; the engine also stops at its `max_model_len`. `0` generates none
    /// and is of use only with `prompt_logprobs`.
    pub max_tokens: u32,
    /// No end-of-sequence or stop id is chosen before this many tokens.
    pub min_tokens: u32,
    /// Stop after choosing one of these, beside the model's own end-of-sequence ids.
    pub stop_token_ids: Vec<u32>,
    /// Do not stop at the model's end-of-sequence ids.
    pub ignore_eos: bool,
    /// `Some(k)`: report each chosen token's log-probability and the `k` likeliest alternatives.
    pub logprobs: Option<u32>,
    /// The same for each prompt token.
    pub prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            max_tokens: 16,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Some penalty depends on the tokens so far.
    pub(crate) fn has_penalties(&self) -> bool {
        let off = |value: f32, neutral: f32| (value - neutral).abs() == 0.0;
        !(off(self.repetition_penalty, 1.0)
            && off(self.presence_penalty, 0.0)
            && off(self.frequency_penalty, 0.0))
    }
}

/// One thing that happened to a request, in order: at most one `Prompt`, then `Token`s, then exactly
/// one `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// The prompt has been computed.
    Prompt(PromptOutput),
    /// A token was chosen. A stop id or end-of-sequence id is reported too, before `Finished`.
    Token(TokenOutput),
    /// The request ended as its parameters say.
    Finished(FinishReason),
    /// The request ended by an error that is not the caller's.
    Failed(RequestError),
}

/// What is known once the prompt has been computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptOutput {
    /// How many prompt tokens were taken from the prefix cache.
    pub cached_tokens: usize,
    /// One entry a prompt token, the first `None`, if `prompt_logprobs` was asked for.
    pub logprobs: Option<Vec<Option<TokenLogprobs>>>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOutput {
    /// The token's id.
    pub id: u32,
    /// Present if `logprobs` was asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log-probabilities (natural, of the model's distribution before penalties and temperature) at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that was chosen (or stands in the prompt).
    pub logprob: f32,
    /// The likeliest ids with theirs, best first, as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model chose an end-of-sequence id.
    EndOfSequence,
    /// The model chose this one of the request's `stop_token_ids`.
    StopToken(u32),
    /// `max_tokens` or the model's context was reached.
    Length,
    /// The engine is shutting down, or the caller let go of the request.
    Aborted,
}

/// An error while a request ran.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A kernel, copy or collective failed on the device.
    #[error("the device failed while computing this request: {0}")]
    Device(String),
    /// The engine's loop has ended.
    #[error("the engine has stopped: {0}")]
    EngineDead(String),
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// A parameter is outside what the engine can do.
    #[error("{message}")]
    Invalid {
        /// The name of the parameter, as the OpenAI API spells it.
        param: &'static str,
        /// What was given and what is allowed.
        message: String,
    },
    /// The waiting queue is at its bound.
    #[error("the engine is currently busy: {waiting} requests are waiting, the limit is {limit}")]
    QueueFull {
        /// Requests now waiting.
        waiting: usize,
        /// The bound.
        limit: usize,
    },
    /// The engine is draining and takes no new requests.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine's loop has ended.
    #[error("the engine has stopped: {0}")]
    EngineDead(String),
}

/// Fixed facts about a loaded engine.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// Longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// Rows of the output layer; ids at or above are invalid.
    pub vocab_size: usize,
    /// Ids that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Tokens a KV block.
    pub block_size: usize,
    /// KV blocks in the pool.
    pub num_blocks: usize,
    /// Sequences a step, at most.
    pub max_num_seqs: usize,
    /// Tokens a step, at most.
    pub max_num_batched_tokens: usize,
    /// Whether prefixes are shared.
    pub prefix_caching: bool,
    /// Most alternatives a request may ask for in `logprobs`.
    pub max_logprobs: u32,
    /// Compute type, as `--dtype` spells it.
    pub dtype: String,
    /// The devices, for people: `cpu:0 (AMD EPYC, 2 threads, avx512-bf16)`.
    pub device: String,
    /// Devices that share the model.
    pub tensor_parallel_size: usize,
    /// Bytes of weights on all devices.
    pub weight_bytes: u64,
    /// Bytes of the KV pool on all devices.
    pub kv_bytes: u64,
    /// What a decode step costs beside arithmetic: all its launches, through the boundary, over no tokens. `None` unless
    /// [`LoadOptions::measure_dispatch`](crate::LoadOptions::measure_dispatch) asked for it, and where graphs take the launches' place.
    pub dispatch: Option<Duration>,
    /// Whether decode steps are replayed from graphs.
    pub graphs: DecodeGraphs,
}

/// Whether decode steps are replayed from graphs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeGraphs {
    /// They are.
    Captured {
        /// The numbers of sequences that steps are filled up to.
        sizes: Vec<usize>,
        /// Bytes set aside for them on all devices.
        bytes: u64,
    },
    /// Their kernels are launched one by one; why.
    Off(String),
}

/// What one step of the engine loop did. Sent to the [`Observer`] after each step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStats {
    /// Sequences in the running set.
    pub running: usize,
    /// Sequences waiting for admission.
    pub waiting: usize,
    /// Share of KV blocks in use, `0..=1`; blocks kept only for the prefix cache count as free.
    pub kv_usage: f64,
    /// Prompt tokens computed in this step.
    pub prompt_tokens: usize,
    /// Tokens generated in this step.
    pub generated_tokens: usize,
    /// Sequences preempted in this step.
    pub preemptions: usize,
    /// Prompt tokens looked up in the prefix cache in this step.
    pub prefix_queries: usize,
    /// Of these, found.
    pub prefix_hits: usize,
    /// Captured graphs launched in this step: two in a decode step that was replayed.
    pub graphs: usize,
}

/// The life of one request. Sent to the [`Observer`] when it ends.
#[derive(Clone, Debug)]
pub struct RequestStats {
    /// Why it ended; `None` if it failed.
    pub finish: Option<FinishReason>,
    /// Prompt length in tokens.
    pub prompt_tokens: usize,
    /// Of these, taken from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// `max_tokens` as asked for.
    pub max_tokens: u32,
    /// How often it was preempted.
    pub preemptions: usize,
    /// Arrival to first being scheduled.
    pub queue_time: Duration,
    /// First scheduled to first token.
    pub prefill_time: Duration,
    /// First token to last token.
    pub decode_time: Duration,
    /// Arrival to end.
    pub e2e_time: Duration,
}

/// Receives what the engine loop measures. Called on the engine's thread: must be quick and never block.
pub trait Observer: Send + 'static {
    /// After each step.
    fn step(&mut self, _stats: &StepStats) {}
    /// A request got its first token, this long after its arrival.
    fn first_token(&mut self, _since_arrival: Duration) {}
    /// A request got a further token, this long after its previous one.
    fn next_token(&mut self, _since_previous: Duration) {}
    /// A request ended.
    fn request_finished(&mut self, _stats: &RequestStats) {}
}

/// Observes nothing.
impl Observer for () {}
