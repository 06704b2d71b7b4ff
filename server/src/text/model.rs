//! The model's own tokenizer and chat template.

use std::{fmt, path::Path, sync::Arc};

use anyhow::Context;
use halyard_text::{ChatInput, ChatTemplate, StreamDecoder, TemplateSources, Tokenizer};
use halyard_weights::Checkpoint;

use super::{Chat, ChatError, Text, TextStream};

/// A tokenizer and, if the model has one or was given one, a chat template.
pub struct ModelText {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    longest_token_bytes: usize,
}

impl fmt::Debug for ModelText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelText({} tokens)", self.tokenizer.vocab_size())
    }
}

impl ModelText {
    /// Loads what stands beside or in a checkpoint.
    ///
    /// `tokenizer` is another model to take the tokenizer from; `template` is the path of a template
    /// or its text.
    ///
    /// # Errors
    /// A tokenizer that is missing or not supported, or a given template that is wrong. A model's own
    /// template may be wrong: the model still completes plain text.
    pub fn load(
        checkpoint: &Checkpoint,
        tokenizer: Option<&Path>,
        template: Option<&str>,
    ) -> anyhow::Result<Self> {
        let (tokenizer, own_template) = match tokenizer {
            None => halyard_text::load(checkpoint)?,
            Some(path) => from_elsewhere(path)
                .with_context(|| format!("cannot load the tokenizer of {}", path.display()))?,
        };
        let template = match template {
            None => own_template,
            Some(given) => Some(given_template(given, &tokenizer)?),
        };
        if let Some(Err(error)) = template.as_ref().map(ChatTemplate::check) {
            tracing::warn!(%error, "chats will be refused");
        }
        let vocab_size = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let lengths = (0..vocab_size).map(|id| tokenizer.token_bytes(id).len());
        let longest_token_bytes = lengths.max().unwrap_or(1);
        Ok(Self { tokenizer: Arc::new(tokenizer), template, longest_token_bytes })
    }
}

/// From a folder with a tokenizer and no weights, the tokenizer's file in it, or a GGUF.
fn from_elsewhere(path: &Path) -> anyhow::Result<(Tokenizer, Option<ChatTemplate>)> {
    let is_file_of_folder = path.extension().is_some_and(|extension| extension == "json");
    let folder = if is_file_of_folder { path.parent().unwrap_or(Path::new(".")) } else { path };
    if folder.is_dir() {
        return Ok((Tokenizer::from_folder(folder)?, None));
    }
    Ok(halyard_text::load(&Checkpoint::open(path)?)?)
}

/// A template by its path, or by its text, which no path looks like.
fn given_template(given: &str, tokenizer: &Tokenizer) -> anyhow::Result<ChatTemplate> {
    let looks_like_text = given.contains("{{") || given.contains("{%") || given.contains('\n');
    let text = if looks_like_text {
        given.to_owned()
    } else {
        std::fs::read_to_string(given)
            .with_context(|| format!("cannot read the chat template {given}"))?
    };
    let template = ChatTemplate::new(TemplateSources::from(text), tokenizer.special_tokens());
    template.check()?;
    Ok(template)
}

impl Text for ModelText {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, String> {
        self.tokenizer.encode(text, add_special_tokens).map_err(|error| error.to_string())
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut decoder = StreamDecoder::new(skip_special_tokens);
        let mut text: String =
            ids.iter().filter_map(|&id| decoder.push(&self.tokenizer, id)).collect();
        text.extend(decoder.finish(&self.tokenizer));
        text
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.token_bytes(id)
    }

    fn stream(&self, skip_special_tokens: bool) -> Box<dyn TextStream> {
        Box::new(ModelStream {
            tokenizer: Arc::clone(&self.tokenizer),
            decoder: StreamDecoder::after_prompt(skip_special_tokens),
        })
    }

    fn chat(&self, chat: &Chat<'_>) -> Result<String, ChatError> {
        let Some(template) = &self.template else {
            let message = "the model has no chat template; start the server with --chat-template";
            return Err(ChatError::Messages(message.into()));
        };
        let input = ChatInput {
            messages: chat.messages,
            tools: chat.tools,
            documents: chat.documents,
            add_generation_prompt: chat.add_generation_prompt,
            continue_final_message: chat.continue_final_message,
            kwargs: Some(&chat.kwargs),
        };
        template.render(&input).map_err(|error| {
            let message = error.to_string();
            if error.is_client_error() {
                ChatError::Messages(message)
            } else {
                ChatError::Template(message)
            }
        })
    }

    fn longest_token_bytes(&self) -> usize {
        self.longest_token_bytes
    }
}

struct ModelStream {
    tokenizer: Arc<Tokenizer>,
    decoder: StreamDecoder,
}

impl TextStream for ModelStream {
    fn push(&mut self, id: u32) -> String {
        self.decoder.push(&self.tokenizer, id).unwrap_or_default()
    }

    fn finish(&mut self) -> String {
        self.decoder.finish(&self.tokenizer).unwrap_or_default()
    }
}
