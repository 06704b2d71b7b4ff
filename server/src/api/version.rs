//! `GET /version`.

use axum::Json;
use serde_json::{Value, json};

pub(super) async fn get() -> Json<Value> {
    Json(json!({ "version": super::state::version() }))
}
