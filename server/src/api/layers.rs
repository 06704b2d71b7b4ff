//! What surrounds every endpoint: counting, the access log, and answers where there is no endpoint.

use std::{any::Any, sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Response, header::HeaderName},
    middleware::Next,
    response::IntoResponse,
};

use super::{ApiError, App};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Counts the response, times its head, and logs a line.
pub(super) async fn observe(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> axum::response::Response {
    let started = Instant::now();
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let path = request.uri().path().to_owned();
    let request_id = request.headers().get(REQUEST_ID).cloned();

    let mut response = next.run(request).await;

    let took = started.elapsed();
    let status = response.status().as_u16();
    // One label for all unknown paths: clients could otherwise make series without end.
    let handler = matched.as_ref().map_or("none", MatchedPath::as_str);
    app.metrics.http(method_label(&method), handler, status, took);
    if app.options.access_log {
        let path = super::bounded(&path, 200);
        tracing::info!("{method} {path} {status} {:.1} ms", took.as_secs_f64() * 1e3);
    }
    if app.options.request_id_headers {
        let own = || HeaderValue::try_from(app.fresh_id()).ok();
        if let Some(id) = request_id.or_else(own) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
    }
    response
}

/// Methods may be any word; see the label of paths.
fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

pub(super) async fn not_found() -> ApiError {
    ApiError::path_not_found()
}

pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::method_not_allowed()
}

/// Answers for a handler that panicked: a fault of ours, which must not end the connection's others.
#[expect(clippy::needless_pass_by_value, reason = "the signature is the layer's")]
pub(super) fn panicked(cause: Box<dyn Any + Send>) -> Response<axum::body::Body> {
    let cause = cause
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| cause.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(cause, "a handler panicked");
    ApiError::internal().into_response()
}
