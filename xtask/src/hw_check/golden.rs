//! The golden models, by `halyard generate`: greedy tokens must be those of an independent implementation.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Backend, Place};
use crate::tool::{self, target};

const MODELS: &str = "testdata/models";

/// Numbers of devices that can share a model of plain numbers: those have four heads. What a quantised one has of blocks does not come out
/// even.
const RANKS: [usize; 3] = [1, 2, 4];

/// A model on some devices.
#[derive(Debug, Serialize)]
pub(super) struct Trial {
    pub(super) model: String,
    pub(super) ranks: usize,
    pub(super) graphs: bool,
    /// What went wrong.
    pub(super) problem: Option<String>,
}

/// A type in which the backend computes the golden tokens, and what it needs for weights of which it has no products: GGUF and FP8 become
/// plain numbers on NPUs, where scales of other forms want f16.
fn flags(backend: Backend) -> &'static [&'static str] {
    match backend {
        Backend::Cuda => &["--dtype", "float32"],
        Backend::Ascend => &["--dtype", "float16", "--allow-dequant"],
    }
}

/// How devices that share a model are told apart: HCCL's usual way is a process for each.
fn sharing(backend: Backend) -> &'static [&'static str] {
    match backend {
        Backend::Cuda => &[],
        Backend::Ascend => &["--distributed-executor-backend", "mp"],
    }
}

/// Whether decode steps are replayed from graphs, as they are where the backend captures what so many ranks do, and not.
fn graphs(backend: Backend, ranks: usize) -> &'static [bool] {
    match backend {
        Backend::Ascend if ranks > 1 => &[false],
        _ => &[true, false],
    }
}

/// A model's file or folder, its golden tokens, and whose tokenizer it has.
struct Model {
    name: String,
    path: PathBuf,
    golden: PathBuf,
    tokenizer: PathBuf,
    quantised: bool,
}

/// Each model whose name contains `part`, on each number of devices, launched kernel by kernel and from graphs.
pub(super) fn trials(place: &Place, devices: usize, part: Option<&str>) -> Result<Vec<Trial>> {
    let mut models = models()?;
    models.retain(|model| part.is_none_or(|part| model.name.contains(part)));
    ensure!(!models.is_empty(), "--golden: no golden model has this in its name");
    let mut trials = Vec::new();
    for model in &models {
        let prompts = prompts(&model.golden)?;
        let most = if model.quantised { 1 } else { devices };
        for ranks in RANKS.into_iter().filter(|&ranks| ranks <= most) {
            for &graphs in graphs(place.backend, ranks) {
                let outcome = tokens(place, model, &prompts, ranks, graphs);
                let outcome = outcome.and_then(|found| compare(&found, &prompts));
                let problem = outcome.err().map(|error| format!("{error:#}"));
                trials.push(Trial { model: model.name.clone(), ranks, graphs, problem });
            }
        }
    }
    Ok(trials)
}

/// Those of safetensors, then the forms of the GGUF model.
fn models() -> Result<Vec<Model>> {
    let mut models = Vec::new();
    for path in entries(Path::new(MODELS))? {
        let golden = path.join("golden.tensors");
        if !path.join("config.json").exists() || !golden.exists() {
            continue;
        }
        let name = file_name(&path);
        // Quantised models have the tokenizer of the model that they were made from.
        let forms = ["_awq", "_gptq", "_fp8", "_w8a8"];
        let like = forms.iter().find_map(|form| Some(name.split_once(form)?.0.to_owned()));
        let quantised = like.is_some();
        let tokenizer = Path::new(MODELS).join(like.unwrap_or_else(|| name.clone()));
        models.push(Model { name, path, golden, tokenizer, quantised });
    }
    let folder = Path::new(MODELS).join("gguf/llama");
    for path in entries(&folder)? {
        let name = file_name(&path);
        let form = name.strip_prefix("model-").and_then(|name| name.strip_suffix(".gguf"));
        if let Some(form) = form {
            let golden = folder.join(format!("golden-{form}.tensors"));
            models.push(Model {
                name: format!("gguf {form}"),
                path,
                golden,
                tokenizer: folder.clone(),
                quantised: true,
            });
        }
    }
    Ok(models)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = found.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A prompt, and the tokens that follow it.
type Prompt = [Vec<u32>; 2];

/// The prompts of a file of tensors: its header is the length of a JSON object, and that.
fn prompts(path: &Path) -> Result<Vec<Prompt>> {
    #[derive(Deserialize)]
    struct Tensor {
        data_offsets: [usize; 2],
    }
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    let (length, rest) = bytes.split_first_chunk::<8>().context("a file of tensors is empty")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let (header, data) = rest.split_at_checked(length).context("a header is cut off")?;
    let header: BTreeMap<String, Value> = serde_json::from_slice(header)?;
    let ids = |name: String| -> Result<Vec<u32>> {
        let tensor = header.get(&name).with_context(|| format!("{name} is not there"))?;
        let [from, to] = Tensor::deserialize(tensor)?.data_offsets;
        let words = data.get(from..to).context("a tensor is cut off")?.chunks_exact(4);
        Ok(words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    (0..3).map(|k| Ok([ids(format!("p{k}.input_ids"))?, ids(format!("p{k}.generated"))?])).collect()
}

/// What the model answers to each prompt.
fn tokens(
    place: &Place,
    model: &Model,
    prompts: &[Prompt],
    ranks: usize,
    graphs: bool,
) -> Result<Vec<Vec<u32>>> {
    let input = target().join("hw-check-prompts.jsonl");
    let line = |[prompt, generated]: &Prompt| {
        let request = json!({
            "prompt": prompt, "max_tokens": generated.len(), "temperature": 0,
            "ignore_eos": true, "return_token_ids": true,
        });
        format!("{request}\n")
    };
    fs::write(&input, prompts.iter().map(line).collect::<String>())?;
    let mut halyard = place.halyard();
    halyard.arg("generate").arg(&model.path).args(["--quiet", "--device", place.backend.id()]);
    halyard.args(flags(place.backend)).arg("--input").arg(&input);
    if ranks > 1 {
        halyard.args(sharing(place.backend));
    }
    halyard
        .args(["--tensor-parallel-size", &ranks.to_string(), "--tokenizer"])
        .arg(&model.tokenizer);
    if !graphs {
        halyard.arg("--enforce-eager");
    }
    let lines = tool::output_quietly(&mut halyard)?;
    let answer = |line: &str| -> Result<Vec<u32>> {
        let answer: Value = serde_json::from_str(line)?;
        Ok(serde_json::from_value(answer["choices"][0]["token_ids"].clone())?)
    };
    lines.lines().map(answer).collect()
}

fn compare(found: &[Vec<u32>], prompts: &[Prompt]) -> Result<()> {
    ensure!(found.len() == prompts.len(), "{} answers to {} prompts", found.len(), prompts.len());
    for (k, (found, [_, expected])) in found.iter().zip(prompts).enumerate() {
        if let Some(at) = (0..expected.len()).find(|&at| found.get(at) != expected.get(at)) {
            bail!("prompt {k}, token {at}: {:?}, expected {}", found.get(at), expected[at]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_prompts_and_the_first_wrong_token_is_told() {
        std::env::set_current_dir(tool::root()).expect("the workspace");
        let models = models().expect("test data");
        assert!(models.len() >= 20, "{}", models.len());
        for model in &models {
            let prompts = prompts(&model.golden).expect("three prompts");
            assert!(
                prompts
                    .iter()
                    .all(|[prompt, generated]| !prompt.is_empty() && !generated.is_empty())
            );
            assert!(model.tokenizer.join("tokenizer.json").exists(), "{}", model.name);
        }
        let expected = [[vec![1], vec![2, 3]]];
        assert!(compare(&[vec![2, 3]], &expected).is_ok());
        let wrong = compare(&[vec![2, 4]], &expected).expect_err("another token");
        assert_eq!(wrong.to_string(), "prompt 0, token 1: Some(4), expected 3");
        assert!(compare(&[vec![2]], &expected).is_err());
        assert!(compare(&[], &expected).is_err());
    }
}
