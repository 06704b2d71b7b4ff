//! Which files make up the model at a path.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::error::{FormatError, WeightsError, shorten};

/// The weight files of one model, and the folder where its JSON files are.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    pub(crate) weights: Vec<PathBuf>,
    /// From the index of a sharded checkpoint: stored tensor name to position in `weights`.
    pub(crate) index: Option<HashMap<String, usize>>,
    pub(crate) folder: PathBuf,
}

impl ModelFiles {
    pub(crate) fn find(path: &Path) -> Result<Self, WeightsError> {
        let metadata = std::fs::metadata(path).map_err(io(path, "stat"))?;
        if metadata.is_dir() {
            return Self::in_folder(path);
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let weights = match SplitName::parse(name) {
            Some(split) => split.siblings(&folder),
            None => vec![path.to_owned()],
        };
        Ok(Self { weights, index: None, folder })
    }

    fn in_folder(folder: &Path) -> Result<Self, WeightsError> {
        let index = folder.join("model.safetensors.index.json");
        if index.is_file() {
            return Self::from_index(folder, &index);
        }
        let single = folder.join("model.safetensors");
        let weights = if single.is_file() { vec![single] } else { files_by_extension(folder)? };
        Ok(Self { weights, index: None, folder: folder.to_owned() })
    }

    fn from_index(folder: &Path, index: &Path) -> Result<Self, WeightsError> {
        let bad = |what: &str, value: String, expected: &str| WeightsError::Format {
            path: index.to_owned(),
            source: FormatError::invalid(what, shorten(value), expected),
        };
        let text = std::fs::read(index).map_err(io(index, "read"))?;
        let json: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| bad("content", error.to_string(), "JSON"))?;
        let map = json
            .get("weight_map")
            .and_then(serde_json::Value::as_object)
            .ok_or_else(|| bad("weight_map", "not an object".to_owned(), "names to file names"))?;
        let mut weights = Vec::new();
        let mut positions = HashMap::new();
        let mut by_tensor = HashMap::with_capacity(map.len());
        for (tensor, file) in map {
            // A name that leads out of the folder would let a downloaded model read any file.
            let file = file
                .as_str()
                .filter(|name| {
                    !name.is_empty() && Path::new(name).file_name() == Some(name.as_ref())
                })
                .ok_or_else(|| bad("weight_map entry", file.to_string(), "a plain file name"))?;
            let position = *positions.entry(file).or_insert_with(|| {
                weights.push(folder.join(file));
                weights.len() - 1
            });
            by_tensor.insert(tensor.clone(), position);
        }
        Ok(Self { weights, index: Some(by_tensor), folder: folder.to_owned() })
    }
}

/// Without an index: all safetensors of the folder, or its one GGUF.
fn files_by_extension(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let mut safetensors = Vec::new();
    let mut ggufs = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io(folder, "read"))? {
        let path = entry.map_err(io(folder, "read"))?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => safetensors.push(path),
            Some("gguf") => ggufs.push(path),
            _ => {}
        }
    }
    safetensors.sort();
    ggufs.sort();
    if !safetensors.is_empty() {
        return Ok(safetensors);
    }
    let not_a_model = |why| WeightsError::NotAModel { path: folder.to_owned(), why };
    let groups: HashSet<_> = ggufs
        .iter()
        .map(|path| SplitName::of(path).map(|split| split.prefix.to_owned()).ok_or(path))
        .collect();
    match ggufs.first() {
        None => Err(not_a_model("no weight files in it".to_owned())),
        Some(first) if groups.len() == 1 => Ok(SplitName::of(first)
            .map_or_else(|| vec![first.clone()], |split| split.siblings(folder))),
        Some(_) => {
            let names: Vec<_> =
                ggufs.iter().filter_map(|path| path.file_name()?.to_str()).collect();
            Err(not_a_model(format!(
                "it holds several GGUF files ({}): name one",
                names.join(", ")
            )))
        }
    }
}

/// What msModelSlim wrote beside the weights: `quant_model_description.json`, by older releases with the way of quantising in its name.
pub(crate) fn ascend_description(folder: &Path) -> Result<Option<PathBuf>, WeightsError> {
    let mut found: Option<PathBuf> = None;
    for entry in std::fs::read_dir(folder).map_err(io(folder, "read"))? {
        let path = entry.map_err(io(folder, "read"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with("quant_model_description") || !name.ends_with(".json") {
            continue;
        }
        if found.is_some() {
            let why = "it holds several files quant_model_description*.json".to_owned();
            return Err(WeightsError::NotAModel { path: folder.to_owned(), why });
        }
        found = Some(path);
    }
    Ok(found)
}

/// A name such as `model-00002-of-00003.gguf`.
#[derive(Debug, PartialEq, Eq)]
struct SplitName<'a> {
    prefix: &'a str,
    count: usize,
}

impl<'a> SplitName<'a> {
    fn of(path: &'a Path) -> Option<Self> {
        Self::parse(path.file_name()?.to_str()?)
    }

    fn parse(name: &'a str) -> Option<Self> {
        let stem = name.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let five_digits = |text: &str| {
            (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())
        };
        let (number, count): (usize, usize) = (five_digits(number)??, five_digits(count)??);
        (1..=count).contains(&number).then_some(Self { prefix, count })
    }

    fn siblings(&self, folder: &Path) -> Vec<PathBuf> {
        let name = |number| format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count);
        (1..=self.count).map(|number| folder.join(name(number))).collect()
    }
}

pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> WeightsError {
    let path = path.to_owned();
    move |source| WeightsError::Io { path, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_names() {
        let split = SplitName::parse("big-model-00002-of-00003.gguf").unwrap();
        assert_eq!(split, SplitName { prefix: "big-model", count: 3 });
        assert_eq!(split.siblings(Path::new("d"))[0], Path::new("d/big-model-00001-of-00003.gguf"));
        assert_eq!(SplitName::parse("model-00004-of-00003.gguf"), None);
        assert_eq!(SplitName::parse("model-1-of-3.gguf"), None);
        assert_eq!(SplitName::parse("model.gguf"), None);
    }

    #[test]
    fn a_folder_without_weights() {
        let dir = tempfile::tempdir().unwrap();
        let error = ModelFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("no weight files"), "{error}");
    }

    #[test]
    fn several_ggufs_must_be_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.gguf", "b.gguf"] {
            std::fs::write(dir.path().join(name), []).unwrap();
        }
        let error = ModelFiles::find(dir.path()).unwrap_err().to_string();
        assert!(error.contains("a.gguf, b.gguf"), "{error}");
    }

    #[test]
    fn an_index_must_stay_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        for file in ["../x", "/etc/passwd", "a/b", "", ".."] {
            std::fs::write(&index, format!(r#"{{"weight_map":{{"t":"{file}"}}}}"#)).unwrap();
            let error = ModelFiles::find(dir.path()).unwrap_err();
            assert!(matches!(error, WeightsError::Format { .. }), "{file}");
        }
    }
}
