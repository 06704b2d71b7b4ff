//! `POST /v1/completions`.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};

use super::{
    ApiError, App,
    answer::{Counter, Head, start},
    extract::JsonBody,
    logprobs, prompt,
    sse::{self, Chunks, Events},
};
use crate::{
    generation::{Outcome, Piece, Plan, PromptIds, check_length, num_logprobs, sampling},
    wire::{
        Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest,
        Prompt,
    },
};

/// `max_tokens` of a request that names none.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A checked request.
struct Job {
    plan: Plan,
    head: Head,
    /// Choices a prompt; the plan may have more candidates.
    n: usize,
    echo: bool,
    stream: bool,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let job = prepare(&app, &headers, request).await?;
    let run = start(&app, &job.plan)?;
    let counter = Counter::new(&app, &job.plan);
    if job.stream {
        return Ok(sse::respond(run, CompletionChunks::new(job, counter)));
    }
    let outcomes = run.collect().await?;
    Ok(Json(whole(&job, outcomes, counter)).into_response())
}

async fn prepare(
    app: &Arc<App>,
    headers: &HeaderMap,
    mut request: CompletionRequest,
) -> Result<Job, ApiError> {
    let arrival = Instant::now();
    let mut common = request.take_common();
    let model = app.model_name(request.model.as_deref())?;
    if request.prompt_embeds.is_some() {
        return Err(ApiError::unsupported("prompt_embeds", "give `prompt` as text or ids."));
    }
    let echo = request.echo.unwrap_or(false);
    let limits = app.limits();
    let mut sampling = sampling(&mut common, limits)?;
    let max_tokens = max_tokens(request.max_tokens, echo)?;
    let min_tokens = sampling.params.min_tokens;
    if let Some(max_tokens) = max_tokens.filter(|&max_tokens| min_tokens > max_tokens) {
        return Err(super::answer::min_above_max(min_tokens, max_tokens));
    }
    let logprobs = num_logprobs("logprobs", request.logprobs, limits)?;
    sampling.params.logprobs = logprobs.or((sampling.best_of > sampling.n).then_some(0));
    if echo && logprobs.is_some() {
        sampling.params.prompt_logprobs = sampling.params.prompt_logprobs.max(logprobs);
    }

    let truncate =
        prompt::truncation(common.truncate_prompt_tokens, max_tokens, limits.info.max_model_len)?;
    let add_special_tokens = request.add_special_tokens.unwrap_or(true);
    let mut prompts = prompts(app, request.prompt, add_special_tokens, truncate).await?;
    let otherwise = app.options.defaults.max_new_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    for prompt in &mut prompts {
        check_length(prompt, max_tokens, otherwise, limits.info)?;
    }

    let id = app.response_id("cmpl", common.request_id.take(), headers);
    let mut head = Head::new(app, id, model);
    head.logprobs = logprobs.is_some();
    head.return_token_ids = common.return_token_ids;
    head.tokens_as_ids |= common.return_tokens_as_token_ids;
    head.set_stream_options(common.stream_options.as_ref());
    head.prompt_logprobs = common.prompt_logprobs.is_some();
    let n = sampling.n;
    let plan = sampling.into_plan(prompts, &common, arrival);
    Ok(Job { plan, head, n, echo, stream: common.stream })
}

fn max_tokens(asked: Option<i64>, echo: bool) -> Result<Option<u32>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    match u32::try_from(asked) {
        Ok(0) if !echo => {
            let message = "max_tokens must be at least 1, got 0; with `echo` it may be 0.";
            Err(ApiError::invalid("max_tokens", message))
        }
        Ok(asked) => Ok(Some(asked)),
        Err(_) => Err(super::answer::bad_max_tokens("max_tokens", asked)),
    }
}

async fn prompts(
    app: &Arc<App>,
    prompt: Option<Prompt>,
    add_special_tokens: bool,
    truncate: Option<usize>,
) -> Result<Vec<PromptIds>, ApiError> {
    let from_ids = |ids| prompt::truncated(PromptIds { ids, text: None, max_tokens: 0 }, truncate);
    let texts = match prompt {
        None => return Err(ApiError::invalid("prompt", "Give a `prompt`.")),
        Some(Prompt::Ids(ids)) => return Ok(vec![from_ids(ids)]),
        Some(Prompt::IdLists(lists)) => return Ok(lists.into_iter().map(from_ids).collect()),
        Some(Prompt::Text(text)) => vec![text],
        Some(Prompt::Texts(texts)) => texts,
    };
    if texts.is_empty() {
        return Err(ApiError::invalid("prompt", "Give at least one prompt."));
    }
    let mut prompts = Vec::with_capacity(texts.len());
    for text in texts {
        prompts.push(prompt::from_text(app, text, add_special_tokens, truncate).await?);
    }
    Ok(prompts)
}

/// The prompt's text for `echo`.
fn echo_text(job: &Job, prompt: &PromptIds) -> String {
    match &prompt.text {
        Some(text) => text.clone(),
        None => job.head.app.text.decode(&prompt.ids, job.plan.skip_special_tokens),
    }
}

fn whole(job: &Job, outcomes: Vec<Outcome>, mut counter: Counter) -> Completion {
    for (index, outcome) in outcomes.iter().enumerate() {
        counter.add(index, outcome.prompt.cached_tokens, outcome.tokens.len());
    }
    let mut choices = Vec::with_capacity(job.plan.prompts.len() * job.n);
    let mut outcomes = outcomes.into_iter();
    for prompt in &job.plan.prompts {
        let mut candidates: Vec<Outcome> = outcomes.by_ref().take(job.plan.num_sequences).collect();
        if candidates.len() > job.n {
            candidates.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
            candidates.truncate(job.n);
        }
        for outcome in candidates {
            let index = choices.len();
            choices.push(choice(job, prompt, index, outcome));
        }
    }
    Completion {
        id: job.head.id.clone(),
        object: "text_completion",
        created: job.head.created,
        model: job.head.model.clone(),
        choices,
        usage: counter.usage(),
        system_fingerprint: job.head.fingerprint(),
    }
}

fn choice(job: &Job, prompt: &PromptIds, index: usize, outcome: Outcome) -> CompletionChoice {
    let head = &job.head;
    let prompt_logprobs = outcome.prompt.logprobs.as_deref();
    let shown = || {
        let mut lists = CompletionLogprobs::default();
        let mut offset = 0;
        if job.echo {
            offset = echo_logprobs(&mut lists, prompt, prompt_logprobs, head);
        }
        let tokens = outcome.tokens.iter().map(|token| (token.id, token.logprobs.as_ref()));
        logprobs::completion(&mut lists, tokens, offset, head.texts());
        lists
    };
    let logprobs = head.logprobs.then(shown);
    let mut text = if job.echo { echo_text(job, prompt) } else { String::new() };
    text.push_str(&outcome.text);
    let (finish_reason, stop_reason) = match outcome.finish {
        Some(finish) => (Some(finish.reason), finish.stop),
        None => (None, None),
    };
    let ids = || outcome.tokens.iter().map(|token| token.id).collect();
    CompletionChoice {
        index,
        text,
        logprobs,
        finish_reason,
        stop_reason,
        prompt_logprobs: prompt_logprobs
            .filter(|_| head.prompt_logprobs)
            .map(|logprobs| logprobs::prompt(&prompt.ids, logprobs, head.texts())),
        token_ids: head.return_token_ids.then(ids),
        prompt_token_ids: head.return_token_ids.then(|| prompt.ids.clone()),
    }
}

/// The echoed prompt's entries, the first of them without values. Returns where the text goes on.
fn echo_logprobs(
    lists: &mut CompletionLogprobs,
    prompt: &PromptIds,
    logprobs: Option<&[Option<halyard_engine::TokenLogprobs>]>,
    head: &Head,
) -> usize {
    let logprob = |i: usize| logprobs?.get(i)?.as_ref();
    let entries = prompt.ids.iter().enumerate().map(|(i, &id)| (id, logprob(i)));
    logprobs::completion(lists, entries, 0, head.texts())
}

/// The events of a stream.
struct CompletionChunks {
    job: Job,
    counter: Counter,
    choices: Vec<ChoiceState>,
}

#[derive(Clone, Debug, Default)]
struct ChoiceState {
    has_begun: bool,
    /// Where the next token begins, in code points.
    offset: usize,
}

impl CompletionChunks {
    fn new(job: Job, counter: Counter) -> Self {
        let num_choices = job.plan.prompts.len() * job.plan.num_sequences;
        Self { job, counter, choices: vec![ChoiceState::default(); num_choices] }
    }

    fn push(&self, choices: Vec<CompletionChoice>, with_usage: bool, events: &mut Events) {
        let head = &self.job.head;
        events.push(&CompletionChunk {
            id: head.id.clone(),
            object: "text_completion",
            created: head.created,
            model: head.model.clone(),
            choices,
            usage: with_usage.then(|| self.counter.usage()),
            system_fingerprint: head.fingerprint(),
        });
    }

    fn echo(&mut self, index: usize, piece: &Piece, events: &mut Events) {
        let head = &self.job.head;
        let prompt = &self.job.plan.prompts[index / self.job.plan.num_sequences];
        let mut lists = CompletionLogprobs::default();
        if head.logprobs {
            let logprobs = piece.prompt.as_ref().and_then(|prompt| prompt.logprobs.as_deref());
            self.choices[index].offset = echo_logprobs(&mut lists, prompt, logprobs, head);
        }
        let choice = CompletionChoice {
            index,
            text: echo_text(&self.job, prompt),
            logprobs: head.logprobs.then_some(lists),
            finish_reason: None,
            stop_reason: None,
            prompt_logprobs: None,
            token_ids: None,
            prompt_token_ids: head.return_token_ids.then(|| prompt.ids.clone()),
        };
        self.push(vec![choice], head.continuous_usage, events);
    }
}

impl Chunks for CompletionChunks {
    fn piece(&mut self, index: usize, piece: Piece, events: &mut Events) {
        self.counter.piece(index, &piece);
        let mut is_first = !self.choices[index].has_begun;
        if self.job.echo && is_first {
            self.choices[index].has_begun = true;
            self.echo(index, &piece, events);
            is_first = false;
        }
        if piece.token.is_none() && piece.finish.is_none() {
            return;
        }
        self.choices[index].has_begun = true;
        let head = &self.job.head;
        let mut shown = None;
        if head.logprobs {
            let mut lists = CompletionLogprobs::default();
            let tokens = piece.token.iter().map(|token| (token.id, token.logprobs.as_ref()));
            let offset = self.choices[index].offset;
            self.choices[index].offset =
                logprobs::completion(&mut lists, tokens, offset, head.texts());
            shown = Some(lists);
        }
        let prompt = &self.job.plan.prompts[index / self.job.plan.num_sequences];
        let (finish_reason, stop_reason) = match piece.finish {
            Some(finish) => (Some(finish.reason), finish.stop),
            None => (None, None),
        };
        let ids = || piece.token.iter().map(|token| token.id).collect();
        let choice = CompletionChoice {
            index,
            text: piece.text,
            logprobs: shown,
            finish_reason,
            stop_reason,
            prompt_logprobs: None,
            token_ids: head.return_token_ids.then(ids),
            prompt_token_ids: (is_first && head.return_token_ids).then(|| prompt.ids.clone()),
        };
        self.push(vec![choice], head.continuous_usage, events);
    }

    fn end(&mut self, events: &mut Events) {
        if self.job.head.include_usage {
            self.push(Vec::new(), true, events);
        }
    }
}
