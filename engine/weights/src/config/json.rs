//! Typed fields of a JSON object, with errors that name the field.

use serde_json::{Map, Value};

use crate::error::ConfigError;

/// An object and the path to it. A `null` field counts as absent, as in Hugging Face's files.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value, prefix: &'static str) -> Result<Self, ConfigError> {
        let map = value.as_object().ok_or_else(|| {
            let field = if prefix.is_empty() { "(the whole file)" } else { prefix };
            ConfigError::invalid(field.trim_end_matches('.'), value, "an object")
        })?;
        Ok(Self { map, prefix })
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn path(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn typed<T>(
        &self,
        field: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        match read(value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(ConfigError::invalid(&self.path(field), value, expected)),
        }
    }

    pub(super) fn size(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(field, "a whole number >= 0", |v| usize::try_from(v.as_u64()?).ok())
    }

    pub(super) fn required_size(&self, field: &str) -> Result<usize, ConfigError> {
        self.size(field)?.ok_or_else(|| ConfigError::missing(&self.path(field)))
    }

    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(field, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&self, field: &str) -> Result<f64, ConfigError> {
        self.number(field)?.ok_or_else(|| ConfigError::missing(&self.path(field)))
    }

    pub(super) fn bool(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(field, "true or false", Value::as_bool)
    }

    pub(super) fn str(&self, field: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(field, "a string", Value::as_str)
    }

    pub(super) fn array(&self, field: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        self.typed(field, "an array", |v| v.as_array().map(Vec::as_slice))
    }

    pub(super) fn u32(&self, field: &str) -> Result<Option<u32>, ConfigError> {
        self.typed(field, "a whole number from 0 to 4294967295", |v| {
            u32::try_from(v.as_u64()?).ok()
        })
    }

    /// One token id or a list of them.
    pub(super) fn token_ids(&self, field: &str) -> Result<Vec<u32>, ConfigError> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let ids = self.typed(field, "a token id or a list of them", |value| match value {
            Value::Array(list) => list.iter().map(id).collect(),
            single => id(single).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}
