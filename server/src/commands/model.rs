//! Loading a model: device, plan, check, weights, text; a log line each.

use std::{
    env,
    ffi::OsString,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use halyard_core::{Device, InfoKey, MAX_WORLD, PropKey};
use halyard_engine::{
    DecodeGraphs, EngineHandle, EngineInfo, LoadOptions, LoadProgress, Observer, Plan,
    process::{Ended, Leader, RankProcesses, Start},
};
use halyard_weights::{Checkpoint, GenerationDefaults, ModelConfig};

use super::{backends, gate};
use crate::{
    cli::{
        args::{DeviceArgs, EngineArgs, ModelArgs},
        values::{Dtype, ExecutorBackend, Length, Quantization},
    },
    generation::Defaults,
    text::ModelText,
    ui::{self, Unit},
};

/// A model that runs.
pub(super) struct Loaded {
    pub(super) engine: EngineHandle,
    pub(super) text: Arc<ModelText>,
    pub(super) config: ModelConfig,
    /// The device's memory is the host's.
    pub(super) on_host: bool,
    pub(super) defaults: Defaults,
    /// As the user wrote it.
    pub(super) root: String,
}

/// Loads what the flags say; `line` has them for ranks that are processes. `observer` is asked for once the engine's sizes and devices are known.
pub(super) fn load(
    model: &ModelArgs,
    device: &DeviceArgs,
    (options, line): (&LoadOptions, &[OsString]),
    observer: impl FnOnce(&Plan) -> Box<dyn Observer>,
) -> anyhow::Result<Loaded> {
    let begun = Instant::now();
    let root = model.path().context("name a model: a GGUF file or a folder")?.to_owned();
    if model.trust_remote_code {
        tracing::info!("--trust-remote-code has no effect: no code of a model is ever run");
    }
    let checkpoint = open_checkpoint(Path::new(&root), &model.load_format)?;
    let config = checkpoint.config().with_context(|| format!("cannot read the model {root}"))?;
    let defaults = defaults(model, &config)?;
    let text =
        ModelText::load(&checkpoint, model.tokenizer.as_deref(), model.chat_template.as_deref())
            .with_context(|| format!("cannot load the tokenizer of {root}"))?;

    let plan =
        plan(device, line, checkpoint, options).with_context(|| format!("cannot load {root}"))?;
    let on_host = plan.devices().iter().all(|device| device.property(PropKey::INLINE) == Some(1));
    gate::check(&plan, device.conformance)?;

    let observer = observer(&plan);
    let weights_begun = Instant::now();
    let bar = ui::progress("loading weights", plan.info().weight_bytes, Unit::Bytes);
    let mut graphs = None;
    let mut on_progress = |progress: LoadProgress| match progress {
        LoadProgress::Weights { bytes, total_bytes } => {
            bar.set_length(total_bytes);
            bar.set_position(bytes);
        }
        LoadProgress::Graphs { sizes, total_sizes } => {
            bar.finish_and_clear();
            let count = |sizes: usize| u64::try_from(sizes).unwrap_or(u64::MAX);
            let (_, bar) = graphs.get_or_insert_with(|| {
                (Instant::now(), ui::progress("capturing graphs", count(total_sizes), Unit::Items))
            });
            bar.set_position(count(sizes));
        }
    };
    let engine = plan
        .load(observer, &mut on_progress)
        .with_context(|| format!("cannot load the weights of {root}"))?;
    bar.finish_and_clear();
    let graphs_begun = graphs.map(|(begun, bar)| {
        bar.finish_and_clear();
        begun
    });
    log_engine(engine.info(), begun, weights_begun, graphs_begun);
    Ok(Loaded { engine, text: Arc::new(text), config, on_host, defaults, root })
}

/// The plan has what it needs of the devices that it opens; they close with the engine.
fn plan(
    device: &DeviceArgs,
    line: &[OsString],
    checkpoint: Checkpoint,
    options: &LoadOptions,
) -> anyhow::Result<Plan> {
    let world = device.tensor_parallel_size;
    if world == 1 || device.distributed_executor_backend == ExecutorBackend::Threads {
        let devices = backends::open(device)?;
        devices.iter().for_each(log_device);
        return Ok(Plan::new(&devices, checkpoint, options)?);
    }
    if world > MAX_WORLD as usize {
        bail!("--tensor-parallel-size must be 1 to {MAX_WORLD}, got {world}");
    }
    let program = env::current_exe().context("cannot find this program")?;
    let command = |rank: usize| {
        let mut command = Command::new(&program);
        command.arg("rank").arg(rank.to_string());
        command
    };
    // First, so that they start while this process opens its own device.
    let processes = RankProcesses::start(world, line, command);
    let processes = processes.context("cannot start the processes of ranks")?;
    let first = backends::open_rank(device, 0)?;
    log_device(&first);
    Ok(Plan::leading(&first, processes, checkpoint, options)?)
}

/// Loads and serves a rank that is a process of its own, until rank 0 wants no more of it.
pub(super) fn follow(
    model: &ModelArgs,
    device: &DeviceArgs,
    options: &LoadOptions,
    (leader, start): (&Leader, &Start),
) -> anyhow::Result<Ended> {
    let root = model.path().context("name a model: a GGUF file or a folder")?;
    let checkpoint = open_checkpoint(Path::new(root), &model.load_format)?;
    let opened = backends::open_rank(device, start.rank)?;
    log_device(&opened);
    let plan = Plan::following(&opened, (leader, start), checkpoint, options)?;
    gate::check_kernels(&plan, device.conformance)?;
    Ok(plan.follow(gate::try_exchanges)?)
}

fn open_checkpoint(path: &Path, load_format: &str) -> anyhow::Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    match (load_format, checkpoint.is_gguf()) {
        ("gguf", false) => bail!("--load-format gguf: {} is no GGUF", path.display()),
        ("safetensors", true) => bail!("--load-format safetensors: {} is GGUF", path.display()),
        _ => Ok(checkpoint),
    }
}

fn log_device(device: &Device) {
    let backend = device.backend();
    let from = backend.library().map_or("built in".to_owned(), |path| path.display().to_string());
    tracing::info!(
        "device {}:{}: {} (backend {} {}, {from})",
        backend.id(),
        device.ordinal(),
        device.info(InfoKey::NAME),
        backend.id(),
        backend.info(InfoKey::VERSION),
    );
}

fn log_engine(
    info: &EngineInfo,
    begun: Instant,
    weights_begun: Instant,
    graphs_begun: Option<Instant>,
) {
    let ready = Instant::now();
    let weights_ended = graphs_begun.unwrap_or(ready);
    tracing::info!(
        "weights: {} in {:.2} s, computing in {}",
        ui::bytes(info.weight_bytes),
        (weights_ended - weights_begun).as_secs_f64(),
        info.dtype,
    );
    if info.tensor_parallel_size > 1 {
        tracing::info!("tensor parallel: {} ranks share the model", info.tensor_parallel_size);
    }
    tracing::info!(
        "KV cache: {} blocks of {} tokens, {}; longest sequence {} tokens",
        info.num_blocks,
        info.block_size,
        ui::bytes(info.kv_bytes),
        info.max_model_len,
    );
    log_graphs(&info.graphs, ready - weights_ended);
    tracing::info!(
        "engine: {} sequences and {} tokens a step, prefix caching {}; ready after {:.2} s",
        info.max_num_seqs,
        info.max_num_batched_tokens,
        if info.prefix_caching { "on" } else { "off" },
        (ready - begun).as_secs_f64(),
    );
}

fn log_graphs(graphs: &DecodeGraphs, took: Duration) {
    match graphs {
        DecodeGraphs::Captured { sizes, bytes } => tracing::info!(
            "graphs: decode steps of 1 to {} sequences in {} sizes, {} set aside, captured in {:.2} s",
            sizes.last().copied().unwrap_or(0),
            sizes.len(),
            ui::bytes(*bytes),
            took.as_secs_f64(),
        ),
        DecodeGraphs::Off(why) => tracing::info!("graphs: none ({why})"),
    }
}

/// What the flags say about the engine.
pub(super) fn options(model: &ModelArgs, engine: &EngineArgs) -> LoadOptions {
    let standard = LoadOptions::default();
    LoadOptions {
        dtype: match model.dtype {
            Dtype::Auto => halyard_engine::Dtype::Auto,
            Dtype::Float16 => halyard_engine::Dtype::Float16,
            Dtype::Bfloat16 => halyard_engine::Dtype::BFloat16,
            Dtype::Float32 => halyard_engine::Dtype::Float32,
        },
        allow_dequant: model.allow_dequant,
        quantization: model.quantization.and_then(|Quantization(method)| method),
        max_model_len: match model.max_model_len {
            Length::Auto => None,
            Length::Tokens(tokens) => Some(tokens),
        },
        max_num_seqs: engine.max_num_seqs.unwrap_or(standard.max_num_seqs),
        max_num_batched_tokens: engine.max_num_batched_tokens,
        block_size: engine.block_size,
        gpu_memory_utilization: engine
            .gpu_memory_utilization
            .unwrap_or(standard.gpu_memory_utilization),
        kv_cache_memory_bytes: engine
            .kv_cache_memory_bytes
            .map(|bytes| u64::try_from(bytes).unwrap_or(u64::MAX)),
        num_blocks_override: engine.num_gpu_blocks_override,
        enable_prefix_caching: !engine.no_enable_prefix_caching,
        enable_chunked_prefill: !engine.no_enable_chunked_prefill,
        seed: engine.seed,
        max_logprobs: engine.max_logprobs,
        max_num_queued_reqs: engine.max_num_queued_reqs,
        step_timeout: standard.step_timeout,
        enforce_eager: engine.enforce_eager,
        measure_dispatch: standard.measure_dispatch,
    }
}

/// Sampling defaults: the command line's, then those of the chosen configuration.
fn defaults(model: &ModelArgs, config: &ModelConfig) -> anyhow::Result<Defaults> {
    let given = match &model.override_generation_config {
        None => Defaults::default(),
        Some(json) => serde_json::from_str(json)
            .with_context(|| format!("--override-generation-config `{json}` is wrong"))?,
    };
    let of_model = match model.generation_config.as_str() {
        "auto" => from_model(&config.generation),
        "vllm" => Defaults::default(),
        folder => {
            let path = Path::new(folder).join("generation_config.json");
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("--generation-config: cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is wrong", path.display()))?
        }
    };
    Ok(given.or(of_model))
}

fn from_model(generation: &GenerationDefaults) -> Defaults {
    Defaults {
        temperature: generation.temperature.map(narrow),
        top_p: generation.top_p.map(narrow),
        top_k: generation.top_k.map(i64::from),
        min_p: generation.min_p.map(narrow),
        repetition_penalty: generation.repetition_penalty.map(narrow),
        presence_penalty: None,
        frequency_penalty: None,
        max_new_tokens: generation.max_new_tokens,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "sampling computes in 32 bits; digits beyond do not matter"
)]
fn narrow(value: f64) -> f32 {
    value as f32
}
