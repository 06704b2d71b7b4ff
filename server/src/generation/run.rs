//! The sequences of one API request, from submission to their last piece.

use std::{sync::Arc, time::Instant};

use futures_util::{
    Stream, StreamExt,
    stream::{self, SelectAll},
};
use halyard_engine::{EngineRequest, PromptOutput, RequestError, SamplingParams, SubmitError};
use halyard_text::StopMatcher;

use super::{
    PromptIds, Sampling,
    choice::{Choice, Finish, Piece, Token},
};
use crate::{engine::Engine, metrics::Metrics, text::Text, wire::Common};

/// What to submit for one API request.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The prompts.
    pub(crate) prompts: Vec<PromptIds>,
    /// Sequences a prompt. The i-th draws with `seed + i`.
    pub(crate) num_sequences: usize,
    /// For every sequence; `max_tokens` is set by prompt, from `max_tokens` below.
    pub(crate) params: SamplingParams,
    /// Strings that end a sequence.
    pub(crate) stops: StopMatcher,
    /// A stop token's text is part of the text.
    pub(crate) include_stop: bool,
    /// Special tokens are no part of the text.
    pub(crate) skip_special_tokens: bool,
    /// See [`EngineRequest`].
    pub(crate) cache_salt: Option<u64>,
    /// See [`EngineRequest`].
    pub(crate) priority: i32,
    /// See [`EngineRequest`].
    pub(crate) arrival: Instant,
}

/// A sequence's pieces with its number: `prompt · num_sequences + i`.
type Pieces = std::pin::Pin<Box<dyn Stream<Item = (usize, Result<Piece, RequestError>)> + Send>>;

/// The sequences of one API request, merged. Dropping it aborts them.
pub(crate) struct Run {
    pieces: SelectAll<Pieces>,
    num_sequences: usize,
}

/// A whole sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) prompt: PromptOutput,
    pub(crate) finish: Option<Finish>,
}

impl Outcome {
    /// Mean log-probability a token, if they were asked for.
    pub(crate) fn mean_logprob(&self) -> f64 {
        let sum: f64 = self
            .tokens
            .iter()
            .filter_map(|token| Some(f64::from(token.logprobs.as_ref()?.logprob)))
            .sum();
        let num_tokens = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX).max(1);
        sum / f64::from(num_tokens)
    }
}

impl Run {
    /// Submits every sequence, or none.
    ///
    /// # Errors
    /// The first refusal; the sequences before it are aborted.
    pub(crate) fn start(
        plan: &Plan,
        engine: &dyn Engine,
        text: &dyn Text,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, SubmitError> {
        let info = engine.info();
        let mut stop_ids = plan.params.stop_token_ids.clone();
        if !plan.params.ignore_eos {
            stop_ids.extend_from_slice(&info.eos_token_ids);
        }
        let stop_ids: Arc<[u32]> = stop_ids.into();
        let mut choices = Vec::with_capacity(plan.prompts.len() * plan.num_sequences);
        for prompt in &plan.prompts {
            for i in 0..plan.num_sequences {
                let request = plan.request(prompt, i);
                let max_tokens = request.params.max_tokens;
                choices.push(Choice {
                    events: Some(engine.submit(request)?),
                    decoder: text.stream(plan.skip_special_tokens),
                    stops: plan.stops.clone(),
                    metrics: Arc::clone(metrics),
                    stop_ids: Arc::clone(&stop_ids),
                    max_tokens,
                    min_tokens: plan.params.min_tokens,
                    include_stop: plan.include_stop,
                    num_tokens: 0,
                    pending: None,
                });
            }
        }
        metrics.accepted(plan.num_sequences);
        let num_sequences = choices.len();
        let pieces = choices.into_iter().enumerate().map(|(index, choice)| pieces(index, choice));
        Ok(Self { pieces: stream::select_all(pieces), num_sequences })
    }

    /// The next piece of any sequence; `None` when all have ended.
    pub(crate) async fn next(&mut self) -> Option<(usize, Result<Piece, RequestError>)> {
        self.pieces.next().await
    }

    /// All sequences, by number, when all have ended.
    ///
    /// # Errors
    /// The first failure; the other sequences are aborted.
    pub(crate) async fn collect(mut self) -> Result<Vec<Outcome>, RequestError> {
        let mut outcomes = vec![Outcome::default(); self.num_sequences];
        while let Some((index, piece)) = self.next().await {
            let (outcome, piece) = (&mut outcomes[index], piece?);
            outcome.text.push_str(&piece.text);
            outcome.tokens.extend(piece.token);
            if let Some(prompt) = piece.prompt {
                outcome.prompt = prompt;
            }
            outcome.finish = piece.finish.or(outcome.finish.take());
        }
        Ok(outcomes)
    }
}

impl Sampling {
    /// The work for these prompts.
    pub(crate) fn into_plan(
        self,
        prompts: Vec<PromptIds>,
        common: &Common,
        arrival: Instant,
    ) -> Plan {
        Plan {
            prompts,
            num_sequences: self.best_of,
            params: self.params,
            stops: self.stops,
            include_stop: common.include_stop_str_in_output,
            skip_special_tokens: common.skip_special_tokens,
            cache_salt: self.cache_salt,
            priority: self.priority,
            arrival,
        }
    }
}

impl Plan {
    fn request(&self, prompt: &PromptIds, i: usize) -> EngineRequest {
        let mut params = self.params.clone();
        params.max_tokens = prompt.max_tokens;
        params.seed = params.seed.map(|seed| seed.wrapping_add(u64::try_from(i).unwrap_or(0)));
        EngineRequest {
            prompt: prompt.ids.clone(),
            params,
            cache_salt: self.cache_salt,
            priority: self.priority,
            arrival: self.arrival,
        }
    }
}

fn pieces(index: usize, choice: Choice) -> Pieces {
    let next = async |mut choice: Choice| {
        let piece = choice.next().await?;
        Some((piece, choice))
    };
    Box::pin(stream::unfold(choice, next).map(move |piece| (index, piece)))
}
