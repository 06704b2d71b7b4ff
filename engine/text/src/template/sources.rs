//! Where a model keeps its templates.

use std::path::Path;

use halyard_weights::gguf::Metadata;
use serde_json::Value;

use crate::error::TokenizerError;

/// The template texts of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSources {
    /// For conversations.
    pub default: String,
    /// For conversations with tools, where the model has one of its own for them.
    pub tool_use: Option<String>,
}

impl From<String> for TemplateSources {
    fn from(default: String) -> Self {
        Self { default, tool_use: None }
    }
}

impl TemplateSources {
    /// `chat_template.jinja`, which wins, or the `chat_template` of `tokenizer_config.json`: a text or a list of
    /// `{name, template}`.
    pub(crate) fn from_folder(
        folder: &Path,
        from_config: &Value,
    ) -> Result<Option<Self>, TokenizerError> {
        let path = folder.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(Some(text.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(TokenizerError::Io { path, source }),
        }
        Self::from_config(from_config)
    }

    fn from_config(value: &Value) -> Result<Option<Self>, TokenizerError> {
        let list = match value {
            Value::Null => return Ok(None),
            Value::String(text) => return Ok(Some(text.clone().into())),
            Value::Array(list) => list,
            other => return Err(bad(other)),
        };
        let named = |name: &str| {
            let entry = list.iter().find(|entry| entry["name"] == name)?;
            Some(entry["template"].as_str().map(str::to_owned).ok_or_else(|| bad(entry)))
        };
        let default = named("default").ok_or_else(|| bad(value))??;
        Ok(Some(Self { default, tool_use: named("tool_use").transpose()? }))
    }

    /// `tokenizer.chat_template` and `tokenizer.chat_template.tool_use`.
    #[must_use]
    pub fn from_gguf(metadata: Metadata<'_>) -> Option<Self> {
        let text = |key: &str| metadata.str(key).map(str::to_owned);
        Some(Self {
            default: text("tokenizer.chat_template")?,
            tool_use: text("tokenizer.chat_template.tool_use"),
        })
    }
}

fn bad(value: &Value) -> TokenizerError {
    TokenizerError::invalid(
        "tokenizer_config.json chat_template",
        &value.to_string(),
        "a text, or a list of {name, template} with one named default",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_templates() {
        let json = |text: &str| TemplateSources::from_config(&serde_json::from_str(text).unwrap());
        let sources = json(
            r#"[{"name":"default","template":"a"},{"name":"tool_use","template":"b"},{"name":"rag","template":"c"}]"#,
        );
        let sources = sources.unwrap().unwrap();
        assert_eq!((sources.default.as_str(), sources.tool_use.as_deref()), ("a", Some("b")));
        assert_eq!(json("null").unwrap(), None);
        assert!(json(r#"[{"name":"other","template":"a"}]"#).is_err());
        assert!(json("3").is_err());
    }

    #[test]
    fn the_jinja_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let config = Value::from("config");
        let read = || TemplateSources::from_folder(dir.path(), &config).unwrap().unwrap().default;
        assert_eq!(read(), "config");
        std::fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(read(), "file");
    }
}
