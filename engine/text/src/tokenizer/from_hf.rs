//! `tokenizer.json` and `tokenizer_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::template::TemplateProcessing;

use super::decoding::Decoding;
use super::{SpecialTokens, Tokenizer, guarded};
use crate::error::TokenizerError;

/// The parts of `tokenizer.json` that decide whether it is supported. The rest is the library's.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    decoder: Value,
    model: ModelHead,
}

#[derive(Deserialize)]
struct ModelHead {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

/// The parts of `tokenizer_config.json` that matter to a server.
#[derive(Debug, Default)]
pub(crate) struct TokenizerConfig {
    pub(crate) special: SpecialTokens,
    pub(crate) chat_template: Value,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    class: String,
}

impl TokenizerConfig {
    pub(crate) fn from_json(text: &str) -> Result<Self, TokenizerError> {
        let mut json: Value = serde_json::from_str(text)
            .map_err(|source| TokenizerError::Json { what: "tokenizer_config.json", source })?;
        let token = |name: &str| match &json[name] {
            Value::String(text) => Some(text.clone()),
            object => object["content"].as_str().map(str::to_owned),
        };
        Ok(Self {
            special: SpecialTokens {
                bos_token: token("bos_token"),
                eos_token: token("eos_token"),
                unk_token: token("unk_token"),
                pad_token: token("pad_token"),
            },
            add_bos: json["add_bos_token"].as_bool(),
            add_eos: json["add_eos_token"].as_bool(),
            class: json["tokenizer_class"].as_str().unwrap_or_default().to_owned(),
            chat_template: json.get_mut("chat_template").map(Value::take).unwrap_or_default(),
        })
    }

    /// Reads the file in a folder; one that is not there is an empty one.
    pub(crate) fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer_config.json");
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::from_json(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(TokenizerError::Io { path, source }),
        }
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where there is one, `tokenizer_config.json` from a model's folder.
    ///
    /// # Errors
    /// There is no `tokenizer.json`, or it can't be read or used.
    pub fn from_folder(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => TokenizerError::NotFound { path: folder.to_owned() },
            _ => TokenizerError::Io { path, source },
        })?;
        Self::with_config(&json, TokenizerConfig::from_folder(folder)?)
    }

    /// Reads the texts of `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// One of them is malformed, or the tokenizer is of an unsupported kind.
    pub fn from_json(tokenizer: &[u8], config: Option<&str>) -> Result<Self, TokenizerError> {
        let config = config.map_or(Ok(TokenizerConfig::default()), TokenizerConfig::from_json)?;
        Self::with_config(tokenizer, config)
    }

    fn with_config(json: &[u8], config: TokenizerConfig) -> Result<Self, TokenizerError> {
        let head: Head = serde_json::from_slice(json)
            .map_err(|source| TokenizerError::Json { what: "tokenizer.json", source })?;
        head.model.check()?;
        let decoding = Decoding::from_json(&head.decoder)?;
        let mut inner =
            guarded("reading tokenizer.json", || tokenizers::Tokenizer::from_bytes(json))?;
        if let Some(processor) = config.bos_and_eos(&inner)? {
            inner.with_post_processor(Some(processor));
        }
        Self::new(inner, decoding, config.special)
    }
}

impl ModelHead {
    fn check(&self) -> Result<(), TokenizerError> {
        let unsupported = |field: &str, value: &str, supported| {
            let field = format!("tokenizer.json model.{field}");
            Err(TokenizerError::unsupported(&field, value, supported))
        };
        // Old files leave the type out.
        match self.kind.as_deref() {
            None | Some("BPE") => {}
            Some(other) => return unsupported("type", other, "BPE"),
        }
        if let Some(dropout) = self.dropout.filter(|p| *p > 0.0) {
            return unsupported("dropout", &dropout.to_string(), "null");
        }
        for (field, value) in [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                return unsupported(field, value, "null");
            }
        }
        Ok(())
    }
}

impl TokenizerConfig {
    /// Llama's tokenizer classes take `add_bos_token` and `add_eos_token` from the configuration, whatever
    /// `tokenizer.json` says; the others have it in `tokenizer.json`.
    fn bos_and_eos(
        &self,
        inner: &tokenizers::Tokenizer,
    ) -> Result<Option<PostProcessorWrapper>, TokenizerError> {
        let llama = matches!(
            self.class.as_str(),
            "LlamaTokenizer"
                | "LlamaTokenizerFast"
                | "CodeLlamaTokenizer"
                | "CodeLlamaTokenizerFast"
        );
        if !llama || (self.add_bos.is_none() && self.add_eos.is_none()) {
            return Ok(None);
        }
        let bos = self.special.bos_token.as_deref().filter(|_| self.add_bos.unwrap_or(true));
        let eos = self.special.eos_token.as_deref().filter(|_| self.add_eos.unwrap_or(false));
        around(inner, bos, eos).map(Some)
    }
}

/// A post-processor that puts tokens before and after a text.
pub(super) fn around(
    inner: &tokenizers::Tokenizer,
    bos: Option<&str>,
    eos: Option<&str>,
) -> Result<PostProcessorWrapper, TokenizerError> {
    let mut tokens = Vec::new();
    for token in [bos, eos].into_iter().flatten() {
        let id = inner.token_to_id(token).ok_or_else(|| {
            TokenizerError::invalid("bos_token or eos_token", token, "a token of the vocabulary")
        })?;
        tokens.push((token.to_owned(), id));
    }
    let single: Vec<&str> = [bos, Some("$A"), eos].into_iter().flatten().collect();
    let action = "setting bos and eos";
    guarded(action, || {
        let mut builder = TemplateProcessing::builder();
        builder.try_single(single)?;
        Ok(builder.special_tokens(tokens).build()?)
    })
    .map(PostProcessorWrapper::Template)
}
