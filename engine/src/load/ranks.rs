//! The ranks of a plan: what each will run, and their loading, side by side.

use std::{
    panic::resume_unwind,
    sync::mpsc::{Sender, channel},
    thread,
};

use halyard_core::{CommId, CommSpec, Communicator, Device, Kernel, KvDesc};
use halyard_weights::{Checkpoint, ModelConfig};

use super::{
    LoadProgress, RecordedRank, device_name, failed, graphs, memory::Demand, options::Resolved,
    prepare, weights,
};
use crate::{
    buckets::Buckets,
    error::LoadError,
    program::{Executable, Inputs, Parts, Program, Sizes, workspace_bytes},
    runner::Model,
};

/// A device and what will run on it.
#[derive(Debug)]
pub(super) struct RankPlan {
    pub(super) device: Device,
    pub(super) program: Program,
    inputs: Inputs,
    pub(super) kernels: Vec<Kernel>,
    kv: KvDesc<'static>,
}

impl RankPlan {
    /// One for each device.
    pub(super) fn all(
        devices: &[Device],
        recorded: Vec<RecordedRank>,
    ) -> Result<Vec<Self>, LoadError> {
        let mut most_slow = 0;
        let ranks = devices.iter().zip(recorded).map(|(device, recorded)| {
            let RecordedRank { program, inputs, kv } = recorded;
            let (kernels, slow) = prepare(device, &program)?;
            most_slow = slow.max(most_slow);
            Ok(Self { device: device.clone(), program, inputs, kernels, kv })
        });
        let ranks = ranks.collect::<Result<Vec<_>, LoadError>>()?;
        if most_slow > 0 {
            let of = ranks[0].program.ops.len();
            tracing::warn!(slow = most_slow, of, "the device runs some operations slowly");
        }
        Ok(ranks)
    }

    /// What it needs of its device's memory.
    pub(super) fn demand(&self, limits: &Sizes, graphs: &Buckets) -> Result<Demand, LoadError> {
        let Self { device, program, kernels, kv, .. } = self;
        let layout = device.kv_layout(kv).map_err(failed("arranging the KV cache"))?;
        let block_bytes = layout.block_bytes[0] + layout.block_bytes[1];
        Ok(Demand {
            weights: weights::planned_bytes(device, program)?,
            activations: program.buffer_bytes(limits) + workspace_bytes(program, kernels, limits),
            graphs: graphs::bytes(self, graphs),
            block: block_bytes * program.kv_layers as u64,
        })
    }
}

/// What the ranks load, and how.
pub(super) struct Job<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: &'a ModelConfig,
    pub(super) options: &'a Resolved,
    pub(super) limits: Sizes,
    /// What the ranks meet by, if there are several.
    pub(super) comm: Option<&'a CommId>,
}

impl Job<'_> {
    /// Loads every rank's part, each in a thread of its own.
    pub(super) fn load_all(
        &self,
        ranks: Vec<RankPlan>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Model>, LoadError> {
        let files = (self.checkpoint, self.config);
        let stored = ranks.iter().map(|rank| weights::stored_bytes(files, &rank.program));
        let total_bytes = stored.sum::<Result<u64, _>>()?;
        self.checkpoint.advise_sequential();
        let world = ranks.len();
        let (sender, done) = channel();
        thread::scope(|scope| {
            let start = |(index, rank): (usize, RankPlan)| {
                let sender = sender.clone();
                let name = format!("halyard-load-{index}");
                let load = move || self.load_rank(index, world, rank, &sender);
                thread::Builder::new().name(name).spawn_scoped(scope, load)
            };
            let threads: Vec<_> = ranks.into_iter().enumerate().map(start).collect();
            drop(sender);
            let mut bytes = 0;
            progress(LoadProgress::Weights { bytes, total_bytes });
            for more in done {
                bytes += more;
                progress(LoadProgress::Weights { bytes, total_bytes });
            }
            let models = threads.into_iter().map(|thread| {
                let thread = thread.map_err(LoadError::Thread)?;
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            });
            models.collect()
        })
    }

    fn load_rank(
        &self,
        index: usize,
        world: usize,
        rank: RankPlan,
        done: &Sender<u64>,
    ) -> Result<Model, LoadError> {
        let device = device_name(&rank.device);
        let loaded = self.load_alone(index, world, rank, &mut |more| {
            // Whoever listened is gone only if it panicked.
            let _ = done.send(more);
        });
        match loaded {
            Err(source) if world > 1 => {
                Err(LoadError::Rank { rank: index, device, source: Box::new(source) })
            }
            loaded => loaded,
        }
    }

    fn load_alone(
        &self,
        index: usize,
        world: usize,
        rank: RankPlan,
        report: &mut dyn FnMut(u64),
    ) -> Result<Model, LoadError> {
        let RankPlan { device, program, inputs, kernels, kv } = rank;
        let comm = self.join(&device, index, world)?;
        let stream = device.stream(0).map_err(failed("making a stream"))?;
        let files = (self.checkpoint, self.config);
        let weights = weights::load(&device, &stream, files, &program, report)?;
        let max_model_len = self.options.max_model_len;
        let contents = weights::contents(self.checkpoint, self.config, &program, max_model_len)?;
        let limits = self.limits;
        let parts = Parts { device: &device, stream, comm, kernels, weights, kv, limits };
        let exec = Executable::new(program, parts).map_err(failed("binding the model"))?;
        for (buffer, values) in contents {
            exec.fill_buffer(buffer, &values).map_err(failed("copying a vector to the device"))?;
        }
        Ok(Model::new(exec, inputs, limits.table_width, max_model_len))
    }

    fn join(
        &self,
        device: &Device,
        index: usize,
        world: usize,
    ) -> Result<Option<Communicator>, LoadError> {
        let Some(id) = self.comm else { return Ok(None) };
        let small = |value: usize| u32::try_from(value).expect("at most MAX_WORLD");
        let spec = CommSpec {
            id,
            rank: small(index),
            world: small(world),
            timeout: self.options.step_timeout,
            name: "tensor parallel",
            number: None,
        };
        device.join(&spec).map(Some).map_err(failed("joining the other ranks"))
    }
}

/// What the ranks will meet by; `None` if there is but one.
pub(super) fn comm_id(devices: &[Device]) -> Result<Option<CommId>, LoadError> {
    let [first, _, ..] = devices else { return Ok(None) };
    first.comm_id().map(Some).map_err(|error| {
        let id = first.backend().id();
        let message = format!("the backend {id} cannot exchange data between devices: {error}");
        LoadError::Option { option: "tensor_parallel_size", message }
    })
}
