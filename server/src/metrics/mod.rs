//! Prometheus series. Names, labels and buckets are vLLM's under the prefix `halyard:`, so that its
//! dashboards work after one replacement.

mod devices;
mod engine;
mod process;

use std::{sync::atomic::AtomicI64, time::Duration};

use halyard_engine::{DecodeGraphs, EngineInfo, process::RankDevice};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

use devices::DeviceCollector;
use engine::EngineSeries;
pub use engine::MetricsObserver;

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

const FEW: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const HTTP_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

fn histogram(buckets: &[f64]) -> Histogram {
    Histogram::new(buckets.iter().copied())
}

/// All series of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    engine: EngineSeries,
    request_success: Family<FinishedReasonLabel, Counter>,
    rejections: Family<ReasonLabel, Counter>,
    params_n: Histogram,
    http_requests: Family<HttpLabels, Counter>,
    http_seconds: Family<HandlerLabels, Histogram>,
}

/// Registers under the server's prefix.
struct Registrar<'a>(&'a mut Registry);

impl Registrar<'_> {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(format!("halyard:{name}"), help, metric.clone());
        metric
    }

    fn gauge<N, A>(&mut self, name: &str, help: &str) -> Gauge<N, A>
    where
        Gauge<N, A>: Metric + Clone + Default,
    {
        self.add(name, help, Gauge::default())
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.add(name, help, Counter::default())
    }
}

impl Metrics {
    /// All series at zero; those of the devices are what these measure, by rank.
    #[must_use]
    pub fn new(model_name: &str, info: &EngineInfo, devices: Vec<RankDevice>) -> Self {
        let mut registry = Registry::default();
        let http_requests = Family::default();
        registry.register("http_requests", "Responses", http_requests.clone());
        let http_seconds: Family<HandlerLabels, Histogram> =
            Family::new_with_constructor(|| histogram(HTTP_SECONDS));
        let help = "Arrival of a request to the head of its response";
        registry.register("http_request_duration_seconds", help, http_seconds.clone());
        registry.register_collector(Box::new(process::ProcessCollector::new()));
        registry.register_collector(Box::new(DeviceCollector::new(devices)));

        let labels = [("model_name", model_name.to_owned()), ("engine", "0".to_owned())];
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let labelled = registry.sub_registry_with_labels(labels);
        let mut r = Registrar(labelled);
        let engine = EngineSeries::new(&mut r, info.max_model_len);
        let request_success =
            r.add("request_success", "Choices that ended, by why", Family::default());
        let rejections =
            r.add("admission_rejections", "Requests refused, by why", Family::default());
        let params_n = r.add("request_params_n", "n as asked for", histogram(FEW));
        r.add("cache_config_info", "How the KV cache is set up", cache_config(info));
        let ranks =
            r.gauge::<i64, AtomicI64>("tensor_parallel_size", "Devices that share the model");
        ranks.set(i64::try_from(info.tensor_parallel_size).unwrap_or(i64::MAX));
        let sizes = match &info.graphs {
            DecodeGraphs::Captured { sizes, .. } => sizes.len(),
            DecodeGraphs::Off(_) => 0,
        };
        let help = "Sizes of decode steps that are replayed from graphs";
        let graph_sizes = r.gauge::<i64, AtomicI64>("decode_graph_sizes", help);
        graph_sizes.set(i64::try_from(sizes).unwrap_or(i64::MAX));
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
        MetricsObserver::new(self.engine.clone())
    }

    /// The engine has nothing to do.
    pub(crate) fn idle(&self) {
        self.engine.idle();
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

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}
