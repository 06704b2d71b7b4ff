//! `GET /load`: requests waiting or running.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::App;

pub(super) async fn get(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "server_load": app.engine.load() }))
}
