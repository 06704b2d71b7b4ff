//! A model's weight files, opened and indexed by canonical tensor names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::config::{ModelConfig, QuantMethod, Quantization};
use crate::dequant::{DequantError, dequantize};
use crate::error::{FormatError, WeightsError};
use crate::format::TensorFormat;
use crate::gguf::{Gguf, Metadata};
use crate::mapping::Mapping;
use crate::names::{self, Canonical};
use crate::open::{ModelFiles, ascend_description, io};
use crate::safetensors_file::parse_safetensors;

/// More experts than any model has, few enough that a file can't make us list millions.
const MAX_EXPERTS: u64 = 65_536;
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The opened weight files of one model.
///
/// Tensors are found under Hugging Face's names, whatever the format:
/// `model.embed_tokens.weight`, `model.layers.L.self_attn.q_proj.weight`, `model.layers.L.mlp.gate_proj.weight`,
/// `model.norm.weight`, `lm_head.weight`; for mixtures of experts always `model.layers.L.mlp.gate.weight` (router),
/// `model.layers.L.mlp.experts.E.{gate,up,down}_proj.weight`, `model.layers.L.mlp.shared_expert.{…}_proj.weight` and
/// `model.layers.L.mlp.shared_expert_gate.weight`.
///
/// Opening maps the files and reads their headers; bytes are read from disk when they are touched. All bounds are
/// checked at open. A file that someone truncates *while* its bytes are being read is beyond what a process can
/// defend against; one that was truncated earlier is an error of [`Checkpoint::tensor`].
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    folder: PathBuf,
    shards: Vec<Shard>,
    tensors: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Shard {
    mapping: Mapping,
    gguf: Option<Gguf>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    offset: usize,
    num_bytes: usize,
    format: TensorFormat,
    shape: Vec<u64>,
}

/// A tensor's bytes in the mapped file.
#[derive(Debug, Clone)]
pub struct TensorData<'a> {
    /// The canonical name.
    pub name: &'a str,
    /// How the elements are stored.
    pub format: TensorFormat,
    /// Row-major dimensions; a linear layer's are "out, in".
    pub shape: Vec<u64>,
    /// All of the elements, without padding. Not aligned: safetensors promises nothing.
    pub bytes: &'a [u8],
}

impl TensorData<'_> {
    /// The values in `f32`, exactly.
    ///
    /// # Errors
    /// The elements are integers.
    pub fn dequantize(&self) -> Result<Vec<f32>, DequantError> {
        dequantize(self.format, self.bytes)
    }
}

impl Checkpoint {
    /// Opens a folder with safetensors (one or sharded) or one GGUF, a `.safetensors` file, or a `.gguf` file (any
    /// part of a split one).
    ///
    /// # Errors
    /// No model at the path, a file is missing or malformed, or a tensor is there twice.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let files = ModelFiles::find(path)?;
        let mut checkpoint = Self {
            path: path.to_owned(),
            folder: files.folder,
            shards: Vec::with_capacity(files.weights.len()),
            tensors: HashMap::new(),
        };
        for (position, weights) in files.weights.iter().enumerate() {
            checkpoint.add_file(weights, |stored| match &files.index {
                Some(index) => index.get(stored) == Some(&position),
                None => true,
            })?;
        }
        checkpoint.check_split()?;
        for (stored, &position) in files.index.iter().flatten() {
            if !checkpoint.tensors.contains_key(&names::from_hf(stored)) {
                return Err(WeightsError::MissingTensor {
                    name: stored.clone(),
                    path: files.weights[position].clone(),
                    nearest: Vec::new(),
                });
            }
        }
        Ok(checkpoint)
    }

    fn add_file(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        let mapping = Mapping::open(path)?;
        let malformed = |source| WeightsError::Format { path: path.to_owned(), source };
        let shard = self.shards.len();
        let entry = |offset: u64, num_bytes: u64, format, shape: &[u64]| {
            // Both were checked against the file's length, which is a `usize`.
            let offset = usize::try_from(offset).expect("the offset lies in the file");
            let num_bytes = usize::try_from(num_bytes).expect("the tensor lies in the file");
            Entry { shard, offset, num_bytes, format, shape: shape.to_vec() }
        };
        let mut entries = Vec::new();
        let gguf = if Gguf::is_gguf(mapping.bytes()) {
            let gguf = Gguf::parse(mapping.bytes()).map_err(malformed)?;
            for tensor in gguf.tensors() {
                let whole = entry(tensor.offset, tensor.num_bytes, tensor.format, &tensor.shape);
                expand(&tensor.name, whole, &mut entries).map_err(malformed)?;
            }
            Some(gguf)
        } else {
            let parsed = parse_safetensors(mapping.bytes()).map_err(malformed)?;
            for tensor in parsed.iter().filter(|tensor| wanted(&tensor.name)) {
                let whole = entry(tensor.offset, tensor.num_bytes, tensor.format, &tensor.shape);
                entries.push((names::from_hf(&tensor.name), whole));
            }
            None
        };
        self.shards.push(Shard { mapping, gguf });
        entries.into_iter().try_for_each(|(name, entry)| self.add_tensor(name, entry))
    }

    fn add_tensor(&mut self, name: String, entry: Entry) -> Result<(), WeightsError> {
        if let Some(first) = self.tensors.get(&name) {
            let path = |shard: usize| self.shards[shard].mapping.path().to_owned();
            let (first, second) = (path(first.shard), path(entry.shard));
            return Err(WeightsError::DuplicateTensor { name, first, second });
        }
        self.tensors.insert(name, entry);
        Ok(())
    }

    /// A split GGUF says how many parts and tensors it has.
    fn check_split(&self) -> Result<(), WeightsError> {
        let Some(metadata) = self.gguf() else { return Ok(()) };
        let expect = |key: &str, found: usize| match metadata.u64(key) {
            Some(said) if said != found as u64 => Err(WeightsError::Format {
                path: self.path.clone(),
                source: FormatError::invalid(key, said, format!("{found}, as there are")),
            }),
            _ => Ok(()),
        };
        if metadata.u64("split.count").is_some_and(|count| count > 0) {
            expect("split.count", self.shards.len())?;
            let ggufs = self.shards.iter().filter_map(|shard| shard.gguf.as_ref());
            expect("split.tensors.count", ggufs.map(|gguf| gguf.tensors().len()).sum())?;
        }
        Ok(())
    }

    /// The path that was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that holds the model's other files, such as `tokenizer.json`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the weights are in GGUF files.
    #[must_use]
    pub fn is_gguf(&self) -> bool {
        self.shards.first().is_some_and(|shard| shard.gguf.is_some())
    }

    /// The metadata of a GGUF, of its first part if it is split.
    #[must_use]
    pub fn gguf(&self) -> Option<Metadata<'_>> {
        let shard = self.shards.first()?;
        Some(shard.gguf.as_ref()?.metadata(shard.mapping.bytes()))
    }

    /// The model's configuration: a GGUF's metadata, or `config.json` and `generation_config.json` in the folder.
    ///
    /// # Errors
    /// It is missing, malformed or asks for something unsupported.
    pub fn config(&self) -> Result<ModelConfig, WeightsError> {
        if self.is_gguf() {
            return self.config_from_gguf();
        }
        let path = self.folder.join("config.json");
        let config = std::fs::read_to_string(&path).map_err(io(&path, "read"))?;
        let generation_path = self.folder.join("generation_config.json");
        let generation = match std::fs::read_to_string(&generation_path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(io(&generation_path, "read")(error)),
        };
        let mut config = ModelConfig::from_json(&config, generation.as_deref())
            .map_err(|source| WeightsError::Config { path, source })?;
        if config.quantization.is_none()
            && let Some(path) = ascend_description(&self.folder)?
        {
            let text = std::fs::read_to_string(&path).map_err(io(&path, "read"))?;
            let quantization = Quantization::from_ascend(&text, &config)
                .map_err(|source| WeightsError::Config { path, source })?;
            config.quantization = Some(quantization);
        }
        Ok(config)
    }

    /// How the weights were quantised, by the name that vLLM's `--quantization` has for it; `None` if they were not.
    #[must_use]
    pub fn quant_method(&self, config: &ModelConfig) -> Option<QuantMethod> {
        if self.is_gguf() {
            return Some(QuantMethod::Gguf);
        }
        config.quantization.map(|quantization| quantization.method())
    }

    fn config_from_gguf(&self) -> Result<ModelConfig, WeightsError> {
        let bad = |source| WeightsError::Config { path: self.path.clone(), source };
        let factors = match self.contains(ROPE_FACTORS) {
            true => Some(self.tensor(ROPE_FACTORS)?.dequantize().map_err(|error| {
                bad(crate::ConfigError::invalid(ROPE_FACTORS, error, "floats"))
            })?),
            false => None,
        };
        let ggufs = || self.shards.iter().filter_map(|shard| Some((shard.gguf.as_ref()?, shard)));
        let (first, shard) = ggufs().next().ok_or_else(|| WeightsError::NotAModel {
            path: self.path.clone(),
            why: "no GGUF file".to_owned(),
        })?;
        let tensors = ggufs().flat_map(|(gguf, _)| gguf.tensors());
        ModelConfig::from_gguf(first.metadata(shard.mapping.bytes()), tensors, factors).map_err(bad)
    }

    /// All canonical names, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is such a tensor.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by its canonical name.
    ///
    /// # Errors
    /// There is none, and the error names the nearest; or its file has become shorter since it was opened.
    pub fn tensor(&self, name: &str) -> Result<TensorData<'_>, WeightsError> {
        let Some((name, entry)) = self.tensors.get_key_value(name) else {
            return Err(WeightsError::MissingTensor {
                name: name.to_owned(),
                path: self.path.clone(),
                nearest: names::nearest(name, self.names()),
            });
        };
        let mapping = &self.shards[entry.shard].mapping;
        mapping.check_length()?;
        let bytes = &mapping.bytes()[entry.offset..][..entry.num_bytes];
        Ok(TensorData { name, format: entry.format, shape: entry.shape.clone(), bytes })
    }

    /// The file of a tensor, for messages.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        let shard = self.tensors.get(name).map(|entry| &self.shards[entry.shard]);
        shard.map_or(&self.path, |shard| shard.mapping.path())
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.mapping.bytes().len() as u64).sum()
    }

    /// Tells the kernel that the files will be read from front to back.
    pub fn advise_sequential(&self) {
        for shard in &self.shards {
            shard.mapping.advise_sequential();
        }
    }

    /// Gives the pages under `bytes` (from a [`TensorData`] of this checkpoint, or a part of one) back to the kernel,
    /// so that a model being packed is not in memory twice. Reading them again is allowed and reads the file again.
    pub fn release(&self, bytes: &[u8]) {
        for shard in &self.shards {
            shard.mapping.release(bytes);
        }
    }
}

/// Lists a GGUF tensor under its canonical name, a stack of experts under one name each.
fn expand(
    stored: &str,
    whole: Entry,
    entries: &mut Vec<(String, Entry)>,
) -> Result<(), FormatError> {
    let (prefix, suffix) = match names::from_gguf(stored) {
        Canonical::Experts { prefix, suffix } => (prefix, suffix),
        Canonical::One(name) => {
            entries.push((name, with_gate_row(stored, whole)));
            return Ok(());
        }
    };
    let (&num_experts, shape) = match whole.shape.split_first() {
        Some((experts, shape)) if shape.len() == 2 && (1..=MAX_EXPERTS).contains(experts) => {
            (experts, shape)
        }
        _ => {
            return Err(FormatError::invalid(
                format!("tensor {stored} shape"),
                format!("{:?}", whole.shape),
                format!("[experts, out, in] with 1 to {MAX_EXPERTS} experts"),
            ));
        }
    };
    let num_experts = usize::try_from(num_experts).expect("at most 65536");
    let num_bytes = whole.num_bytes / num_experts;
    entries.extend((0..num_experts).map(|expert| {
        let entry = Entry {
            offset: whole.offset + expert * num_bytes,
            num_bytes,
            shape: shape.to_vec(),
            ..whole
        };
        (format!("{prefix}{expert}{suffix}"), entry)
    }));
    Ok(())
}

/// GGUF keeps the shared expert's gate as a vector, Hugging Face as a matrix of one row.
fn with_gate_row(stored: &str, mut entry: Entry) -> Entry {
    if stored.ends_with("ffn_gate_inp_shexp.weight") && entry.shape.len() == 1 {
        entry.shape.insert(0, 1);
    }
    entry
}
