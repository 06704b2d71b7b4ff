//! A request inside the engine: its tokens, how far they are computed, and its blocks.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    kv::BlockTable,
    request::{
        EngineEvent, EngineInfo, EngineRequest, FinishReason, RequestError, RequestStats,
        SamplingParams, TokenLogprobs,
    },
    sampling::TokenCounts,
    shared::Ticket,
};

/// How many tokens beyond the prompt a sequence reserves memory for when it arrives.
const RESERVED_OUTPUT: usize = 4096;

/// Position in the queue: priority first, then order of arrival.
pub(crate) type Rank = (i32, u64);

/// A request inside the engine.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Order of arrival, given by the scheduler.
    pub(crate) arrival: u64,
    pub(crate) priority: i32,
    pub(crate) salt: Option<u64>,
    pub(crate) params: SamplingParams,
    /// Key of the sequence's random numbers; the output position is their counter.
    pub(crate) seed: u64,
    /// The prompt, followed by what was generated.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    /// The sequence ends when it is this long.
    pub(crate) max_len: usize,
    /// Leading tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    /// How many tokens after those the present step computes.
    pub(crate) scheduled: usize,
    pub(crate) table: BlockTable,
    /// Prompt tokens found in the prefix cache at the first admission; `None` before.
    pub(crate) cached: Option<usize>,
    pub(crate) preemptions: usize,
    /// The caller knows that the prompt has been computed.
    pub(crate) announced: bool,
    /// Why the sequence is over.
    pub(crate) finish: Option<FinishReason>,
    /// Log-probabilities of the prompt's tokens from the second on, as far as known.
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
    /// How often each token occurs, kept only if a penalty asks for it.
    pub(crate) counts: Option<TokenCounts>,
    /// Ids that end the sequence, sorted, if `min_tokens` holds them back.
    enders: Vec<u32>,
    pub(crate) client: Client,
}

impl Sequence {
    /// The sequence of a valid request. `seed` is used if the request brings none.
    pub(crate) fn new(
        request: EngineRequest,
        info: &EngineInfo,
        seed: u64,
        client: Client,
    ) -> Self {
        let EngineRequest { prompt: mut tokens, mut params, cache_salt, priority, .. } = request;
        params.logit_bias.sort_by_key(|&(id, _)| id);
        params.logit_bias.dedup_by_key(|&mut (id, _)| id);
        let prompt_len = tokens.len();
        let max_tokens = usize::try_from(params.max_tokens).unwrap_or(usize::MAX);
        let max_len = prompt_len.saturating_add(max_tokens).min(info.max_model_len).max(prompt_len);
        let reserved = max_len.min(prompt_len + RESERVED_OUTPUT);
        tokens.reserve(reserved - prompt_len);
        Self {
            arrival: 0,
            priority,
            salt: cache_salt,
            seed: params.seed.unwrap_or(seed),
            enders: enders(&params, info),
            counts: TokenCounts::if_needed(&params, &tokens),
            params,
            tokens,
            prompt_len,
            max_len,
            computed: 0,
            scheduled: 0,
            table: BlockTable::with_capacity(reserved.div_ceil(info.block_size)),
            cached: None,
            preemptions: 0,
            announced: false,
            finish: None,
            prompt_logprobs: Vec::new(),
            client,
        }
    }

    pub(crate) fn rank(&self) -> Rank {
        (self.priority, self.arrival)
    }

    /// Tokens not computed yet: one while decoding, more while the prompt is being computed.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// The most tokens the prefix cache may supply: the last one is computed for its logits, and so
    /// are those whose logits `prompt_logprobs` still wants.
    pub(crate) fn max_cached(&self) -> usize {
        match self.params.prompt_logprobs {
            Some(_) if !self.announced => self.prompt_logprobs.len(),
            _ => self.tokens.len() - 1,
        }
    }

    /// The present step computes the sequence's last token, so the next one can be chosen.
    pub(crate) fn completes(&self) -> bool {
        self.scheduled > 0 && self.scheduled == self.pending()
    }

    /// A token is to be chosen in the present step.
    pub(crate) fn samples(&self) -> bool {
        self.completes() && self.tokens.len() < self.max_len
    }

    /// Positions in the present step whose logits give log-probabilities of prompt tokens.
    pub(crate) fn prompt_logits(&self) -> Range<usize> {
        let end = (self.computed + self.scheduled).min(self.prompt_len - 1);
        match self.params.prompt_logprobs {
            Some(_) if !self.announced => self.prompt_logprobs.len().min(end)..end,
            _ => 0..0,
        }
    }

    /// Ids that must not be chosen yet, sorted.
    pub(crate) fn banned(&self) -> &[u32] {
        let early = self.generated() < self.params.min_tokens as usize;
        if early { &self.enders } else { &[] }
    }

    /// The logits are changed before a token is chosen.
    pub(crate) fn changes_logits(&self) -> bool {
        self.counts.is_some()
            || !self.params.logit_bias.is_empty()
            || self.params.allowed_token_ids.is_some()
            || !self.banned().is_empty()
    }

    /// Appends a chosen token, and notes if the sequence is over with it.
    pub(crate) fn push(&mut self, token: u32, eos: &[u32]) {
        self.tokens.push(token);
        if let Some(counts) = &mut self.counts {
            counts.add_output(token);
        }
        self.finish = if !self.params.ignore_eos && eos.contains(&token) {
            Some(FinishReason::EndOfSequence)
        } else if self.params.stop_token_ids.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else if self.tokens.len() >= self.max_len {
            Some(FinishReason::Length)
        } else {
            None
        };
    }

    /// Nothing is left to compute: it has its last token, or wanted none beyond its prompt.
    pub(crate) fn is_over(&self) -> bool {
        self.finish.is_some() || self.pending() == 0
    }

    /// What became of the request, for the observer.
    pub(crate) fn stats(&self, finish: Option<FinishReason>) -> RequestStats {
        let times = &self.client.times;
        let now = Instant::now();
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        RequestStats {
            finish,
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached.unwrap_or(0),
            generated_tokens: self.generated(),
            max_tokens: self.params.max_tokens,
            preemptions: self.preemptions,
            queue_time: between(Some(times.arrival), times.scheduled.or(Some(now))),
            prefill_time: between(times.scheduled, times.first_token),
            decode_time: between(times.first_token, times.last_token),
            e2e_time: between(Some(times.arrival), Some(now)),
        }
    }
}

fn enders(params: &SamplingParams, info: &EngineInfo) -> Vec<u32> {
    if params.min_tokens == 0 {
        return Vec::new();
    }
    let known = |&id: &u32| (id as usize) < info.vocab_size;
    let eos = info.eos_token_ids.iter().filter(|_| !params.ignore_eos);
    let mut ids: Vec<u32> =
        params.stop_token_ids.iter().chain(eos).copied().filter(known).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// When things happened to a request.
#[derive(Debug)]
pub(crate) struct Times {
    pub(crate) arrival: Instant,
    pub(crate) scheduled: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
}

/// The other end of a [`RequestHandle`](crate::RequestHandle). Whatever happens to the engine, the
/// caller gets its last event: a client dropped before its end says that the engine stopped.
#[derive(Debug)]
pub(crate) struct Client {
    events: UnboundedSender<EngineEvent>,
    abandoned: Arc<AtomicBool>,
    ticket: Ticket,
    ended: bool,
    pub(crate) times: Times,
}

impl Client {
    pub(crate) fn new(
        events: UnboundedSender<EngineEvent>,
        abandoned: Arc<AtomicBool>,
        ticket: Ticket,
        arrival: Instant,
    ) -> Self {
        let times = Times { arrival, scheduled: None, first_token: None, last_token: None };
        Self { events, abandoned, ticket, ended: false, times }
    }

    /// Nobody reads the events any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// The request has left the queue for the first time.
    pub(crate) fn admitted(&mut self) {
        if self.times.scheduled.is_none() {
            self.times.scheduled = Some(Instant::now());
            self.ticket.admitted();
        }
    }

    /// Sends an event that is not the last one.
    pub(crate) fn send(&self, event: EngineEvent) {
        // Fails only if nobody listens, which the abandoned flag says too.
        let _ = self.events.send(event);
    }

    /// Sends the last event.
    pub(crate) fn end(&mut self, result: Result<FinishReason, RequestError>) {
        if !std::mem::replace(&mut self.ended, true) {
            // The place must be free by the time the caller knows that the request has ended.
            self.ticket.give_back();
            self.send(match result {
                Ok(reason) => EngineEvent::Finished(reason),
                Err(error) => EngineEvent::Failed(error),
            });
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let cause = self.ticket.cause_of_death();
        self.end(Err(RequestError::EngineDead(cause)));
    }
}
