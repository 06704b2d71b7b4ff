//! What can go wrong with text.

use std::path::PathBuf;

/// A tokenizer that can't be used, or text and ids it can't handle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The operating system refused to read a file.
    #[error("{}: read failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Neither a `tokenizer.json` nor a vocabulary in a GGUF.
    #[error("{}: no tokenizer; expected tokenizer.json beside the weights, or a GGUF with a vocabulary", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A JSON file that is not JSON of the right form.
    #[error("{what} is not valid")]
    Json {
        /// `tokenizer.json` or `tokenizer_config.json`.
        what: &'static str,
        /// Where and how.
        #[source]
        source: serde_json::Error,
    },
    /// A field or key with a value that can't be.
    #[error("{field} is {value}, expected {expected}")]
    Invalid {
        /// Its name.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
    /// A tokenizer of a kind that is not supported.
    #[error("{field} is {value}, supported: {supported}")]
    Unsupported {
        /// The field that says so.
        field: String,
        /// What it holds.
        value: String,
        /// What is supported.
        supported: String,
    },
    /// The tokenizer library refused.
    #[error("{action} failed: {message}")]
    Library {
        /// What was tried.
        action: &'static str,
        /// Its message.
        message: String,
    },
    /// An id outside the vocabulary.
    #[error("token id {id} is not in the vocabulary, whose ids go up to {last}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// The largest id there is.
        last: u32,
    },
}

impl TokenizerError {
    pub(crate) fn unsupported(field: &str, value: &str, supported: &str) -> Self {
        Self::Unsupported {
            field: field.to_owned(),
            value: shorten(value),
            supported: supported.to_owned(),
        }
    }

    pub(crate) fn invalid(field: &str, value: &str, expected: &str) -> Self {
        Self::Invalid {
            field: field.to_owned(),
            value: shorten(value),
            expected: expected.to_owned(),
        }
    }
}

/// A chat template that can't be used, or messages it can't render.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template's syntax is wrong.
    #[error("the chat template does not compile: {0}")]
    Syntax(String),
    /// The template called `raise_exception`: it does not accept these messages. A client's mistake.
    #[error("{0}")]
    Raised(String),
    /// The messages have a form that no template accepts. A client's mistake.
    #[error("{0}")]
    Messages(String),
    /// The template took too long or made too much text.
    #[error("the chat template exceeded its limit of {0}")]
    Limit(&'static str),
    /// The template failed otherwise.
    #[error("the chat template failed: {0}")]
    Render(String),
}

impl TemplateError {
    /// Whether the request caused it (HTTP 400), not the template (HTTP 500).
    #[must_use]
    pub fn is_client_error(&self) -> bool {
        matches!(self, Self::Raised(_) | Self::Messages(_))
    }
}

/// Values come from files and clients: a message must not carry a megabyte of one.
pub(crate) fn shorten(text: &str) -> String {
    const LIMIT: usize = 120;
    if text.len() <= LIMIT {
        return text.to_owned();
    }
    let end = (0..=LIMIT).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}…", &text[..end])
}
