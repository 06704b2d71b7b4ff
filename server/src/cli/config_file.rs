//! `--config FILE.yaml`: keys are long flags.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use serde_norway::Value;

use super::normalize::{Flags, Meaning, UsageError};

/// A file of flags that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no YAML, or no mapping of flags.
    #[error("the configuration {} is wrong: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the place if known.
        message: String,
    },
}

/// Reads `path` into arguments as they would stand on the line.
pub(super) fn read(path: &Path, flags: &Flags) -> Result<Vec<OsString>, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let wrong = |message| ConfigError::Wrong { path: path.to_owned(), message };
    let entries = parse_config(&text).map_err(wrong)?;
    let mut args = Vec::new();
    for (key, setting) in entries {
        push(&mut args, flags, &key, setting).map_err(|fault| wrong(fault.in_words(&key)))?;
    }
    Ok(args.into_iter().map(Into::into).collect())
}

/// One key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `key: true`
    Switch(bool),
    /// A scalar, a list of scalars, or a mapping as its JSON.
    Values(Vec<String>),
}

/// Parses a configuration: a YAML mapping of flags to scalars, lists of scalars, or mappings. Keys
/// with `null` are left out.
///
/// # Errors
/// What is wrong, for people.
pub fn parse_config(text: &str) -> Result<Vec<(String, Setting)>, String> {
    let root = match serde_norway::from_str::<Value>(text).map_err(|error| error.to_string())? {
        Value::Mapping(root) => root,
        Value::Null => return Ok(Vec::new()),
        _ => return Err("expected `flag: value` lines".into()),
    };
    let mut entries = Vec::with_capacity(root.len());
    for (key, value) in root {
        let Value::String(key) = key else {
            return Err(format!("the key {} is no name", scalar_or_json(&key)?));
        };
        if key.trim_start_matches('-') == "config" {
            return Err("a configuration cannot name another one".into());
        }
        let setting = match value {
            Value::Null => continue,
            Value::Bool(on) => Setting::Switch(on),
            Value::Sequence(items) => {
                Setting::Values(items.iter().map(scalar_or_json).collect::<Result<_, _>>()?)
            }
            other => Setting::Values(vec![scalar_or_json(&other)?]),
        };
        entries.push((key.trim_start_matches('-').to_owned(), setting));
    }
    Ok(entries)
}

fn scalar_or_json(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(on) => Ok(on.to_string()),
        other => serde_json::to_string(other).map_err(|error| error.to_string()),
    }
}

fn push(
    args: &mut Vec<String>,
    flags: &Flags,
    key: &str,
    setting: Setting,
) -> Result<(), ConfigFault> {
    let (name, takes_values) = match flags.resolve(key)? {
        Meaning::Own { name, takes_values } => (name, takes_values),
        Meaning::Foreign(flag) => (flag.name, flag.takes_values()),
        Meaning::Negated => return Ok(()),
    };
    match setting {
        Setting::Switch(on) if takes_values => args.push(format!("--{name}={on}")),
        Setting::Switch(true) => args.push(format!("--{name}")),
        // Most switches are off when absent; those that are on have a counterpart.
        Setting::Switch(false) => {
            let counterpart = format!("no-{name}");
            if flags.is_own(&counterpart) {
                args.push(format!("--{counterpart}"));
            }
        }
        Setting::Values(_) if !takes_values => {
            return Err(ConfigFault::Value("a switch: expected true or false"));
        }
        Setting::Values(values) => match values.as_slice() {
            [] => {}
            // With `=`, so that a value may begin with a dash.
            [value] => args.push(format!("--{name}={value}")),
            _ => {
                args.push(format!("--{name}"));
                args.extend(values);
            }
        },
    }
    Ok(())
}

/// What may be wrong with one entry.
enum ConfigFault {
    Key(UsageError),
    Value(&'static str),
}

impl From<UsageError> for ConfigFault {
    fn from(error: UsageError) -> Self {
        Self::Key(error)
    }
}

impl ConfigFault {
    fn in_words(self, key: &str) -> String {
        match self {
            Self::Key(UsageError::Unknown { nearest: Some(nearest), .. }) => {
                format!("unknown key `{key}`; did you mean `{nearest}`?")
            }
            Self::Key(UsageError::Unknown { .. }) => format!("unknown key `{key}`"),
            Self::Key(other) => other.to_string(),
            Self::Value(fault) => format!("`{key}` is {fault}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_of_the_usual_kinds() {
        let text = "model: m\nport: 8001\nserved-model-name: [a, b]\nenforce_eager: true\nseed: null\nx: {a: 1}\n";
        let entries = parse_config(text).expect("good");
        let values = |list: &[&str]| Setting::Values(list.iter().map(|s| (*s).into()).collect());
        assert_eq!(
            entries,
            [
                ("model".into(), values(&["m"])),
                ("port".into(), values(&["8001"])),
                ("served-model-name".into(), values(&["a", "b"])),
                ("enforce_eager".into(), Setting::Switch(true)),
                ("x".into(), values(&["{\"a\":1}"])),
            ]
        );
        assert_eq!(parse_config(""), Ok(vec![]));
        for wrong in ["- a", "a: b: c", "1: 2", "config: other.yaml", "a: [", "text"] {
            assert!(parse_config(wrong).is_err(), "{wrong}");
        }
    }
}
