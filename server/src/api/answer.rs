//! What the answers of both generating endpoints have in common.

use std::sync::Arc;

use super::{ApiError, App, logprobs::TokenTexts, state};
use crate::{
    generation::{Piece, Plan, Run},
    wire::{PromptTokensDetails, StreamOptions, Usage},
};

/// The fields that are the same in all parts of an answer, and what else is to be shown.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the request")]
pub(super) struct Head {
    pub(super) app: Arc<App>,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// Log-probabilities were asked for.
    pub(super) logprobs: bool,
    /// Those of the prompt too.
    pub(super) prompt_logprobs: bool,
    pub(super) return_token_ids: bool,
    pub(super) tokens_as_ids: bool,
    /// A stream ends with its usage.
    pub(super) include_usage: bool,
    /// And has it in each event.
    pub(super) continuous_usage: bool,
}

impl Head {
    pub(super) fn new(app: &Arc<App>, id: String, model: String) -> Self {
        Self {
            app: Arc::clone(app),
            id,
            created: state::now(),
            model,
            logprobs: false,
            prompt_logprobs: false,
            return_token_ids: false,
            tokens_as_ids: app.options.tokens_as_ids,
            include_usage: app.options.force_include_usage,
            continuous_usage: false,
        }
    }

    pub(super) fn set_stream_options(&mut self, options: Option<&StreamOptions>) {
        let Some(options) = options else { return };
        self.include_usage |= options.include_usage.unwrap_or(false);
        self.continuous_usage =
            self.include_usage && options.continuous_usage_stats.unwrap_or(false);
    }

    pub(super) fn texts(&self) -> TokenTexts<'_> {
        TokenTexts::new(self.app.text.as_ref(), self.tokens_as_ids)
    }

    pub(super) fn fingerprint(&self) -> String {
        self.app.fingerprint.clone()
    }
}

/// Counts tokens as they come.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
    sequences_per_prompt: usize,
    details: bool,
}

impl Counter {
    pub(super) fn new(app: &App, plan: &Plan) -> Self {
        Self {
            prompt_tokens: plan.prompts.iter().map(|prompt| prompt.ids.len()).sum(),
            completion_tokens: 0,
            cached_tokens: 0,
            sequences_per_prompt: plan.num_sequences,
            details: app.options.prompt_tokens_details,
        }
    }

    pub(super) fn piece(&mut self, index: usize, piece: &Piece) {
        self.completion_tokens += usize::from(piece.token.is_some());
        if let Some(prompt) = &piece.prompt {
            self.add(index, prompt.cached_tokens, 0);
        }
    }

    /// Each prompt counts once, by its first sequence: the others find it cached.
    pub(super) fn add(&mut self, index: usize, cached_tokens: usize, completion_tokens: usize) {
        if index.is_multiple_of(self.sequences_per_prompt) {
            self.cached_tokens += cached_tokens;
        }
        self.completion_tokens += completion_tokens;
    }

    pub(super) fn usage(&self) -> Usage {
        let details = || PromptTokensDetails { cached_tokens: self.cached_tokens };
        Usage {
            prompt_tokens: self.prompt_tokens,
            total_tokens: self.prompt_tokens + self.completion_tokens,
            completion_tokens: self.completion_tokens,
            prompt_tokens_details: self.details.then(details),
        }
    }
}

/// Submits a plan.
pub(super) fn start(app: &App, plan: &Plan) -> Result<Run, ApiError> {
    let num_sequences = plan.prompts.len().saturating_mul(plan.num_sequences);
    if num_sequences > MAX_SEQUENCES {
        let message = format!(
            "A request may have {MAX_SEQUENCES} choices, at most; prompts times n are {num_sequences}."
        );
        return Err(ApiError::invalid("n", message));
    }
    if app.options.log_requests {
        for prompt in &plan.prompts {
            let (num_tokens, n) = (prompt.ids.len(), plan.num_sequences);
            tracing::info!(num_tokens, n, max_tokens = prompt.max_tokens, params = ?plan.params, "submitted");
        }
    }
    Run::start(plan, app.engine.as_ref(), app.text.as_ref(), &app.metrics).map_err(|error| {
        if matches!(error, halyard_engine::SubmitError::QueueFull { .. }) {
            app.metrics.rejected();
        }
        ApiError::from(error)
    })
}

/// Choices of one request, at most.
const MAX_SEQUENCES: usize = 4096;

/// A `max_tokens` that is no number of tokens.
pub(super) fn bad_max_tokens(name: &str, got: i64) -> ApiError {
    let message = if got > 0 {
        format!("{name} of {got} is more than any model takes.")
    } else {
        format!("{name} must be at least 1, got {got}.")
    };
    ApiError::invalid(name, message)
}

/// A `min_tokens` that `max_tokens` rules out.
pub(super) fn min_above_max(min_tokens: u32, max_tokens: u32) -> ApiError {
    let message = format!(
        "min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
    );
    ApiError::invalid("min_tokens", message)
}
