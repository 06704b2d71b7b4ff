//! `GET /health`, `GET` and `POST /ping`: whether the engine makes progress.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{ApiError, App};

pub(super) async fn get(State(app): State<Arc<App>>) -> Response {
    match app.engine.health() {
        Ok(()) => StatusCode::OK.into_response(),
        Err(cause) => ApiError::unhealthy(&cause).into_response(),
    }
}
