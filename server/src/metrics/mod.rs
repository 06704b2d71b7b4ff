//! Prometheus series. Names, labels and buckets are vLLM's under the prefix `halyard:`, so that its
//! dashboards work after one replacement.

mod process;

use std::{sync::atomic::AtomicU64, time::Duration};

use halyard_engine::{EngineInfo, Observer, RequestStats, StepStats};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

type Reason = Family<ReasonLabel, Counter>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishedReasonLabel {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    method: String,
    handler: String,
    status: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HandlerLabels {
    method: String,
    handler: String,
}

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
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
const FEW: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const HTTP_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

fn histogram(buckets: &[f64]) -> Histogram {
    Histogram::new(buckets.iter().copied())
}

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

/// All series of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    engine: EngineSeries,
    request_success: Family<FinishedReasonLabel, Counter>,
    rejections: Reason,
    params_n: Histogram,
    http_requests: Family<HttpLabels, Counter>,
    http_seconds: Family<HandlerLabels, Histogram>,
}

/// What the engine's loop reports.
#[derive(Clone, Debug)]
struct EngineSeries {
    running: Gauge,
    waiting: Gauge,
    waiting_by_reason: Family<ReasonLabel, Gauge>,
    kv_usage: Gauge<f64, AtomicU64>,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    preemptions: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    step_tokens: Histogram,
    first_token: Histogram,
    next_token: Histogram,
    time_per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    request_prompt_tokens: Histogram,
    request_generated_tokens: Histogram,
    request_max_generated_tokens: Histogram,
    request_max_tokens: Histogram,
    request_preemptions: Histogram,
    request_computed_tokens: Histogram,
}

/// Registers under the server's prefix.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(format!("halyard:{name}"), help, metric.clone());
        metric
    }
}

impl EngineSeries {
    fn register(r: &mut Registrar<'_>, max_model_len: usize) -> Self {
        let lengths = lengths(max_model_len);
        let latency = || histogram(LATENCY_SECONDS);
        let length = || histogram(&lengths);
        Self {
            running: r.add("num_requests_running", "Sequences in the running set", Gauge::default()),
            waiting: r.add("num_requests_waiting", "Sequences waiting for admission", Gauge::default()),
            waiting_by_reason: r.add("num_requests_waiting_by_reason", "Sequences waiting for admission, by why", Family::default()),
            kv_usage: r.add("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", Gauge::default()),
            prompt_tokens: r.add("prompt_tokens", "Prompt tokens of ended requests", Counter::default()),
            cached_tokens: r.add("prompt_tokens_cached", "Of these, taken from the prefix cache", Counter::default()),
            generated_tokens: r.add("generation_tokens", "Tokens generated", Counter::default()),
            preemptions: r.add("num_preemptions", "Preemptions", Counter::default()),
            prefix_queries: r.add("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", Counter::default()),
            prefix_hits: r.add("prefix_cache_hits", "Of these, found", Counter::default()),
            step_tokens: r.add("iteration_tokens_total", "Tokens a step", histogram(STEP_TOKENS)),
            first_token: r.add("time_to_first_token_seconds", "Arrival to first token", histogram(FIRST_TOKEN_SECONDS)),
            next_token: r.add("inter_token_latency_seconds", "Token to next token", histogram(NEXT_TOKEN_SECONDS)),
            time_per_output_token: r.add("request_time_per_output_token_seconds", "Mean time a token after the first, by request", histogram(NEXT_TOKEN_SECONDS)),
            e2e: r.add("e2e_request_latency_seconds", "Arrival to end", latency()),
            queue: r.add("request_queue_time_seconds", "Arrival to first being scheduled", latency()),
            inference: r.add("request_inference_time_seconds", "First being scheduled to last token", latency()),
            prefill: r.add("request_prefill_time_seconds", "First being scheduled to first token", latency()),
            decode: r.add("request_decode_time_seconds", "First token to last token", latency()),
            request_prompt_tokens: r.add("request_prompt_tokens", "Prompt tokens a request", length()),
            request_generated_tokens: r.add("request_generation_tokens", "Generated tokens a request", length()),
            request_max_generated_tokens: r.add("request_max_num_generation_tokens", "Most tokens generated for a choice", length()),
            request_max_tokens: r.add("request_params_max_tokens", "max_tokens as asked for", length()),
            request_preemptions: r.add("request_num_preemptions", "Preemptions a request", histogram(FEW)),
            request_computed_tokens: r.add("request_prefill_kv_computed_tokens", "Prompt tokens a request that were not cached", length()),
        }
    }
}

impl Metrics {
    /// All series at zero.
    #[must_use]
    pub fn new(model_name: &str, info: &EngineInfo) -> Self {
        let mut registry = Registry::default();
        let http_requests = Family::default();
        registry.register("http_requests", "Responses", http_requests.clone());
        let http_seconds: Family<HandlerLabels, Histogram> =
            Family::new_with_constructor(|| histogram(HTTP_SECONDS));
        let help = "Arrival of a request to the head of its response";
        registry.register("http_request_duration_seconds", help, http_seconds.clone());
        registry.register_collector(Box::new(process::ProcessCollector::new()));

        let labels = [("model_name", model_name.to_owned()), ("engine", "0".to_owned())];
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let labelled = registry.sub_registry_with_labels(labels);
        let mut r = Registrar(labelled);
        let engine = EngineSeries::register(&mut r, info.max_model_len);
        let request_success = r.add("request_success", "Choices that ended, by why", Family::default());
        let rejections = r.add("admission_rejections", "Requests refused, by why", Family::default());
        let params_n = r.add("request_params_n", "n as asked for", histogram(FEW));
        r.add("cache_config_info", "How the KV cache is set up", cache_config(info));
        let metrics = Self {
            registry,
            engine,
            request_success,
            rejections,
            params_n,
            http_requests,
            http_seconds,
        };
        metrics.touch();
        metrics
    }

    /// Makes the labelled series appear before their first event, so that rates are right from it on.
    fn touch(&self) {
        for finished_reason in ["stop", "length", "abort", "error"] {
            drop(self.request_success.get_or_create(&FinishedReasonLabel { finished_reason }));
        }
        drop(self.rejections.get_or_create(&ReasonLabel { reason: "queue_full" }));
        for reason in ["capacity", "deferred"] {
            drop(self.engine.waiting_by_reason.get_or_create(&ReasonLabel { reason }));
        }
    }

    /// All series as text.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// What the engine's loop is to report to.
    #[must_use]
    pub fn observer(&self) -> MetricsObserver {
        MetricsObserver { series: self.engine.clone() }
    }

    /// An API request with `n` choices a prompt was accepted.
    pub(crate) fn accepted(&self, n: usize) {
        self.params_n.observe(to_f64(n));
    }

    /// A request was refused because the queue is full.
    pub(crate) fn rejected(&self) {
        self.rejections.get_or_create(&ReasonLabel { reason: "queue_full" }).inc();
    }

    /// A choice ended.
    pub(crate) fn finished(&self, finished_reason: &'static str) {
        self.request_success.get_or_create(&FinishedReasonLabel { finished_reason }).inc();
    }

    /// A response's head was sent.
    pub(crate) fn http(&self, method: &str, handler: &str, status: u16, took: Duration) {
        let (method, handler) = (method.to_owned(), handler.to_owned());
        let labels = HandlerLabels { method: method.clone(), handler: handler.clone() };
        self.http_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        let status = format!("{}xx", status / 100);
        self.http_requests.get_or_create(&HttpLabels { method, handler, status }).inc();
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CacheConfigLabels {
    block_size: usize,
    num_gpu_blocks: usize,
    enable_prefix_caching: String,
    cache_dtype: String,
}

fn cache_config(info: &EngineInfo) -> Family<CacheConfigLabels, Gauge> {
    let family = Family::<CacheConfigLabels, Gauge>::default();
    let labels = CacheConfigLabels {
        block_size: info.block_size,
        num_gpu_blocks: info.num_blocks,
        enable_prefix_caching: info.prefix_caching.to_string(),
        cache_dtype: info.dtype.clone(),
    };
    family.get_or_create(&labels).set(1);
    family
}

/// Feeds the engine's measurements into the series.
#[derive(Clone, Debug)]
pub struct MetricsObserver {
    series: EngineSeries,
}

impl Observer for MetricsObserver {
    fn step(&mut self, stats: &StepStats) {
        let series = &self.series;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        series.running.set(gauge(stats.running));
        series.waiting.set(gauge(stats.waiting));
        let capacity = ReasonLabel { reason: "capacity" };
        series.waiting_by_reason.get_or_create(&capacity).set(gauge(stats.waiting));
        series.kv_usage.set(stats.kv_usage);
        series.generated_tokens.inc_by(to_u64(stats.generated_tokens));
        series.preemptions.inc_by(to_u64(stats.preemptions));
        series.prefix_queries.inc_by(to_u64(stats.prefix_queries));
        series.prefix_hits.inc_by(to_u64(stats.prefix_hits));
        let tokens = stats.prompt_tokens + stats.generated_tokens;
        if tokens > 0 {
            series.step_tokens.observe(to_f64(tokens));
        }
    }

    fn first_token(&mut self, since_arrival: Duration) {
        self.series.first_token.observe(since_arrival.as_secs_f64());
    }

    fn next_token(&mut self, since_previous: Duration) {
        self.series.next_token.observe(since_previous.as_secs_f64());
    }

    fn request_finished(&mut self, stats: &RequestStats) {
        let series = &self.series;
        series.prompt_tokens.inc_by(to_u64(stats.prompt_tokens));
        series.cached_tokens.inc_by(to_u64(stats.cached_tokens));
        let computed = stats.prompt_tokens.saturating_sub(stats.cached_tokens);
        series.request_computed_tokens.observe(to_f64(computed));
        series.request_prompt_tokens.observe(to_f64(stats.prompt_tokens));
        series.request_generated_tokens.observe(to_f64(stats.generated_tokens));
        series.request_max_generated_tokens.observe(to_f64(stats.generated_tokens));
        series.request_max_tokens.observe(f64::from(stats.max_tokens));
        series.request_preemptions.observe(to_f64(stats.preemptions));
        series.e2e.observe(stats.e2e_time.as_secs_f64());
        series.queue.observe(stats.queue_time.as_secs_f64());
        series.prefill.observe(stats.prefill_time.as_secs_f64());
        series.decode.observe(stats.decode_time.as_secs_f64());
        let inference = stats.prefill_time + stats.decode_time;
        series.inference.observe(inference.as_secs_f64());
        if stats.generated_tokens > 1 {
            let each = stats.decode_time.as_secs_f64() / to_f64(stats.generated_tokens - 1);
            series.time_per_output_token.observe(each);
        }
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
