//! `POST /tokenize`.

use std::sync::Arc;

use axum::{Json, extract::State};

use super::{
    ApiError, App,
    conversation::{self, ChatOptions},
    extract::JsonBody,
    logprobs::TokenTexts,
    prompt,
};
use crate::wire::{TokenizeRequest, TokenizeResponse};

pub(super) async fn create(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    app.model_name(request.model.as_deref())?;
    let add_special_tokens = request.add_special_tokens.unwrap_or(request.messages.is_none());
    let text = match (request.prompt, request.messages) {
        (Some(prompt), None) => prompt,
        (None, Some(messages)) => {
            let options = ChatOptions {
                add_generation_prompt: request.add_generation_prompt,
                continue_final_message: request.continue_final_message,
                kwargs: request.chat_template_kwargs.unwrap_or_default(),
                tools: request.tools,
                documents: None,
            };
            conversation::render(&app, messages, options)?.prompt
        }
        _ => {
            let message = "Give either `prompt` or `messages`.";
            return Err(ApiError::invalid("prompt", message));
        }
    };
    let tokens = prompt::encode(&app, text, add_special_tokens).await?;
    let texts = TokenTexts::new(app.text.as_ref(), false);
    let token_strs = request
        .return_token_strs
        .unwrap_or(false)
        .then(|| tokens.iter().map(|&id| texts.text(id)).collect());
    let max_model_len = app.engine.info().max_model_len;
    Ok(Json(TokenizeResponse { count: tokens.len(), max_model_len, tokens, token_strs }))
}
