//! `POST /detokenize`.

use std::sync::Arc;

use axum::{Json, extract::State};

use super::{ApiError, App, extract::JsonBody};
use crate::{
    generation::is_known,
    wire::{DetokenizeRequest, DetokenizeResponse},
};

pub(super) async fn create(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    app.model_name(request.model.as_deref())?;
    let vocab_size = app.engine.info().vocab_size;
    if let Some(id) = request.tokens.iter().find(|&&id| !is_known(id, vocab_size)) {
        let message = format!("Token id {id} is out of vocabulary, which has {vocab_size}.");
        return Err(ApiError::invalid("tokens", message));
    }
    Ok(Json(DetokenizeResponse { prompt: app.text.decode(&request.tokens, false) }))
}
