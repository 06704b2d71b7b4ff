//! What can be wrong with a model's files.

use std::path::PathBuf;

/// A file that can't be used, or a tensor that isn't in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{}: {action} failed", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, e.g. `open`.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The path holds no model, or more than one.
    #[error("{}: {why}; expected a folder with config.json and *.safetensors, a .safetensors file, or a .gguf file", path.display())]
    NotAModel {
        /// What was opened.
        path: PathBuf,
        /// What is missing or ambiguous.
        why: String,
    },
    /// The file's structure is wrong.
    #[error("{}: not a usable weight file", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where and how.
        #[source]
        source: FormatError,
    },
    /// The configuration is wrong or not supported.
    #[error("{}: not a usable model configuration", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Which field.
        #[source]
        source: ConfigError,
    },
    /// A file grew shorter after it was opened, so its mapping must not be read any more.
    #[error("{}: the file has {now} bytes, it had {then} when it was opened", path.display())]
    FileShrank {
        /// The file.
        path: PathBuf,
        /// Bytes at open.
        then: u64,
        /// Bytes now.
        now: u64,
    },
    /// Two files (or two spellings of a name) hold the same tensor.
    #[error("tensor {name} is there twice: in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        /// The canonical name.
        name: String,
        /// The file it was found in first.
        first: PathBuf,
        /// The file it was found in again.
        second: PathBuf,
    },
    /// A tensor that is not what its layer needs.
    #[error("tensor {name} in {} cannot be used", path.display())]
    Tensor {
        /// The canonical name.
        name: String,
        /// The file.
        path: PathBuf,
        /// How it differs.
        #[source]
        source: FormatError,
    },
    /// No such tensor.
    #[error("no tensor {name} in {}{}", path.display(), nearest_names(.nearest))]
    MissingTensor {
        /// The canonical name asked for.
        name: String,
        /// The checkpoint.
        path: PathBuf,
        /// Names that are there and look most like it, best first.
        nearest: Vec<String>,
    },
}

fn nearest_names(nearest: &[String]) -> String {
    if nearest.is_empty() {
        return String::new();
    }
    format!("; the nearest names there are {}", nearest.join(", "))
}

/// What is wrong inside a safetensors or GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file ends too early.
    #[error("{what} at byte {offset} needs {needed} bytes, the file has {available} left")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it starts.
        offset: u64,
        /// How many bytes it takes.
        needed: u64,
        /// How many there are.
        available: u64,
    },
    /// A value that the format does not allow.
    #[error("{what} is {value}, expected {expected}")]
    Invalid {
        /// The place, e.g. `tensor blk.0.attn_q.weight offset`.
        what: String,
        /// What stands there.
        value: String,
        /// What may stand there.
        expected: String,
    },
    /// Something valid that is not supported.
    #[error("{what} is {value}, supported: {supported}")]
    Unsupported {
        /// The place.
        what: String,
        /// What stands there.
        value: String,
        /// What could stand there.
        supported: &'static str,
    },
    /// A key or name that stands there twice.
    #[error("{what} {name} is there twice")]
    Duplicate {
        /// `metadata key` or `tensor`.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// Two tensors share bytes.
    #[error("tensors {first} and {second} overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The one that starts inside it.
        second: String,
    },
    /// The safetensors header.
    #[error("bad safetensors header: {0}")]
    Safetensors(String),
}

impl FormatError {
    #[expect(clippy::needless_pass_by_value, reason = "callers pass numbers and texts alike")]
    pub(crate) fn invalid(
        what: impl Into<String>,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Invalid { what: what.into(), value: value.to_string(), expected: expected.into() }
    }
}

/// What is wrong with a model configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON.
    #[error("not valid JSON")]
    Json(#[from] serde_json::Error),
    /// A field that must be there.
    #[error("field {field} is missing")]
    Missing {
        /// Its name, dotted where nested.
        field: String,
    },
    /// A field whose value can't be.
    #[error("field {field} is {value}, expected {expected}")]
    Invalid {
        /// Its name, dotted where nested.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        expected: String,
    },
    /// A field whose value is fine, but not supported here.
    #[error("field {field} is {value}, supported: {supported}")]
    Unsupported {
        /// Its name, dotted where nested.
        field: String,
        /// What it holds.
        value: String,
        /// What is supported.
        supported: String,
    },
}

impl ConfigError {
    pub(crate) fn missing(field: &str) -> Self {
        Self::Missing { field: field.to_owned() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers pass numbers and texts alike")]
    pub(crate) fn invalid(field: &str, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.to_owned(),
            value: shorten(value.to_string()),
            expected: expected.into(),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers pass numbers and texts alike")]
    pub(crate) fn unsupported(
        field: &str,
        value: impl ToString,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            field: field.to_owned(),
            value: shorten(value.to_string()),
            supported: supported.into(),
        }
    }
}

/// Values come from files: an error message must not carry a megabyte of one.
pub(crate) fn shorten(text: String) -> String {
    const LIMIT: usize = 120;
    if text.len() <= LIMIT {
        return text;
    }
    let end = (0..=LIMIT).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}…", &text[..end])
}
