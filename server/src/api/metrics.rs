//! `GET /metrics`.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

use super::{ApiError, App};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn get(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if app.engine.load() == 0 {
        app.metrics.idle();
    }
    // Devices answer for themselves, which may take a while.
    let encoded = tokio::task::spawn_blocking(move || app.metrics.encode()).await;
    let text = encoded.ok().and_then(Result::ok).ok_or_else(ApiError::internal)?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
