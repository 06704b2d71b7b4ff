//! Everything textual about a model, from wherever its files keep it.

use halyard_weights::Checkpoint;

use crate::error::TokenizerError;
use crate::template::{ChatTemplate, TemplateSources};
use crate::tokenizer::{Tokenizer, TokenizerConfig};

/// The tokenizer of a model and, if it has one, its chat template.
///
/// A GGUF brings both in its metadata; beside safetensors they are `tokenizer.json`, `tokenizer_config.json` and
/// `chat_template.jinja`.
///
/// # Errors
/// The tokenizer is missing or unsupported. A template that does not compile is an error of the returned
/// `ChatTemplate`'s first use, not of loading: the model still completes plain text.
pub fn load(checkpoint: &Checkpoint) -> Result<(Tokenizer, Option<ChatTemplate>), TokenizerError> {
    let (tokenizer, sources) = match checkpoint.gguf() {
        Some(metadata) => (Tokenizer::from_gguf(metadata)?, TemplateSources::from_gguf(metadata)),
        None => {
            let folder = checkpoint.folder();
            let config = TokenizerConfig::from_folder(folder)?;
            let sources = TemplateSources::from_folder(folder, &config.chat_template)?;
            (Tokenizer::from_folder(folder)?, sources)
        }
    };
    let template = sources.map(|sources| ChatTemplate::new(sources, tokenizer.special_tokens()));
    Ok((tokenizer, template))
}
