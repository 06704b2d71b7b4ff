//! From text or ids to prompts that fit the model.

use std::sync::Arc;

use super::{ApiError, App};
use crate::generation::{PromptIds, too_long};

/// Texts longer than this are tokenized on a thread of their own, so that other requests go on.
const INLINE_BYTES: usize = 8 << 10;

/// The ids of a text.
pub(super) async fn encode(
    app: &Arc<App>,
    text: String,
    add_special_tokens: bool,
) -> Result<Vec<u32>, ApiError> {
    let ids = if text.len() <= INLINE_BYTES {
        app.text.encode(&text, add_special_tokens)
    } else {
        let tokenizer = Arc::clone(&app.text);
        let encode = move || tokenizer.encode(&text, add_special_tokens);
        tokio::task::spawn_blocking(encode).await.map_err(|error| {
            tracing::error!(%error, "the tokenizer panicked");
            ApiError::internal()
        })?
    };
    ids.map_err(|cause| ApiError::invalid("prompt", cause))
}

/// A prompt from a text. One that cannot fit, however well it compresses, is not even tokenized.
pub(super) async fn from_text(
    app: &Arc<App>,
    text: String,
    add_special_tokens: bool,
    truncate: Option<usize>,
) -> Result<PromptIds, ApiError> {
    let context = app.engine.info().max_model_len;
    let at_least = text.len() / app.text.longest_token_bytes().max(1);
    if truncate.is_none() && at_least > context {
        return Err(too_long(at_least, context, None));
    }
    let ids = encode(app, text.clone(), add_special_tokens).await?;
    Ok(truncated(PromptIds { ids, text: Some(text), max_tokens: 0 }, truncate))
}

/// Keeps the last ids; the text is then no longer the prompt's.
pub(super) fn truncated(mut prompt: PromptIds, truncate: Option<usize>) -> PromptIds {
    if let Some(keep) = truncate
        && prompt.ids.len() > keep
    {
        prompt.ids.drain(..prompt.ids.len() - keep);
        prompt.text = None;
    }
    prompt
}

/// How many ids to keep: as asked, or with -1 as many as fit beside the answer.
pub(super) fn truncation(
    asked: Option<i64>,
    max_tokens: Option<u32>,
    context: usize,
) -> Result<Option<usize>, ApiError> {
    let Some(asked) = asked else { return Ok(None) };
    if asked == -1 {
        let reserved = usize::try_from(max_tokens.unwrap_or(1)).unwrap_or(usize::MAX);
        return Ok(Some(context.saturating_sub(reserved).max(1)));
    }
    match usize::try_from(asked) {
        Ok(keep) if (1..=context).contains(&keep) => Ok(Some(keep)),
        _ => {
            let message = format!(
                "truncate_prompt_tokens must be -1 or from 1 to {context} (max_model_len), got {asked}."
            );
            Err(ApiError::invalid("truncate_prompt_tokens", message))
        }
    }
}
