//! The ranks of a plan that are here: what each will run, and their loading, side by side.

use std::{
    panic::resume_unwind,
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread,
    time::Duration,
};

use halyard_core::{CommId, CommSpec, Communicator, Device, Kernel, KvDesc};
use halyard_weights::{Checkpoint, ModelConfig};

use super::{
    LoadProgress, RecordedRank, device_name, failed, graphs, memory::Demand, options::Resolved,
    party::Here, prepare, weights,
};
use crate::{
    buckets::Buckets,
    error::LoadError,
    process::{RankProcesses, Report},
    program::{Executable, Inputs, Parts, Program, Sizes, workspace_bytes},
    runner::Model,
};

/// How often ranks in other processes are asked how far they are.
const TICK: Duration = Duration::from_millis(50);
/// What the word of a process that has just ended may take.
const A_MOMENT: Duration = Duration::from_millis(500);

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
    /// One for each device here.
    pub(super) fn all(here: Here<'_>, recorded: Vec<RecordedRank>) -> Result<Vec<Self>, LoadError> {
        let mut most_slow = 0;
        let ranks = here.devices.iter().zip(recorded).map(|(device, recorded)| {
            let RecordedRank { program, inputs, kv } = recorded;
            let (kernels, slow) = prepare(device, &program)?;
            most_slow = slow.max(most_slow);
            Ok(Self { device: device.clone(), program, inputs, kernels, kv })
        });
        let ranks = ranks.collect::<Result<Vec<_>, LoadError>>()?;
        if most_slow > 0 && here.first == 0 {
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
    /// The first of the ranks here, and how many there are altogether.
    pub(super) first: usize,
    pub(super) world: usize,
    /// What the ranks meet by, if there are several.
    pub(super) comm: Option<&'a CommId>,
}

impl Job<'_> {
    /// Loads the parts of the ranks here, each in a thread of its own, and waits for those elsewhere, which read so many bytes.
    pub(super) fn load_all(
        &self,
        ranks: Vec<RankPlan>,
        (processes, stored_there): (Option<&RankProcesses>, u64),
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Vec<Model>, LoadError> {
        let stored_here = stored_bytes((self.checkpoint, self.config), &ranks)?;
        let total_bytes = stored_here + stored_there;
        self.checkpoint.advise_sequential();
        let mut elsewhere = Elsewhere::new(processes, self.world);
        let (sender, done) = channel();
        thread::scope(|scope| {
            let start = |(index, rank): (usize, RankPlan)| {
                let sender = sender.clone();
                let name = format!("halyard-load-{index}");
                let load = move || self.load_rank(index, rank, &sender);
                thread::Builder::new().name(name).spawn_scoped(scope, load)
            };
            let threads: Vec<_> = (self.first..).zip(ranks).map(start).collect();
            drop(sender);
            let mut here = 0;
            let mut tell = |bytes| progress(LoadProgress::Weights { bytes, total_bytes });
            tell(0);
            loop {
                match done.recv_timeout(TICK) {
                    Ok(more) => here += more,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                elsewhere.note_reports();
                tell(here + elsewhere.bytes());
            }
            let models = threads.into_iter().map(|thread| {
                let thread = thread.map_err(LoadError::Thread)?;
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            });
            let models: Result<Vec<Model>, LoadError> = models.collect();
            // What ended the loading here may be that a rank elsewhere was lost.
            let models = models.map_err(|error| elsewhere.cause().unwrap_or(error))?;
            elsewhere.finish(&mut |bytes| tell(here + bytes))?;
            Ok(models)
        })
    }

    fn load_rank(
        &self,
        index: usize,
        rank: RankPlan,
        done: &Sender<u64>,
    ) -> Result<Model, LoadError> {
        let device = device_name(&rank.device);
        let loaded = self.load_alone(index, rank, &mut |more| {
            // Whoever listened is gone only if it panicked.
            let _ = done.send(more);
        });
        match loaded {
            Err(source) if self.world > 1 => {
                Err(LoadError::Rank { rank: index, device, source: Box::new(source) })
            }
            loaded => loaded,
        }
    }

    fn load_alone(
        &self,
        index: usize,
        rank: RankPlan,
        report: &mut dyn FnMut(u64),
    ) -> Result<Model, LoadError> {
        let RankPlan { device, program, inputs, kernels, kv } = rank;
        let comm = self.join(&device, index)?;
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

    fn join(&self, device: &Device, index: usize) -> Result<Option<Communicator>, LoadError> {
        let Some(id) = self.comm else { return Ok(None) };
        let small = |value: usize| u32::try_from(value).expect("at most MAX_WORLD");
        let spec = CommSpec {
            id,
            rank: small(index),
            world: small(self.world),
            timeout: self.options.step_timeout,
            name: "tensor parallel",
            number: None,
        };
        device.join(&spec).map(Some).map_err(failed("joining the other ranks"))
    }
}

/// Bytes of the files that ranks read.
pub(super) fn stored_bytes(
    files: (&Checkpoint, &ModelConfig),
    ranks: &[RankPlan],
) -> Result<u64, LoadError> {
    ranks.iter().map(|rank| weights::stored_bytes(files, &rank.program)).sum()
}

/// The ranks that load in other processes, as far as they are known to be.
struct Elsewhere<'a> {
    processes: Option<&'a RankProcesses>,
    /// Bytes that are loaded, by rank.
    loaded: Vec<u64>,
    ready: usize,
    lost: Option<LoadError>,
}

impl<'a> Elsewhere<'a> {
    fn new(processes: Option<&'a RankProcesses>, world: usize) -> Self {
        Self { processes, loaded: vec![0; world], ready: 0, lost: None }
    }

    fn bytes(&self) -> u64 {
        self.loaded.iter().sum()
    }

    /// Takes in what there is, without waiting.
    fn note_reports(&mut self) {
        while self.lost.is_none() && self.note(Some(Duration::ZERO)) {}
    }

    /// Takes in one report; whether there was one.
    fn note(&mut self, within: Option<Duration>) -> bool {
        let Some(processes) = self.processes else { return false };
        match processes.report(within) {
            Ok(None) => return false,
            Ok(Some((rank, Report::Loaded(bytes)))) => self.loaded[rank] = bytes,
            Ok(Some((_, Report::Ready))) => self.ready += 1,
            Ok(Some((rank, other))) => {
                let message =
                    format!("rank {rank} does not keep to the order of things: {other:?}");
                self.lost = Some(LoadError::Process(message));
            }
            Err(error) => self.lost = Some(error),
        }
        true
    }

    /// Why a rank elsewhere was lost, if one was; it may be about to be known.
    fn cause(&mut self) -> Option<LoadError> {
        while self.lost.is_none() && self.note(Some(A_MOMENT)) {}
        self.lost.take()
    }

    /// Waits until all are ready.
    fn finish(&mut self, tell: &mut dyn FnMut(u64)) -> Result<(), LoadError> {
        let count = self.processes.map_or(0, |processes| processes.world() - 1);
        while self.ready < count && self.lost.is_none() && self.note(None) {
            tell(self.bytes());
        }
        match self.lost.take() {
            Some(lost) => Err(lost),
            None if self.ready < count => {
                Err(LoadError::Process("the other ranks are gone".into()))
            }
            None => Ok(()),
        }
    }
}

/// What ranks will meet by.
pub(super) fn comm_id(devices: &[Device]) -> Result<CommId, LoadError> {
    let first = devices.first().expect("a plan is for devices");
    first.comm_id().map_err(|error| {
        let id = first.backend().id();
        let message = format!("the backend {id} cannot exchange data between devices: {error}");
        LoadError::Option { option: "tensor_parallel_size", message }
    })
}
