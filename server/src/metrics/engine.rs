//! What the engine's loop measures, as series.

use std::{sync::atomic::AtomicU64, time::Duration};

use halyard_engine::{Observer, RequestStats, StepStats};
use prometheus_client::metrics::{
    counter::Counter, family::Family, gauge::Gauge, histogram::Histogram,
};

use super::{FEW, ReasonLabel, Registrar, histogram, to_f64, to_u64};

const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const NEXT_TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const LATENCY_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// 1, 2, 5, 10, 20, 50, … up to `max`.
fn lengths(max: usize) -> Vec<f64> {
    let mut buckets = Vec::new();
    let mut decade = 1_u32;
    loop {
        for mantissa in [1, 2, 5] {
            let bound = mantissa * decade;
            if usize::try_from(bound).unwrap_or(usize::MAX) > max.max(1) {
                return buckets;
            }
            buckets.push(f64::from(bound));
        }
        let Some(next) = decade.checked_mul(10).filter(|next| *next <= 100_000_000) else {
            return buckets;
        };
        decade = next;
    }
}

/// What the engine's loop reports.
#[derive(Clone, Debug)]
pub(super) struct EngineSeries {
    now: Now,
    totals: Totals,
    times: Times,
    counts: Counts,
}

/// How things stand.
#[derive(Clone, Debug)]
struct Now {
    running: Gauge,
    waiting: Gauge,
    waiting_by_reason: Family<ReasonLabel, Gauge>,
    kv_usage: Gauge<f64, AtomicU64>,
}

/// What only grows.
#[derive(Clone, Debug)]
struct Totals {
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    preemptions: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    graphs: Counter,
}

/// How long things take.
#[derive(Clone, Debug)]
struct Times {
    first_token: Histogram,
    next_token: Histogram,
    per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
}

/// How many there are, by step or by request.
#[derive(Clone, Debug)]
struct Counts {
    step_tokens: Histogram,
    prompt_tokens: Histogram,
    generated_tokens: Histogram,
    most_generated_tokens: Histogram,
    max_tokens: Histogram,
    preemptions: Histogram,
    computed_tokens: Histogram,
}

impl EngineSeries {
    pub(super) fn new(r: &mut Registrar<'_>, max_model_len: usize) -> Self {
        Self {
            now: Now::new(r),
            totals: Totals::new(r),
            times: Times::new(r),
            counts: Counts::new(r, max_model_len),
        }
    }

    /// Nothing waits or runs. The engine reports by step, so the last one's figures would stay.
    pub(super) fn idle(&self) {
        self.now.set(&StepStats::default());
    }
}

impl Now {
    fn new(r: &mut Registrar<'_>) -> Self {
        let waiting_by_reason = Family::<ReasonLabel, Gauge>::default();
        for reason in ["capacity", "deferred"] {
            drop(waiting_by_reason.get_or_create(&ReasonLabel { reason }));
        }
        let help = "Sequences waiting for admission, by why";
        Self {
            waiting_by_reason: r.add("num_requests_waiting_by_reason", help, waiting_by_reason),
            running: r.gauge("num_requests_running", "Sequences in the running set"),
            waiting: r.gauge("num_requests_waiting", "Sequences waiting for admission"),
            kv_usage: r.gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1"),
        }
    }

    fn set(&self, stats: &StepStats) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.running.set(gauge(stats.running));
        self.waiting.set(gauge(stats.waiting));
        let capacity = ReasonLabel { reason: "capacity" };
        self.waiting_by_reason.get_or_create(&capacity).set(gauge(stats.waiting));
        self.kv_usage.set(stats.kv_usage);
    }
}

impl Totals {
    fn new(r: &mut Registrar<'_>) -> Self {
        Self {
            prompt_tokens: r.counter("prompt_tokens", "Prompt tokens of ended requests"),
            cached_tokens: r.counter("prompt_tokens_cached", "Of these, from the prefix cache"),
            generated_tokens: r.counter("generation_tokens", "Tokens generated"),
            preemptions: r.counter("num_preemptions", "Preemptions"),
            prefix_queries: r.counter("prefix_cache_queries", "Prompt tokens looked up"),
            prefix_hits: r.counter("prefix_cache_hits", "Of these, found"),
            graphs: r.counter("graph_launches", "Captured graphs launched, two a decode step"),
        }
    }
}

impl Times {
    fn new(r: &mut Registrar<'_>) -> Self {
        let mut add = |name: &str, help: &str, buckets| r.add(name, help, histogram(buckets));
        Self {
            first_token: add(
                "time_to_first_token_seconds",
                "Arrival to first token",
                FIRST_TOKEN_SECONDS,
            ),
            next_token: add(
                "inter_token_latency_seconds",
                "Token to next token",
                NEXT_TOKEN_SECONDS,
            ),
            per_output_token: add(
                "request_time_per_output_token_seconds",
                "Mean time a token after the first, by request",
                NEXT_TOKEN_SECONDS,
            ),
            e2e: add("e2e_request_latency_seconds", "Arrival to end", LATENCY_SECONDS),
            queue: add(
                "request_queue_time_seconds",
                "Arrival to first being scheduled",
                LATENCY_SECONDS,
            ),
            inference: add(
                "request_inference_time_seconds",
                "First being scheduled to last token",
                LATENCY_SECONDS,
            ),
            prefill: add(
                "request_prefill_time_seconds",
                "First being scheduled to first token",
                LATENCY_SECONDS,
            ),
            decode: add(
                "request_decode_time_seconds",
                "First token to last token",
                LATENCY_SECONDS,
            ),
        }
    }
}

impl Counts {
    fn new(r: &mut Registrar<'_>, max_model_len: usize) -> Self {
        let lengths = lengths(max_model_len);
        let mut add = |name: &str, help: &str, buckets| r.add(name, help, histogram(buckets));
        Self {
            step_tokens: add("iteration_tokens_total", "Tokens a step", STEP_TOKENS),
            prompt_tokens: add("request_prompt_tokens", "Prompt tokens a request", &lengths),
            generated_tokens: add(
                "request_generation_tokens",
                "Generated tokens a request",
                &lengths,
            ),
            most_generated_tokens: add(
                "request_max_num_generation_tokens",
                "Most tokens generated for a choice",
                &lengths,
            ),
            max_tokens: add("request_params_max_tokens", "max_tokens as asked for", &lengths),
            preemptions: add("request_num_preemptions", "Preemptions a request", FEW),
            computed_tokens: add(
                "request_prefill_kv_computed_tokens",
                "Prompt tokens a request that were not cached",
                &lengths,
            ),
        }
    }
}

/// Feeds the engine's measurements into the series.
#[derive(Clone, Debug)]
pub struct MetricsObserver {
    series: EngineSeries,
}

impl MetricsObserver {
    pub(super) fn new(series: EngineSeries) -> Self {
        Self { series }
    }
}

impl Observer for MetricsObserver {
    fn step(&mut self, stats: &StepStats) {
        let EngineSeries { now, totals, counts, .. } = &self.series;
        now.set(stats);
        totals.generated_tokens.inc_by(to_u64(stats.generated_tokens));
        totals.preemptions.inc_by(to_u64(stats.preemptions));
        totals.prefix_queries.inc_by(to_u64(stats.prefix_queries));
        totals.prefix_hits.inc_by(to_u64(stats.prefix_hits));
        totals.graphs.inc_by(to_u64(stats.graphs));
        let tokens = stats.prompt_tokens + stats.generated_tokens;
        if tokens > 0 {
            counts.step_tokens.observe(to_f64(tokens));
        }
    }

    fn first_token(&mut self, since_arrival: Duration) {
        self.series.times.first_token.observe(since_arrival.as_secs_f64());
    }

    fn next_token(&mut self, since_previous: Duration) {
        self.series.times.next_token.observe(since_previous.as_secs_f64());
    }

    fn request_finished(&mut self, stats: &RequestStats) {
        let EngineSeries { totals, times, counts, .. } = &self.series;
        totals.prompt_tokens.inc_by(to_u64(stats.prompt_tokens));
        totals.cached_tokens.inc_by(to_u64(stats.cached_tokens));
        let computed = stats.prompt_tokens.saturating_sub(stats.cached_tokens);
        counts.computed_tokens.observe(to_f64(computed));
        counts.prompt_tokens.observe(to_f64(stats.prompt_tokens));
        counts.generated_tokens.observe(to_f64(stats.generated_tokens));
        counts.most_generated_tokens.observe(to_f64(stats.generated_tokens));
        counts.max_tokens.observe(f64::from(stats.max_tokens));
        counts.preemptions.observe(to_f64(stats.preemptions));
        times.e2e.observe(stats.e2e_time.as_secs_f64());
        times.queue.observe(stats.queue_time.as_secs_f64());
        times.prefill.observe(stats.prefill_time.as_secs_f64());
        times.decode.observe(stats.decode_time.as_secs_f64());
        times.inference.observe((stats.prefill_time + stats.decode_time).as_secs_f64());
        if stats.generated_tokens > 1 {
            let each = stats.decode_time.as_secs_f64() / to_f64(stats.generated_tokens - 1);
            times.per_output_token.observe(each);
        }
    }
}
