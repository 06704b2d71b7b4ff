//! `POST /v1/chat/completions`.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    ApiError, App,
    answer::{self, Counter, Head, start},
    conversation::{self, ChatOptions},
    extract::JsonBody,
    logprobs, prompt,
    sse::{self, Chunks, Events},
};
use crate::{
    generation::{Outcome, Piece, Plan, check_length, num_logprobs, sampling},
    wire::{
        ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatRequest, Delta,
        ResponseMessage, ToolChoice,
    },
};

/// A checked request.
struct Job {
    plan: Plan,
    head: Head,
    /// Choices; the plan may have more candidates.
    n: usize,
    role: String,
    /// Text before each answer.
    echo: String,
    stream: bool,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<ChatRequest>,
) -> Result<Response, ApiError> {
    let job = prepare(&app, &headers, request).await?;
    let run = start(&app, &job.plan)?;
    let counter = Counter::new(&app, &job.plan);
    if job.stream {
        return Ok(sse::respond(run, ChatChunks::new(job, counter)));
    }
    let outcomes = run.collect().await?;
    Ok(Json(whole(&job, outcomes, counter)).into_response())
}

async fn prepare(
    app: &Arc<App>,
    headers: &HeaderMap,
    mut request: ChatRequest,
) -> Result<Job, ApiError> {
    let arrival = Instant::now();
    let mut common = request.take_common();
    let model = app.model_name(request.model.as_deref())?;
    let tools = check_tools(&mut request)?;
    refuse_unsupported(&request)?;
    let limits = app.limits();
    let mut sampling = sampling(&mut common, limits)?;
    let max_tokens = max_tokens(&request)?;
    let min_tokens = sampling.params.min_tokens;
    if let Some(max_tokens) = max_tokens.filter(|&max_tokens| min_tokens > max_tokens) {
        return Err(answer::min_above_max(min_tokens, max_tokens));
    }
    let logprobs = top_logprobs(&request, limits)?;
    sampling.params.logprobs = logprobs.or((sampling.best_of > sampling.n).then_some(0));

    let mut kwargs = request.chat_template_kwargs.take().unwrap_or_default();
    if let Some(effort) = request.reasoning_effort.take() {
        kwargs.entry("reasoning_effort").or_insert(effort.into());
    }
    let options = ChatOptions {
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        kwargs,
        tools,
        documents: request.documents.take(),
    };
    let messages = request.messages.take();
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "Give `messages`."))?;
    let rendered = conversation::render(app, messages, options)?;
    let truncate =
        prompt::truncation(common.truncate_prompt_tokens, max_tokens, limits.info.max_model_len)?;
    // Templates write the special tokens themselves.
    let add_special_tokens = request.add_special_tokens.unwrap_or(false);
    let mut prompt = prompt::from_text(app, rendered.prompt, add_special_tokens, truncate).await?;
    let otherwise = app.options.defaults.max_new_tokens.unwrap_or(u32::MAX);
    check_length(&mut prompt, max_tokens, otherwise, limits.info)?;

    let id = app.response_id("chatcmpl", common.request_id.take(), headers);
    let mut head = Head::new(app, id, model);
    head.logprobs = logprobs.is_some();
    head.return_token_ids = common.return_token_ids;
    head.tokens_as_ids |= common.return_tokens_as_token_ids;
    head.set_stream_options(common.stream_options.as_ref());
    head.prompt_logprobs = common.prompt_logprobs.is_some();
    let echo = rendered.last.filter(|_| request.echo.unwrap_or(false)).unwrap_or_default();
    let n = sampling.n;
    let plan = sampling.into_plan(vec![prompt], &common, arrival);
    Ok(Job { plan, head, n, role: rendered.role, echo, stream: common.stream })
}

fn max_tokens(request: &ChatRequest) -> Result<Option<u32>, ApiError> {
    let (name, asked) = match (request.max_completion_tokens, request.max_tokens) {
        (Some(asked), _) => ("max_completion_tokens", asked),
        (None, Some(asked)) => ("max_tokens", asked),
        (None, None) => return Ok(None),
    };
    match u32::try_from(asked) {
        Ok(asked) if asked > 0 => Ok(Some(asked)),
        _ => Err(answer::bad_max_tokens(name, asked)),
    }
}

fn top_logprobs(
    request: &ChatRequest,
    limits: crate::generation::Limits<'_>,
) -> Result<Option<u32>, ApiError> {
    let top = num_logprobs("top_logprobs", request.top_logprobs, limits)?;
    match (request.logprobs.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, Some(top)) if top > 0 => {
            let message = "when using `top_logprobs`, `logprobs` must be set to true.";
            Err(ApiError::invalid("top_logprobs", message))
        }
        (false, _) => Ok(None),
    }
}

/// The tools the template may list: none are called, so they need `tool_choice: none`.
fn check_tools(request: &mut ChatRequest) -> Result<Option<Value>, ApiError> {
    let is_none = match &request.tool_choice {
        None => false,
        Some(ToolChoice::Mode(mode)) if mode == "none" => true,
        Some(_) if request.tools.is_none() => {
            let message = "When using `tool_choice`, `tools` must be set.";
            return Err(ApiError::invalid("tool_choice", message));
        }
        Some(_) => false,
    };
    match request.tools.take() {
        Some(Value::Array(tools)) if tools.is_empty() => {
            Err(ApiError::invalid("tools", "tools must not be an empty list."))
        }
        Some(tools @ Value::Array(_)) if is_none => Ok(Some(tools)),
        Some(Value::Array(_)) => {
            Err(ApiError::unsupported("tools", "with `tool_choice` \"none\" they are only shown."))
        }
        Some(_) => Err(ApiError::invalid("tools", "tools must be a list.")),
        None => Ok(None),
    }
}

fn refuse_unsupported(request: &ChatRequest) -> Result<(), ApiError> {
    let calls = request.function_call.as_ref().is_some_and(|call| call != "none");
    let beyond_text = |modalities: &Vec<String>| modalities.iter().any(|m| m != "text");
    for (name, is_given, supported) in [
        ("functions", request.functions.is_some() || calls, "the answer is text."),
        ("chat_template", request.chat_template.is_some(), "the server's own is used."),
        ("audio", request.audio.is_some(), "the answer is text."),
        (
            "modalities",
            request.modalities.as_ref().is_some_and(beyond_text),
            "it may be [\"text\"].",
        ),
        ("web_search_options", request.web_search_options.is_some(), "leave it out."),
    ] {
        if is_given {
            return Err(ApiError::unsupported(name, supported));
        }
    }
    Ok(())
}

fn whole(job: &Job, mut outcomes: Vec<Outcome>, mut counter: Counter) -> ChatCompletion {
    for (index, outcome) in outcomes.iter().enumerate() {
        counter.add(index, outcome.prompt.cached_tokens, outcome.tokens.len());
    }
    let head = &job.head;
    let prompt = &job.plan.prompts[0];
    let prompt_logprobs = outcomes
        .first()
        .filter(|_| head.prompt_logprobs)
        .and_then(|outcome| outcome.prompt.logprobs.as_deref())
        .map(|logprobs| logprobs::prompt(&prompt.ids, logprobs, head.texts()));
    if outcomes.len() > job.n {
        outcomes.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
        outcomes.truncate(job.n);
    }
    let choices = outcomes.into_iter().enumerate();
    ChatCompletion {
        id: head.id.clone(),
        object: "chat.completion",
        created: head.created,
        model: head.model.clone(),
        choices: choices.map(|(index, outcome)| choice(job, index, outcome)).collect(),
        usage: counter.usage(),
        system_fingerprint: head.fingerprint(),
        prompt_logprobs,
        prompt_token_ids: head.return_token_ids.then(|| prompt.ids.clone()),
    }
}

fn choice(job: &Job, index: usize, outcome: Outcome) -> ChatChoice {
    let head = &job.head;
    let (finish_reason, stop_reason) = match outcome.finish {
        Some(finish) => (Some(finish.reason), finish.stop),
        None => (None, None),
    };
    let ids = || outcome.tokens.iter().map(|token| token.id).collect();
    ChatChoice {
        index,
        message: ResponseMessage {
            role: job.role.clone(),
            content: format!("{}{}", job.echo, outcome.text),
        },
        logprobs: head.logprobs.then(|| logprobs::chat(&outcome.tokens, head.texts())),
        finish_reason,
        stop_reason,
        token_ids: head.return_token_ids.then(ids),
    }
}

/// The events of a stream.
struct ChatChunks {
    job: Job,
    counter: Counter,
    has_begun: Vec<bool>,
}

impl ChatChunks {
    fn new(job: Job, counter: Counter) -> Self {
        let has_begun = vec![false; job.plan.num_sequences];
        Self { job, counter, has_begun }
    }

    fn push(&self, choices: Vec<ChatChunkChoice>, ids: Option<Vec<u32>>, events: &mut Events) {
        let head = &self.job.head;
        let with_usage = head.continuous_usage || choices.is_empty();
        events.push(&ChatChunk {
            id: head.id.clone(),
            object: "chat.completion.chunk",
            created: head.created,
            model: head.model.clone(),
            choices,
            usage: with_usage.then(|| self.counter.usage()),
            system_fingerprint: head.fingerprint(),
            prompt_token_ids: ids,
        });
    }

    fn begin(&mut self, index: usize, events: &mut Events) {
        self.has_begun[index] = true;
        let role = Some(self.job.role.clone());
        let ids = self.job.head.return_token_ids && index == 0;
        let ids = ids.then(|| self.job.plan.prompts[0].ids.clone());
        let delta = Delta { role, content: Some(String::new()) };
        self.push(vec![part(index, delta)], ids, events);
        if !self.job.echo.is_empty() {
            let delta = Delta { role: None, content: Some(self.job.echo.clone()) };
            self.push(vec![part(index, delta)], None, events);
        }
    }
}

fn part(index: usize, delta: Delta) -> ChatChunkChoice {
    ChatChunkChoice {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    }
}

impl Chunks for ChatChunks {
    fn piece(&mut self, index: usize, piece: Piece, events: &mut Events) {
        if piece.token.is_none() && piece.finish.is_none() {
            self.counter.piece(index, &piece);
            return;
        }
        // With the first token and not before it: clients time the first event.
        if !self.has_begun[index] {
            self.begin(index, events);
        }
        self.counter.piece(index, &piece);
        let head = &self.job.head;
        let has_content = piece.token.is_some() || !piece.text.is_empty();
        let delta = Delta { role: None, content: has_content.then_some(piece.text) };
        let (finish_reason, stop_reason) = match piece.finish {
            Some(finish) => (Some(finish.reason), finish.stop),
            None => (None, None),
        };
        let ids = || piece.token.iter().map(|token| token.id).collect();
        let choice = ChatChunkChoice {
            logprobs: head.logprobs.then(|| logprobs::chat(&piece.token, head.texts())),
            finish_reason,
            stop_reason,
            token_ids: head.return_token_ids.then(ids),
            ..part(index, delta)
        };
        self.push(vec![choice], None, events);
    }

    fn end(&mut self, events: &mut Events) {
        if self.job.head.include_usage {
            self.push(Vec::new(), None, events);
        }
    }
}
