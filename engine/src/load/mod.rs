//! From a checkpoint to a running engine, in two steps: a [`Plan`] says what will be loaded and which
//! kernels will run, so that they can be verified; [`Plan::load`] then does it.

mod dense;
mod graphs;
mod memory;
mod options;
mod party;
mod ranks;
mod weights;

use std::{collections::HashSet, hash::BuildHasher, ops::Range, slice, sync::Arc, time::Duration};

use halyard_core::{
    Decompose, Device, DeviceError, InfoKey, Kernel, KvDesc, MAX_WORLD, OpBuf, PropKey, Scheme,
    Support, WeightDesc,
};
use halyard_weights::{Checkpoint, ModelConfig, QuantMethod};

pub use options::{Dtype, LoadOptions, LoadProgress};

use crate::{
    batch::Batch,
    buckets::Buckets,
    engine_loop,
    error::LoadError,
    handle::EngineHandle,
    kv::KvCache,
    models::{self, Shares},
    process::{
        Agreed, Ended, FromRank, Leader, Next, Offer, RankDevice, RankProcesses, Report, Start,
        ToRank, Trial, Tried,
    },
    program::{ExchangeKind, Graph, Inputs, Program, Rank, Replaced, Sizes, Source},
    request::{DecodeGraphs, EngineInfo, Observer},
    runner::{Bounds, DeviceRunner, Mailbox, Model, Rank as RunningRank, Work},
    sampling::{self, SamplerTensors},
    scheduler::{Scheduler, SchedulerConfig},
    shared::Shared,
};
use memory::{Demand, Pool};
use options::Resolved;
use party::{Here, Party, Terms};
use ranks::{Job, RankPlan};

/// [`KvDesc::kind`] of a cache of keys and values.
const KV_STANDARD: u32 = 1;

/// A model that is ready to be loaded: sizes decided, kernels prepared, nothing on the devices yet.
#[derive(Debug)]
pub struct Plan {
    checkpoint: Checkpoint,
    config: ModelConfig,
    options: Resolved,
    /// The first rank of this process.
    first: usize,
    /// One for each device of this process.
    ranks: Vec<RankPlan>,
    party: Party,
    /// What all ranks agreed on, if there are several.
    agreed: Option<Agreed>,
    /// What ranks in other processes offered.
    others: Vec<Offer>,
    /// What those launch.
    ops_of_others: Vec<Vec<OpBuf>>,
    /// Of rank 0.
    sampler: Option<SamplerTensors>,
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
        Self::of(Here::all(devices), Party::Threads, checkpoint, options)
    }

    /// The same where all ranks but the first, which has `device`, are processes.
    ///
    /// # Errors
    /// As [`Plan::new`]; also for what the other ranks find.
    pub fn leading(
        device: &Device,
        processes: RankProcesses,
        checkpoint: Checkpoint,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let world = processes.world();
        let here = Here { first: 0, world, devices: slice::from_ref(device) };
        processes.set_timeout(options.step_timeout);
        Self::of(here, Party::Processes(processes), checkpoint, options)
    }

    /// The same in such a process, which has `device`.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn following(
        device: &Device,
        (leader, start): (&Leader, &Start),
        checkpoint: Checkpoint,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let devices = slice::from_ref(device);
        let here = Here { first: start.rank, world: start.world, devices };
        leader.set_device(device.clone());
        Self::of(here, Party::Follows(leader.clone()), checkpoint, options)
    }

    fn of(
        here: Here<'_>,
        party: Party,
        checkpoint: Checkpoint,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let config = checkpoint.config()?;
        check_quantization(options.quantization, checkpoint.quant_method(&config))?;
        let mut options = Resolved::new(options, &config, here)?;

        let mut recorded = record(&checkpoint, &config, &options, here)?;
        let mut ops_of_others = recorded.split_off(here.devices.len());
        let mut ranks = RankPlan::all(here, recorded.ranks)?;
        let mut sizes = limits(&options, &config);
        let possible = graphs::possible(&ranks, here.world);
        let buckets = |graphs: &Result<(), String>, captured: bool| match graphs {
            Ok(()) if !(captured && options.enforce_eager) => Buckets::up_to(options.max_num_seqs),
            _ => Buckets::default(),
        };
        let wished = buckets(&possible, true);
        let demands = ranks.iter().map(|rank| rank.demand(&sizes, &wished));
        let demands = demands.collect::<Result<Vec<_>, _>>()?;
        let pool = smallest_pool(&options, here.devices, &demands)?;

        let stored = ranks::stored_bytes((&checkpoint, &config), &ranks)?;
        let own = offer(here, &options, (&pool, &demands), possible, stored);
        let Terms { agreed, pool, graphs: possible, others } = party.agree(here, own)?;
        let (buckets, captured) = (buckets(&possible, false), buckets(&possible, true));
        if pool.max_model_len < options.max_model_len {
            if here.first == 0 {
                tracing::warn!(
                    model = options.max_model_len,
                    fits = pool.max_model_len,
                    "the KV cache cannot hold the model's whole context; its length is lowered"
                );
            }
            options.max_model_len = pool.max_model_len;
            // Shapes follow the length, the set of kernels may too: the rotary table is shorter.
            recorded = record(&checkpoint, &config, &options, here)?;
            ops_of_others = recorded.split_off(here.devices.len());
            ranks = RankPlan::all(here, recorded.ranks)?;
            sizes = limits(&options, &config);
        }
        sizes.pool_blocks = pool.num_blocks;
        for Replaced { scheme, why } in recorded.replaced.iter().filter(|_| here.first == 0) {
            let dtype = options.compute;
            tracing::warn!(%scheme, %dtype, why, "weights are made dense");
        }
        let sum = Demand::sum(&demands, &others);
        let graphs = decode_graphs(possible, &captured, sum.graphs);
        let info = info((here, &others), &config, &options, (&pool, &sum), graphs);
        Ok(Self {
            checkpoint,
            config,
            options,
            first: here.first,
            ranks,
            party,
            agreed,
            others,
            ops_of_others,
            sampler: recorded.sampler,
            limits: sizes,
            buckets,
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

    /// Every operation that the model and its sampler will launch, each once, with the real dimensions; for each kind of device
    /// among the ranks, with one of them. In the process of another rank than 0: nothing, where rank 0's device is of the same kind.
    #[must_use]
    pub fn kernel_sets(&self) -> Vec<(&Device, Vec<OpBuf>)> {
        let mut sets: Vec<(&Device, String, Vec<&[OpBuf]>)> = Vec::new();
        for RankPlan { device, program, .. } in &self.ranks {
            let kind = party::kind(device);
            match sets.iter_mut().find(|(_, other, _)| *other == kind) {
                Some((.., ops)) => ops.push(&program.ops),
                None => sets.push((device, kind, vec![&program.ops])),
            }
        }
        // Rank 0 verifies for all that have the same.
        for (offer, ops) in self.others.iter().zip(&self.ops_of_others) {
            let same = sets.iter_mut().find(|(_, kind, _)| *kind == offer.kind);
            if let Some((.., all)) = same {
                all.push(ops);
            }
        }
        if let (Party::Follows(_), Some(agreed)) = (&self.party, &self.agreed) {
            sets.retain(|(_, kind, _)| *kind != agreed.kind);
        }
        let unique = |ops: Vec<&[OpBuf]>| {
            let mut names = HashSet::new();
            let all = ops.into_iter().flatten();
            all.filter(|op| names.insert(op.to_string())).cloned().collect()
        };
        sets.into_iter().map(|(device, _, ops)| (device, unique(ops))).collect()
    }

    /// Every way in which the ranks will exchange data, each once; none if there is but one rank.
    #[must_use]
    pub fn exchanges(&self) -> Vec<ExchangeKind> {
        // All ranks have the same.
        self.ranks.first().map(|rank| rank.program.exchanges()).unwrap_or_default()
    }

    /// The devices of this process, by rank.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.ranks.iter().map(|rank| rank.device.clone()).collect()
    }

    /// The devices of all ranks, to be measured.
    #[must_use]
    pub fn rank_devices(&self) -> Vec<RankDevice> {
        let here = self.ranks.iter().map(|rank| RankDevice::here(&rank.device));
        let gauges = match &self.party {
            Party::Processes(processes) => processes.gauges(),
            _ => Vec::new(),
        };
        let there = self.others.iter().zip(gauges);
        let there = there.map(|(offer, gauge)| RankDevice::there(&offer.place, gauge));
        here.chain(there).collect()
    }

    /// How this process takes part in a trial of exchanges; `None` where all ranks are its own.
    #[must_use]
    pub fn trial(&self) -> Option<Trial<'_>> {
        let (Party::Processes(_) | Party::Follows(_), Some(agreed)) = (&self.party, &self.agreed)
        else {
            return None;
        };
        let [RankPlan { device, .. }] = &self.ranks[..] else { return None };
        let rank = u32::try_from(self.first).ok()?;
        let world = u32::try_from(self.options.ranks).ok()?;
        Some(Trial { device, id: &agreed.trial, rank, world })
    }

    /// Has the ranks in other processes try exchanges, while `own` does so on rank 0.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn try_exchanges<T>(&self, own: impl FnOnce() -> T) -> Result<(T, Vec<Tried>), LoadError> {
        let Party::Processes(processes) = &self.party else { return Ok((own(), Vec::new())) };
        processes.tell(&ToRank::TryExchanges)?;
        let own = own();
        let others = processes.all(|report| match report {
            Report::Tried(tried) => Some(tried),
            _ => None,
        })?;
        Ok((own, others))
    }

    /// Loads the weights of a rank that is not rank 0, and does what rank 0 says until that wants no more. `own` tries exchanges.
    ///
    /// # Errors
    /// If loading fails.
    pub fn follow(self, own: impl Fn(&Self) -> Tried) -> Result<Ended, LoadError> {
        let Party::Follows(leader) = &self.party else {
            return Err(LoadError::Process("this process leads".into()));
        };
        let leader = leader.clone();
        while leader.next()? == Next::TryExchanges {
            leader.tried(own(&self))?;
        }
        let Self { checkpoint, config, options, first, ranks, agreed, limits, .. } = self;
        let job = Job {
            checkpoint: &checkpoint,
            config: &config,
            options: &options,
            limits,
            first,
            world: options.ranks,
            comm: agreed.as_ref().map(|agreed| &agreed.comm),
        };
        let mut told = 0;
        let mut models = job.load_all(ranks, (None, 0), &mut |progress| {
            if let LoadProgress::Weights { bytes, .. } = progress
                && bytes != std::mem::replace(&mut told, bytes)
            {
                // If rank 0 is gone, so is this process in a moment.
                let _ = leader.tell(&FromRank::Loaded(bytes));
            }
        })?;
        drop(checkpoint);
        match models.pop() {
            Some(model) => follow(model, &leader, limits, options.step_timeout),
            None => Err(LoadError::Process("a rank without a device".into())),
        }
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
        let Self { checkpoint, config, options, ranks, sampler, limits, buckets, info, .. } = self;
        let devices: Vec<Device> = ranks.iter().map(|rank| rank.device.clone()).collect();
        let processes = match self.party {
            Party::Threads => None,
            Party::Processes(processes) => {
                processes.tell(&ToRank::Load)?;
                Some(processes)
            }
            Party::Follows(_) => return Err(LoadError::Process("this process follows".into())),
        };
        let job = Job {
            checkpoint: &checkpoint,
            config: &config,
            options: &options,
            limits,
            first: 0,
            world: options.ranks,
            comm: self.agreed.as_ref().map(|agreed| &agreed.comm),
        };
        let stored_there = self.others.iter().map(|offer| offer.stored).sum();
        let models = job.load_all(ranks, (processes.as_ref(), stored_there), progress)?;
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
        let sampler = sampler.expect("rank 0 is here");
        let runner = DeviceRunner::new((models, processes), sampler, bounds, buckets, timeout);
        let mut runner = runner.map_err(LoadError::Thread)?;
        if let DecodeGraphs::Captured { sizes, bytes } = &info.graphs {
            let free = graphs::free_bytes(&devices);
            let total_sizes = sizes.len();
            let mut report = |sizes| progress(LoadProgress::Graphs { sizes, total_sizes });
            report(0);
            let captured = runner.capture(timeout, &mut report);
            captured.map_err(|error| LoadError::Capture(error.message))?;
            let elsewhere: u64 = self.others.iter().map(|offer| offer.graph_bytes).sum();
            graphs::compare(free, graphs::free_bytes(&devices), bytes - elsewhere);
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

/// What ranks compute.
struct Recorded {
    ranks: Vec<RecordedRank>,
    /// Of rank 0, if that is among them.
    sampler: Option<SamplerTensors>,
    replaced: Vec<Replaced>,
}

/// What one rank computes.
struct RecordedRank {
    program: Program,
    inputs: Inputs,
    kv: KvDesc<'static>,
}

impl Recorded {
    /// Leaves what the ranks here compute; gives the operations of the others.
    fn split_off(&mut self, here: usize) -> Vec<Vec<OpBuf>> {
        self.ranks.split_off(here).into_iter().map(|rank| rank.program.ops).collect()
    }
}

/// Records what each rank here computes, and on rank 0 what all do. If they cannot share the model, the error says how many could.
fn record(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    options: &Resolved,
    here: Here<'_>,
) -> Result<Recorded, LoadError> {
    let record = |indices: Range<usize>, world: usize| {
        let source = Source::new(checkpoint, config, options.fallback);
        let mut sampler = None;
        let mut ranks = Vec::with_capacity(world);
        for rank in indices.map(|index| Rank { index, world }) {
            let shares = Shares::new(config, rank)?;
            let kv = kv_desc(config, shares.kv_heads.len, options)?;
            let layout = here.devices[0].kv_layout(&kv);
            let layout = layout.map_err(failed("arranging the KV cache"))?;
            let fused_kv = layout.block_bytes[1] == 0;
            let mut graph = Graph::new(&source, options.compute, fused_kv, rank);
            let (len, block) = (options.max_model_len, options.block_size);
            let decoder = models::record(&mut graph, config, &shares, len, block)?;
            if rank.index == 0 {
                let (logits, most) = (&decoder.logits, options.max_logprobs as usize);
                sampler = Some(sampling::record(&mut graph, logits, config.vocab_size, most));
            }
            let program = graph.finish();
            ranks.push(RecordedRank { program, inputs: decoder.inputs, kv });
        }
        Ok(Recorded { ranks, sampler, replaced: source.replaced() })
    };
    let Here { first, world, devices } = here;
    let indices = if first == 0 { 0..world } else { first..first + devices.len() };
    record(indices, world).map_err(|error| match error {
        LoadError::Indivisible { tensor, why, ranks, .. } => {
            let works = |&world: &usize| record(0..world, world).is_ok();
            let works = (1..=MAX_WORLD as usize).filter(works).collect();
            LoadError::Indivisible { tensor, why, ranks, works }
        }
        other => other,
    })
}

/// What this process tells rank 0 of its device, or as rank 0 itself.
fn offer(
    here: Here<'_>,
    options: &Resolved,
    (pool, demands): (&Pool, &[Demand]),
    graphs: Result<(), String>,
    stored: u64,
) -> Offer {
    let sum = Demand::sum(demands, &[]);
    let device = &here.devices[0];
    Offer {
        terms: party::terms(options),
        place: place(device),
        kind: party::kind(device),
        num_blocks: pool.num_blocks,
        max_model_len: pool.max_model_len,
        graphs,
        weights: sum.weights,
        block: sum.block,
        graph_bytes: sum.graphs,
        stored,
    }
}

/// Serves rank 0 with a loaded model until it wants no more.
fn follow(
    model: Model,
    leader: &Leader,
    limits: Sizes,
    timeout: Duration,
) -> Result<Ended, LoadError> {
    let Sizes { tokens, rows, table_width, .. } = limits;
    let work = || Work::new(Batch::with_capacity(tokens, rows, table_width));
    let mailbox = Arc::new(Mailbox::new(work()));
    leader.serve(Arc::clone(&mailbox), work(), timeout);
    leader.tell(&FromRank::Ready)?;
    let comm = model.exec.comm_handle();
    let mut ended = Ended::AsTold;
    let rank = RunningRank { model, mailbox, work: work(), timeout };
    rank.serve(|failed| {
        ended = Ended::Failed;
        // First the cause, then the end that wakes the others.
        leader.fail(failed);
        if let Some(error) = comm.and_then(|comm| comm.abort().err()) {
            tracing::warn!(%error, "the communicator could not be ended");
        }
    });
    Ok(ended)
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
    (here, others): (Here<'_>, &[Offer]),
    config: &ModelConfig,
    options: &Resolved,
    (pool, demand): (&Pool, &Demand),
    graphs: DecodeGraphs,
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
        device: device_names(here.devices, others),
        tensor_parallel_size: here.world,
        weight_bytes: demand.weights,
        kv_bytes: pool.num_blocks as u64 * demand.block,
        dispatch: None,
        graphs,
    }
}

/// What comes of `captured` sizes, none if that is not `possible` or not wished for.
fn decode_graphs(possible: Result<(), String>, captured: &Buckets, bytes: u64) -> DecodeGraphs {
    match (possible, captured.sizes()) {
        (Err(why), _) => DecodeGraphs::Off(why),
        (Ok(()), []) => DecodeGraphs::Off("--enforce-eager".into()),
        (Ok(()), sizes) => DecodeGraphs::Captured { sizes: sizes.to_vec(), bytes },
    }
}

/// `cuda:0, cuda:1 (NVIDIA H100, sm_90)`.
fn device_names(devices: &[Device], others: &[Offer]) -> String {
    let details = devices.first().map(details).unwrap_or_default();
    format!("{}{details}", party::places(devices, others))
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
