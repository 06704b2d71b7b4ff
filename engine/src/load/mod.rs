//! From a checkpoint to a running engine, in two steps: a [`Plan`] says what will be loaded and which
//! kernels will run, so that they can be verified; [`Plan::load`] then does it.

mod dense;
mod graphs;
mod memory;
mod options;
mod ranks;
mod weights;

use std::{collections::HashSet, hash::BuildHasher, sync::Arc};

use halyard_core::{
    CommId, Decompose, Device, DeviceError, InfoKey, Kernel, KvDesc, MAX_WORLD, OpBuf, PropKey,
    Scheme, Support, WeightDesc,
};
use halyard_weights::{Checkpoint, ModelConfig, QuantMethod};

pub use options::{Dtype, LoadOptions, LoadProgress};

use crate::{
    buckets::Buckets,
    engine_loop,
    error::LoadError,
    handle::EngineHandle,
    kv::KvCache,
    models::{self, Shares},
    program::{ExchangeKind, Graph, Inputs, Program, Rank, Replaced, Sizes, Source},
    request::{DecodeGraphs, EngineInfo, Observer},
    runner::{Bounds, DeviceRunner},
    sampling::{self, SamplerTensors},
    scheduler::{Scheduler, SchedulerConfig},
    shared::Shared,
};
use memory::{Demand, Pool};
use options::Resolved;
use ranks::{Job, RankPlan};

/// [`KvDesc::kind`] of a cache of keys and values.
const KV_STANDARD: u32 = 1;

/// A model that is ready to be loaded: sizes decided, kernels prepared, nothing on the devices yet.
#[derive(Debug)]
pub struct Plan {
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: Resolved,
    /// One for each device.
    ranks: Vec<RankPlan>,
    /// What they meet by, if there are several.
    comm: Option<CommId>,
    /// Of rank 0.
    sampler: SamplerTensors,
    limits: Sizes,
    /// What decode steps are filled up to.
    buckets: Buckets,
    info: EngineInfo,
}

impl Plan {
    /// Decides how a model will be laid out on devices of one backend, which are the ranks that share it.
    ///
    /// # Errors
    /// If the files are not a model that the engine knows, a device lacks a kernel or memory, the model cannot be shared among so
    /// many, or an option cannot be met; see [`LoadError`].
    pub fn new(
        devices: &[Device],
        checkpoint: Checkpoint,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let config = checkpoint.config()?;
        check_quantization(options.quantization, checkpoint.quant_method(&config))?;
        let mut options = Resolved::new(options, &config, devices)?;
        let comm = ranks::comm_id(devices)?;

        let mut recorded = record(&checkpoint, &config, &options, devices)?;
        let mut ranks = RankPlan::all(devices, recorded.ranks)?;
        let mut sizes = limits(&options, &config);
        let possible = graphs::possible(&ranks);
        let buckets = possible.as_ref().map(|()| Buckets::up_to(options.max_num_seqs));
        let buckets = buckets.unwrap_or_default();
        let captured = if options.enforce_eager { Buckets::default() } else { buckets.clone() };
        let demands = ranks.iter().map(|rank| rank.demand(&sizes, &captured));
        let demands = demands.collect::<Result<Vec<_>, _>>()?;
        let pool = smallest_pool(&options, devices, &demands)?;
        if pool.max_model_len < options.max_model_len {
            tracing::warn!(
                model = options.max_model_len,
                fits = pool.max_model_len,
                "the KV cache cannot hold the model's whole context; its length is lowered"
            );
            options.max_model_len = pool.max_model_len;
            // Shapes follow the length, the set of kernels may too: the rotary table is shorter.
            recorded = record(&checkpoint, &config, &options, devices)?;
            ranks = RankPlan::all(devices, recorded.ranks)?;
            sizes = limits(&options, &config);
        }
        sizes.pool_blocks = pool.num_blocks;
        for Replaced { scheme, why } in &recorded.replaced {
            let dtype = options.compute;
            tracing::warn!(%scheme, %dtype, why, "weights are made dense");
        }
        let graphs = decode_graphs(possible, &captured, &demands);
        let info = info(devices, &config, &options, (&pool, &demands), graphs);
        let sampler = recorded.sampler;
        let limits = sizes;
        Ok(Self { checkpoint, config, options, ranks, comm, sampler, limits, buckets, info })
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

    /// Every operation that the model and its sampler will launch, each once, with the real dimensions; for each kind of device
    /// among the ranks, with one of them.
    #[must_use]
    pub fn kernel_sets(&self) -> Vec<(&Device, Vec<OpBuf>)> {
        let mut sets: Vec<(&Device, Vec<OpBuf>, HashSet<String>)> = Vec::new();
        for RankPlan { device, program, .. } in &self.ranks {
            let kind = |device: &Device| [InfoKey::NAME, InfoKey::ARCH].map(|key| device.info(key));
            let known = sets.iter().position(|(other, ..)| kind(other) == kind(device));
            let set = known.unwrap_or_else(|| {
                sets.push((device, Vec::new(), HashSet::new()));
                sets.len() - 1
            });
            let (_, ops, names) = &mut sets[set];
            ops.extend(program.ops.iter().filter(|op| names.insert(op.to_string())).cloned());
        }
        sets.into_iter().map(|(device, ops, _)| (device, ops)).collect()
    }

    /// Every way in which the ranks will exchange data, each once; none if there is but one rank.
    #[must_use]
    pub fn exchanges(&self) -> Vec<ExchangeKind> {
        // All ranks have the same.
        self.ranks.first().map(|rank| rank.program.exchanges()).unwrap_or_default()
    }

    /// The devices, by rank.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.ranks.iter().map(|rank| rank.device.clone()).collect()
    }

    /// Loads the weights and starts the engine. `progress` is called after each part.
    ///
    /// # Errors
    /// If a tensor cannot be read, or a device fails.
    pub fn load(
        self,
        observer: Box<dyn Observer>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<EngineHandle, LoadError> {
        let options = self.options.clone();
        let info = self.info.clone();
        let (scheduler, mut runner) = self.assemble(progress)?;
        let launches = matches!(info.graphs, DecodeGraphs::Off(_));
        let measures = options.measure_dispatch && launches;
        let measured = measures.then(|| runner.dispatch_time()).transpose();
        let dispatch = measured.map_err(|error| LoadError::Step(error.message))?;
        let info = EngineInfo { dispatch, ..info };
        let seed = options.seed.unwrap_or_else(entropy);
        let shared = Shared::new(info, options.max_num_queued_reqs, options.step_timeout, seed);
        engine_loop::spawn(shared, scheduler, runner, observer).map_err(LoadError::Thread)
    }

    /// Everything but the engine's thread.
    pub(crate) fn assemble(
        self,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(Scheduler, DeviceRunner), LoadError> {
        let Self { checkpoint, config, options, ranks, comm, sampler, limits, buckets, info } =
            self;
        let devices: Vec<Device> = ranks.iter().map(|rank| rank.device.clone()).collect();
        let comm = comm.as_ref();
        let job = Job { checkpoint: &checkpoint, config: &config, options: &options, limits, comm };
        let models = job.load_all(ranks, progress)?;
        // What was read of the files is on the devices now.
        drop(checkpoint);

        let bounds = Bounds {
            vocab: config.vocab_size,
            max_tokens: limits.tokens,
            max_rows: limits.rows,
            table_width: limits.table_width,
            list_elements: limits.rows * limits.list_width,
            max_logprobs: (info.max_logprobs as usize).max(1),
        };
        let timeout = options.step_timeout;
        let runner = DeviceRunner::new(models, sampler, bounds, buckets, timeout);
        let mut runner = runner.map_err(LoadError::Thread)?;
        if let DecodeGraphs::Captured { sizes, bytes } = &info.graphs {
            let free = graphs::free_bytes(&devices);
            let total_sizes = sizes.len();
            let mut report = |sizes| progress(LoadProgress::Graphs { sizes, total_sizes });
            report(0);
            let captured = runner.capture(timeout, &mut report);
            captured.map_err(|error| LoadError::Capture(error.message))?;
            graphs::compare(free, graphs::free_bytes(&devices), *bytes);
        }
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

/// What all ranks compute.
struct Recorded {
    ranks: Vec<RecordedRank>,
    /// Of rank 0.
    sampler: SamplerTensors,
    replaced: Vec<Replaced>,
}

/// What one rank computes.
struct RecordedRank {
    program: Program,
    inputs: Inputs,
    kv: KvDesc<'static>,
}

/// Records what each rank computes. If they cannot share the model, the error says how many could.
fn record(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    options: &Resolved,
    devices: &[Device],
) -> Result<Recorded, LoadError> {
    let record = |world: usize| {
        let source = Source::new(checkpoint, config, options.fallback);
        let mut sampler = None;
        let mut ranks = Vec::with_capacity(world);
        for rank in (0..world).map(|index| Rank { index, world }) {
            let shares = Shares::new(config, rank)?;
            let kv = kv_desc(config, shares.kv_heads.len, options)?;
            let layout = devices[0].kv_layout(&kv).map_err(failed("arranging the KV cache"))?;
            let fused_kv = layout.block_bytes[1] == 0;
            let mut graph = Graph::new(&source, options.compute, fused_kv, rank);
            let (len, block) = (options.max_model_len, options.block_size);
            let decoder = models::record(&mut graph, config, &shares, len, block)?;
            sampler.get_or_insert_with(|| {
                let max_logprobs = options.max_logprobs as usize;
                sampling::record(&mut graph, &decoder.logits, config.vocab_size, max_logprobs)
            });
            let program = graph.finish();
            ranks.push(RecordedRank { program, inputs: decoder.inputs, kv });
        }
        let sampler = sampler.expect("there is a rank 0");
        Ok(Recorded { ranks, sampler, replaced: source.replaced() })
    };
    record(devices.len()).map_err(|error| match error {
        LoadError::Indivisible { tensor, why, ranks, .. } => {
            let works = (1..=MAX_WORLD as usize).filter(|&world| record(world).is_ok()).collect();
            LoadError::Indivisible { tensor, why, ranks, works }
        }
        other => other,
    })
}

/// The most that every device has room for.
fn smallest_pool(
    options: &Resolved,
    devices: &[Device],
    demands: &[Demand],
) -> Result<Pool, LoadError> {
    let mut pools = devices.iter().zip(demands).map(|(device, demand)| {
        Pool::plan(options, demand, device.property(PropKey::TOTAL_MEMORY))
    });
    let first = pools.next().expect("there is a rank 0")?;
    pools.try_fold(first, |least, pool| Ok(least.min(pool?)))
}

/// Prepares every kernel, or says everything that the device cannot do; how many are slow. What the backend lacks is built from what
/// it has.
fn prepare(device: &Device, program: &Program) -> Result<(Vec<Kernel>, usize), LoadError> {
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
    if !missing.is_empty() {
        return Err(LoadError::Unsupported { device: device_name(device), missing });
    }
    let kernels = program.ops.iter().map(|op| {
        device
            .prepare(op.clone())
            .map_err(|source| LoadError::Device { action: format!("preparing {op}"), source })
    });
    Ok((kernels.collect::<Result<_, _>>()?, slow))
}

/// The cache of a rank with so many heads of keys and values.
fn kv_desc(
    config: &ModelConfig,
    heads: usize,
    options: &Resolved,
) -> Result<KvDesc<'static>, LoadError> {
    let Resolved { compute: dtype, block_size, .. } = *options;
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
        heads: small(heads)?,
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
    devices: &[Device],
    config: &ModelConfig,
    options: &Resolved,
    (pool, demands): (&Pool, &[Demand]),
    graphs: DecodeGraphs,
) -> EngineInfo {
    let blocks = pool.num_blocks as u64;
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
        device: device_names(devices),
        tensor_parallel_size: devices.len(),
        weight_bytes: demands.iter().map(|demand| demand.weights).sum(),
        kv_bytes: demands.iter().map(|demand| blocks * demand.block).sum(),
        dispatch: None,
        graphs,
    }
}

/// What comes of `captured` sizes, none if that is not `possible` or not wished for.
fn decode_graphs(
    possible: Result<(), String>,
    captured: &Buckets,
    demands: &[Demand],
) -> DecodeGraphs {
    match (possible, captured.sizes()) {
        (Err(why), _) => DecodeGraphs::Off(why),
        (Ok(()), []) => DecodeGraphs::Off("--enforce-eager".into()),
        (Ok(()), sizes) => DecodeGraphs::Captured {
            sizes: sizes.to_vec(),
            bytes: demands.iter().map(|demand| demand.graphs).sum(),
        },
    }
}

/// `cuda:0, cuda:1 (NVIDIA H100, sm_90)`.
fn device_names(devices: &[Device]) -> String {
    let places: Vec<String> = devices.iter().map(place).collect();
    let details = devices.first().map(details).unwrap_or_default();
    format!("{}{details}", places.join(", "))
}

/// `cpu:0 (AMD EPYC, avx512)`.
fn device_name(device: &Device) -> String {
    format!("{}{}", place(device), details(device))
}

fn place(device: &Device) -> String {
    format!("{}:{}", device.backend().id(), device.ordinal())
}

fn details(device: &Device) -> String {
    let details = [device.info(InfoKey::NAME), device.info(InfoKey::ARCH)];
    let details: Vec<&str> =
        details.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) }
}

/// A number that differs from run to run.
fn entropy() -> u64 {
    std::collections::hash_map::RandomState::new().hash_one(Arc::as_ptr(&Arc::new(())) as usize)
}

fn failed(action: &'static str) -> impl FnOnce(DeviceError) -> LoadError {
    move |source| LoadError::Device { action: action.to_owned(), source }
}
