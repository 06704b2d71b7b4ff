//! What the end-to-end tests share: backends, golden models, and engines over them.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod ascend;
pub(crate) mod check;
pub(crate) mod cuda;
pub(crate) mod faulty;
mod plugin;

use std::{
    path::PathBuf,
    slice,
    time::{Duration, Instant},
};

use halyard_core::{Backend, Device};
use halyard_engine::{
    Dtype, EngineEvent, EngineHandle, EngineRequest, LoadOptions, Observer, Plan, RequestHandle,
    SamplingParams, SubmitError, TokenOutput,
};
use halyard_weights::Checkpoint;
use safetensors::{SafeTensors, tensor::TensorView};

/// The golden models whose weights are plain numbers.
pub(crate) const DENSE: [&str; 7] =
    ["llama", "llama32", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"];

/// The golden models with layers quantised in the formats of safetensors: groups of 32, 64 and 128; rows and columns that are no
/// whole blocks; experts.
pub(crate) const QUANTISED: [&str; 7] = [
    "llama_awq",
    "llama_fp8",
    "llama_gptq",
    "mixtral_awq",
    "qwen2_awq",
    "qwen2_gptq_act_order",
    "qwen3_moe_fp8",
];

/// The golden models whose layers round their inputs to codes of eight bits, too. Their `golden-tp2.tensors` is of two ranks, since a
/// rank rounds its own part of the inputs of o_proj and down_proj.
pub(crate) const W8A8: [&str; 2] = ["qwen2_w8a8", "qwen3_moe_w8a8"];

/// The quantised forms of the golden GGUF model.
pub(crate) fn quantised() -> Vec<String> {
    let files = std::fs::read_dir(folder("gguf/llama")).expect("test data");
    let names = files.map(|file| file.expect("test data").file_name().into_string());
    let form = |name: String| Some(name.strip_prefix("model-")?.strip_suffix(".gguf")?.to_owned());
    let mut forms: Vec<String> = names.flatten().filter_map(form).collect();
    forms.sort();
    assert!(forms.len() >= 6, "{forms:?}");
    forms
}

/// The built-in backends, opened: the oracle, and the one that serves.
pub(crate) fn devices() -> Vec<Device> {
    ranks(1).into_iter().flatten().collect()
}

/// The same, each opened as often as a model is to have ranks.
pub(crate) fn ranks(count: usize) -> [Vec<Device>; 2] {
    let modules = [halyard_sdk::module::<halyard_cpu_ref::CpuRef>(), halyard_cpu::module()];
    modules.map(|module| {
        let backend = Backend::builtin(module);
        (0..count).map(|_| backend.open(0, &[]).expect("opens")).collect()
    })
}

pub(crate) fn folder(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(model)
}

pub(crate) fn options() -> LoadOptions {
    LoadOptions {
        dtype: Dtype::Float32,
        max_num_seqs: 8,
        max_num_batched_tokens: Some(256),
        kv_cache_memory_bytes: Some(64 << 20),
        ..LoadOptions::default()
    }
}

pub(crate) fn start(device: &Device, model: &str, options: &LoadOptions) -> EngineHandle {
    start_shared(slice::from_ref(device), model, options, Box::new(()))
}

/// Each of the devices is a rank.
pub(crate) fn start_shared(
    devices: &[Device],
    model: &str,
    options: &LoadOptions,
    observer: Box<dyn Observer>,
) -> EngineHandle {
    let checkpoint = Checkpoint::open(&folder(model)).expect("test data");
    let plan = Plan::new(devices, checkpoint, options).expect("a model these devices can run");
    plan.load(observer, &mut |_| {}).expect("loads")
}

pub(crate) fn request(prompt: &[u32], params: SamplingParams) -> EngineRequest {
    EngineRequest {
        prompt: prompt.to_vec(),
        params,
        cache_salt: None,
        priority: 0,
        arrival: Instant::now(),
    }
}

pub(crate) fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens, ignore_eos: true, ..SamplingParams::default() }
}

pub(crate) fn submit(
    engine: &EngineHandle,
    prompt: &[u32],
    params: SamplingParams,
) -> RequestHandle {
    engine.submit(request(prompt, params)).expect("accepted")
}

pub(crate) fn events(mut handle: RequestHandle) -> Vec<EngineEvent> {
    std::iter::from_fn(|| handle.blocking_next()).collect()
}

/// The tokens of a request that ended well.
pub(crate) fn tokens(handle: RequestHandle) -> Vec<TokenOutput> {
    let events = events(handle);
    assert!(matches!(events.last(), Some(EngineEvent::Finished(_))), "{events:?}");
    let token = |event| match event {
        EngineEvent::Token(token) => Some(token),
        _ => None,
    };
    events.into_iter().filter_map(token).collect()
}

pub(crate) fn ids(tokens: &[TokenOutput]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

/// One prompt of a golden file.
pub(crate) struct Golden {
    pub(crate) prompt: Vec<u32>,
    /// A row a position.
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) generated: Vec<u32>,
    /// A row a generated token: what it was chosen from.
    pub(crate) generated_logits: Vec<Vec<f32>>,
}

pub(crate) fn goldens(file: &str) -> Vec<Golden> {
    let bytes = std::fs::read(folder(file)).expect("test data");
    let tensors = SafeTensors::deserialize(&bytes).expect("test data");
    let words = |name: String| -> Vec<[u8; 4]> {
        let tensor = tensors.tensor(&name).expect("test data");
        tensor.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
    };
    let ids = |name: String| words(name).into_iter().map(u32::from_le_bytes).collect();
    let rows = |name: String| -> Vec<Vec<f32>> {
        let width = *tensors.tensor(&name).expect("test data").shape().last().expect("a matrix");
        let values: Vec<f32> = words(name).into_iter().map(f32::from_le_bytes).collect();
        values.chunks_exact(width).map(<[f32]>::to_vec).collect()
    };
    let golden = |k| Golden {
        prompt: ids(format!("p{k}.input_ids")),
        logits: rows(format!("p{k}.logits")),
        generated: ids(format!("p{k}.generated")),
        generated_logits: rows(format!("p{k}.gen_logits")),
    };
    (0..3).map(golden).collect()
}

/// Logits as log-probabilities.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    logits.iter().map(|&l| f64::from(l - max) - sum.ln()).collect()
}

/// A copy of a dense model with changes in its configuration.
pub(crate) fn changed(model: &str, changes: &[(&str, serde_json::Value)]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder(model), copy.path());
    std::fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).expect("copies");
    let text = std::fs::read_to_string(from.join("config.json")).expect("test data");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("test data");
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    std::fs::write(to.join("config.json"), config.to_string()).expect("writes");
    copy
}

/// A copy of a dense bf16 model in which the tensors that `widen` names are f32, with the same values.
pub(crate) fn widened(model: &str, widen: impl Fn(&str) -> bool) -> tempfile::TempDir {
    rewritten(model, &[], |name, tensor| {
        if tensor.0 != safetensors::Dtype::BF16 || !widen(name) {
            return tensor;
        }
        let pairs = tensor.2.chunks_exact(2);
        let wide = pairs.flat_map(|pair| [0, 0, pair[0], pair[1]]).collect();
        (safetensors::Dtype::F32, tensor.1, wide)
    })
}

/// A copy of a dense model without the last ids.
pub(crate) fn with_vocabulary(model: &str, ids: usize) -> tempfile::TempDir {
    rewritten(model, &[("vocab_size", ids.into())], |name, (dtype, mut shape, mut bytes)| {
        if ["model.embed_tokens.weight", "lm_head.weight"].contains(&name) {
            bytes.truncate(bytes.len() / shape[0] * ids);
            shape[0] = ids;
        }
        (dtype, shape, bytes)
    })
}

type Stored = (safetensors::Dtype, Vec<usize>, Vec<u8>);

/// A copy of a dense model with changes in its configuration and its tensors.
fn rewritten(
    model: &str,
    changes: &[(&str, serde_json::Value)],
    change: impl Fn(&str, Stored) -> Stored,
) -> tempfile::TempDir {
    let copy = changed(model, changes);
    let bytes = std::fs::read(folder(model).join("model.safetensors")).expect("test data");
    let tensors = SafeTensors::deserialize(&bytes).expect("test data").tensors();
    let data = tensors.into_iter().map(|(name, tensor)| {
        let stored = (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
        let stored = change(&name, stored);
        (name, stored)
    });
    let data: Vec<(String, Stored)> = data.collect();
    let views = data.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("whole tensors"))
    });
    let bytes = safetensors::serialize(views, None).expect("serialises");
    std::fs::write(copy.path().join("model.safetensors"), bytes).expect("writes");
    copy
}

/// The engine ends soon because of what a request was told, and tells that to whoever comes later.
pub(crate) fn ends_with(engine: &EngineHandle, message: &str, within: Duration) {
    let deadline = Instant::now() + within;
    while engine.health().is_ok() {
        assert!(Instant::now() < deadline, "still healthy");
    }
    let dead = engine.health().expect_err("dead");
    assert!(dead.contains(message), "{dead}");
    match engine.submit(request(&[1], greedy(1))) {
        Err(SubmitError::EngineDead(cause)) => assert_eq!(cause, dead),
        other => panic!("{other:?}"),
    }
}
