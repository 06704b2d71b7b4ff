//! From a checkpoint to a running engine, in two steps: a [`Plan`] says what will be loaded and which
//! kernels will run, so that they can be verified; [`Plan::load`] then does it.

mod dense;
mod memory;
mod options;
mod weights;

use std::{hash::BuildHasher, sync::Arc};

use halyard_core::{
    DType, Decompose, Device, DeviceError, InfoKey, Kernel, KvDesc, OpBuf, PropKey, Scheme,
    Support, WeightDesc,
};
use halyard_weights::{Checkpoint, ModelConfig, QuantMethod};

pub use options::{Dtype, LoadOptions, LoadProgress};

use crate::{
    engine_loop,
    error::LoadError,
    handle::EngineHandle,
    kv::KvCache,
    models::{self, Decoder},
    program::{Executable, Graph, Parts, Program, Sizes, Source, workspace_bytes},
    request::{EngineInfo, Observer},
    runner::{Bounds, DeviceRunner},
    sampling::{self, SamplerTensors},
    scheduler::{Scheduler, SchedulerConfig},
    shared::Shared,
};
use memory::{Demand, Pool};
use options::Resolved;

/// [`KvDesc::kind`] of a cache of keys and values.
const KV_STANDARD: u32 = 1;

/// A model that is ready to be loaded: sizes decided, kernels prepared, nothing on the device yet.
#[derive(Debug)]
pub struct Plan {
    device: Device,
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: Resolved,
    recorded: Recorded,
    kernels: Vec<Kernel>,
    limits: Sizes,
    kv: KvDesc<'static>,
    info: EngineInfo,
}

/// A model and its sampler as a program.
#[derive(Debug)]
struct Recorded {
    program: Program,
    decoder: Decoder,
    sampler: SamplerTensors,
    /// Schemes that the device lacks: these weights become dense.
    replaced: Vec<Scheme>,
}

impl Plan {
    /// Decides how a model will be laid out on a device.
    ///
    /// # Errors
    /// If the files are not a model that the engine knows, the device lacks a kernel or memory, or an
    /// option cannot be met; see [`LoadError`].
    pub fn new(
        device: &Device,
        checkpoint: Checkpoint,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let config = checkpoint.config()?;
        check_quantization(options.quantization, checkpoint.quant_method(&config))?;
        let mut options = Resolved::new(options, &config, device)?;
        let kv = kv_desc(&config, options.compute, options.block_size)?;
        let layout = device.kv_layout(&kv).map_err(failed("arranging the KV cache"))?;
        let fused_kv = layout.block_bytes[1] == 0;

        let mut recorded = record(&checkpoint, &config, &options, fused_kv)?;
        let mut kernels = prepare(device, &recorded.program)?;
        let mut limits = limits(&options, &config);
        let block_bytes = layout.block_bytes[0] + layout.block_bytes[1];
        let demand = Demand {
            weights: weights::planned_bytes(device, &recorded.program)?,
            activations: recorded.program.buffer_bytes(&limits)
                + workspace_bytes(&recorded.program, &kernels, &limits),
            block: block_bytes * recorded.program.kv_layers as u64,
        };
        let pool = Pool::plan(&options, &demand, device.property(PropKey::TOTAL_MEMORY))?;
        if pool.max_model_len < options.max_model_len {
            tracing::warn!(
                model = options.max_model_len,
                fits = pool.max_model_len,
                "the KV cache cannot hold the model's whole context; its length is lowered"
            );
            options.max_model_len = pool.max_model_len;
            // Shapes follow the length, the set of kernels may too: the rotary table is shorter.
            recorded = record(&checkpoint, &config, &options, fused_kv)?;
            kernels = prepare(device, &recorded.program)?;
            limits = self::limits(&options, &config);
        }
        limits.pool_blocks = pool.num_blocks;
        for scheme in &recorded.replaced {
            let dtype = options.compute;
            tracing::warn!(%scheme, %dtype, "the device lacks these weights; they are made dense");
        }
        let info = info(device, &config, &options, &pool, &demand);
        Ok(Self {
            device: device.clone(),
            checkpoint,
            config,
            options,
            recorded,
            kernels,
            limits,
            kv,
            info,
        })
    }

    /// What the engine will be.
    #[must_use]
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The model's files.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Every operation that the model and its sampler will launch, each once, with the real dimensions.
    #[must_use]
    pub fn kernel_set(&self) -> &[OpBuf] {
        &self.recorded.program.ops
    }

    /// Loads the weights and starts the engine. `progress` is called after each part.
    ///
    /// # Errors
    /// If a tensor cannot be read, or the device fails.
    pub fn load(
        self,
        observer: Box<dyn Observer>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<EngineHandle, LoadError> {
        let options = self.options.clone();
        let info = self.info.clone();
        let (scheduler, mut runner) = self.assemble(progress)?;
        let measured = options.measure_dispatch.then(|| runner.dispatch_time()).transpose();
        let dispatch = measured.map_err(failed("launching a step of no tokens"))?;
        let info = EngineInfo { dispatch, ..info };
        let seed = options.seed.unwrap_or_else(entropy);
        let shared = Shared::new(info, options.max_num_queued_reqs, options.step_timeout, seed);
        engine_loop::spawn(shared, scheduler, runner, observer).map_err(LoadError::Thread)
    }

    /// Everything but the thread.
    pub(crate) fn assemble(
        self,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(Scheduler, DeviceRunner), LoadError> {
        let Self { device, checkpoint, config, options, recorded, kernels, limits, kv, info } =
            self;
        let Recorded { program, decoder, sampler, replaced: _ } = recorded;
        let stream = device.stream(0).map_err(failed("making a stream"))?;
        let weights = weights::load(&device, &stream, (&checkpoint, &config), &program, progress)?;
        let contents = weights::contents(&checkpoint, &config, &program, options.max_model_len)?;
        let parts = Parts { device: &device, stream, kernels, weights, kv, limits };
        let exec = Executable::new(program, parts).map_err(failed("binding the model"))?;
        for (buffer, values) in contents {
            exec.fill_buffer(buffer, &values).map_err(failed("copying a vector to the device"))?;
        }
        // What was read of the files is on the device now.
        drop(checkpoint);

        let bounds = Bounds {
            vocab: config.vocab_size,
            max_rows: limits.rows,
            table_width: limits.table_width,
            list_elements: limits.rows * limits.list_width,
            max_logprobs: (info.max_logprobs as usize).max(1),
        };
        let runner = DeviceRunner::new(exec, decoder.inputs, sampler, bounds);
        let scheduler = Scheduler::new(
            SchedulerConfig {
                max_num_batched_tokens: options.max_num_batched_tokens,
                max_num_seqs: options.max_num_seqs,
                chunked_prefill: options.chunked_prefill,
            },
            KvCache::new(info.num_blocks, info.block_size, info.prefix_caching),
        );
        Ok((scheduler, runner))
    }
}

/// A wish for a way to quantise is a check: the checkpoint has its own.
fn check_quantization(
    wanted: Option<QuantMethod>,
    found: Option<QuantMethod>,
) -> Result<(), LoadError> {
    let Some(wanted) = wanted.filter(|_| wanted != found) else { return Ok(()) };
    let found = found.map_or_else(|| "not quantised".to_owned(), |found| format!("{found}'s"));
    let message = format!("{wanted} was asked for, the model's weights are {found}");
    Err(LoadError::Option { option: "quantization", message })
}

fn record(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    options: &Resolved,
    fused_kv: bool,
) -> Result<Recorded, LoadError> {
    let source = Source::new(checkpoint, config, options.fallback);
    let mut graph = Graph::new(&source, options.compute, fused_kv);
    let decoder = models::record(&mut graph, config, options.max_model_len, options.block_size)?;
    let max_logprobs = options.max_logprobs as usize;
    let sampler = sampling::record(&mut graph, &decoder.logits, config.vocab_size, max_logprobs);
    Ok(Recorded { program: graph.finish(), decoder, sampler, replaced: source.replaced() })
}

/// Prepares every kernel, or says everything that the device cannot do. What the backend lacks is built from what it has.
fn prepare(device: &Device, program: &Program) -> Result<Vec<Kernel>, LoadError> {
    let device = &device.decomposing(Decompose::Missing);
    let mut missing = Vec::new();
    let mut slow = 0;
    for op in &program.ops {
        match device.support(op) {
            Support::No(why) => missing.push(format!("{op} ({why})")),
            Support::Slow(why) => {
                slow += 1;
                tracing::debug!(%op, why, "a slow operation");
            }
            _ => {}
        }
    }
    if slow > 0 {
        tracing::warn!(slow, of = program.ops.len(), "the device runs some operations slowly");
    }
    if !missing.is_empty() {
        return Err(LoadError::Unsupported { device: device_name(device), missing });
    }
    let kernels = program.ops.iter().map(|op| {
        device
            .prepare(op.clone())
            .map_err(|source| LoadError::Device { action: format!("preparing {op}"), source })
    });
    kernels.collect()
}

fn kv_desc(
    config: &ModelConfig,
    dtype: DType,
    block_size: usize,
) -> Result<KvDesc<'static>, LoadError> {
    let small = |value: usize| {
        u32::try_from(value).map_err(|_| LoadError::Option {
            option: "block_size",
            message: format!("{value} does not fit 32 bits"),
        })
    };
    let dim = small(config.head_dim)?;
    Ok(KvDesc {
        kind: KV_STANDARD,
        dtype,
        heads: small(config.num_key_value_heads)?,
        dim_k: dim,
        dim_v: dim,
        block_size: small(block_size)?,
        // The empty list, whose type only the boundary's crate can name.
        attrs: WeightDesc::linear(Scheme::DENSE, dtype, 1, 1).attrs,
    })
}

/// The largest sizes of a step.
fn limits(options: &Resolved, config: &ModelConfig) -> Sizes {
    /// Room for the ids of many short sequences at once; one long one may need more.
    const LIST_ELEMENTS: usize = 1 << 16;
    let rows = options.max_num_seqs;
    let list_width = config.vocab_size.max(LIST_ELEMENTS).div_ceil(rows);
    Sizes {
        tokens: options.max_num_batched_tokens,
        seqs: options.max_num_seqs,
        table_width: options.max_model_len.div_ceil(options.block_size),
        rows,
        first_row: 0,
        list_width,
        bias_width: list_width,
        pool_blocks: 0,
    }
}

fn info(
    device: &Device,
    config: &ModelConfig,
    options: &Resolved,
    pool: &Pool,
    demand: &Demand,
) -> EngineInfo {
    EngineInfo {
        max_model_len: options.max_model_len,
        vocab_size: config.vocab_size,
        eos_token_ids: config.eos_token_ids.clone(),
        block_size: options.block_size,
        num_blocks: pool.num_blocks,
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: options.max_num_batched_tokens,
        prefix_caching: options.prefix_caching,
        max_logprobs: options.max_logprobs,
        dtype: options.dtype.to_string(),
        device: device_name(device),
        weight_bytes: demand.weights,
        kv_bytes: pool.num_blocks as u64 * demand.block,
        dispatch: None,
    }
}

/// `cpu:0 (AMD EPYC, avx512)`.
fn device_name(device: &Device) -> String {
    let details = [device.info(InfoKey::NAME), device.info(InfoKey::ARCH)];
    let details: Vec<&str> =
        details.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    let place = format!("{}:{}", device.backend().id(), device.ordinal());
    if details.is_empty() { place } else { format!("{place} ({})", details.join(", ")) }
}

/// A number that differs from run to run.
fn entropy() -> u64 {
    std::collections::hash_map::RandomState::new().hash_one(Arc::as_ptr(&Arc::new(())) as usize)
}

fn failed(action: &'static str) -> impl FnOnce(DeviceError) -> LoadError {
    move |source| LoadError::Device { action: action.to_owned(), source }
}
