//! What all handlers share.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::{ApiError, ApiKeys};
use crate::{
    engine::Engine,
    generation::{Defaults, Limits},
    metrics::Metrics,
    text::Text,
};

/// How the API behaves; set once at the start.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct AppOptions {
    /// The model's names; the first is the one answers carry when a request names none.
    pub model_names: Vec<String>,
    /// What was loaded, as the user wrote it.
    pub model_root: String,
    /// Who may use `/v1`.
    pub api_keys: ApiKeys,
    /// Origins that browsers may call from.
    pub allowed_origins: Vec<String>,
    /// Sampling values for what requests leave out.
    pub defaults: Defaults,
    /// Variables for every chat template.
    pub template_kwargs: Map<String, Value>,
    /// Role of answers.
    pub response_role: String,
    /// Requests may have a priority.
    pub priority_allowed: bool,
    /// `usage` tells the cached tokens.
    pub prompt_tokens_details: bool,
    /// Every stream ends with its usage.
    pub force_include_usage: bool,
    /// Tokens are written as `token_id:N`.
    pub tokens_as_ids: bool,
    /// Answers carry the request's `X-Request-Id`.
    pub request_id_headers: bool,
    /// A log line a response.
    pub access_log: bool,
    /// A log line with the parameters of each request.
    pub log_requests: bool,
}

/// The engine, its text side, and how they are served.
#[derive(Debug)]
pub struct App {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) text: Arc<dyn Text>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) options: AppOptions,
    /// Seconds since 1970 at which the model was loaded.
    pub(crate) created: u64,
    pub(crate) fingerprint: String,
    ids: Ids,
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        text: Arc<dyn Text>,
        metrics: Arc<Metrics>,
        options: AppOptions,
    ) -> Self {
        let fingerprint = format!("halyard-{}-{}", version(), engine.info().dtype);
        Self { engine, text, metrics, options, created: now(), fingerprint, ids: Ids::default() }
    }

    pub(crate) fn limits(&self) -> Limits<'_> {
        Limits {
            info: self.engine.info(),
            defaults: &self.options.defaults,
            priority_allowed: self.options.priority_allowed,
        }
    }

    /// The name to answer with, if the model exists; requests may leave it out.
    pub(crate) fn model_name(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let names = &self.options.model_names;
        match asked {
            None | Some("") => Ok(names.first().cloned().unwrap_or_default()),
            Some(asked) if names.iter().any(|name| name == asked) => Ok(asked.to_owned()),
            Some(asked) => Err(ApiError::model_not_found(asked)),
        }
    }

    /// `prefix` and the client's own id, or a fresh one.
    pub(crate) fn response_id(
        &self,
        prefix: &str,
        asked: Option<String>,
        headers: &HeaderMap,
    ) -> String {
        let header = headers.get("x-request-id").and_then(|value| value.to_str().ok());
        let asked = asked.or_else(|| header.map(str::to_owned));
        let is_ok = |id: &String| {
            (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let id = asked.filter(is_ok).unwrap_or_else(|| self.fresh_id());
        format!("{prefix}-{id}")
    }

    /// An id that no other request has.
    pub(crate) fn fresh_id(&self) -> String {
        self.ids.fresh()
    }
}

/// This program's version.
pub(crate) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// Ids that do not repeat and tell nothing: a counter under two keyed hashes.
#[derive(Debug, Default)]
struct Ids {
    keys: [RandomState; 2],
    counter: AtomicU64,
}

impl Ids {
    fn fresh(&self) -> String {
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let [high, low] = self.keys.each_ref().map(|key| key.hash_one(count));
        format!("{high:016x}{low:016x}")
    }
}
