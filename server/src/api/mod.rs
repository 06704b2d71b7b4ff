//! The HTTP API: one endpoint a file, each of which extracts, converts, calls and converts back.

mod answer;
mod auth;
mod chat;
mod completions;
mod conversation;
mod detokenize;
mod error;
mod extract;
mod health;
mod layers;
mod load;
mod logprobs;
mod metrics;
mod models;
mod prompt;
mod sse;
mod state;
mod tokenize;
mod version;

use std::sync::Arc;

use axum::{
    Router,
    http::HeaderValue,
    middleware::from_fn_with_state,
    routing::{get, post},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, Any, CorsLayer},
};

pub use auth::ApiKeys;
pub use error::ApiError;
pub(crate) use error::bounded;
pub use extract::parse_json;
pub use state::{App, AppOptions};

/// The whole API over one application.
pub fn router(app: Arc<App>) -> Router {
    let keys = from_fn_with_state(app.options.api_keys.clone(), auth::require_key);
    let v1 = Router::new()
        .route("/models", get(models::list))
        .route("/models/{*id}", get(models::one))
        .route("/completions", post(completions::create))
        .route("/chat/completions", post(chat::create))
        .fallback(layers::not_found)
        .method_not_allowed_fallback(layers::method_not_allowed)
        .layer(keys);
    let mut router = Router::new()
        .nest("/v1", v1)
        .route("/tokenize", post(tokenize::create))
        .route("/detokenize", post(detokenize::create))
        .route("/health", get(health::get))
        .route("/ping", get(health::get).post(health::get))
        .route("/version", get(version::get))
        .route("/load", get(load::get))
        .route("/metrics", get(metrics::get))
        .fallback(layers::not_found)
        .method_not_allowed_fallback(layers::method_not_allowed)
        .layer(CatchPanicLayer::custom(layers::panicked));
    if let Some(cors) = cors(&app.options.allowed_origins) {
        router = router.layer(cors);
    }
    router.layer(from_fn_with_state(Arc::clone(&app), layers::observe)).with_state(app)
}

/// No origin is allowed unless told so.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new().allow_methods(Any).allow_headers(Any);
    if origins.iter().any(|origin| origin == "*") {
        return Some(layer.allow_origin(Any));
    }
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    Some(layer.allow_origin(AllowOrigin::list(origins)))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
