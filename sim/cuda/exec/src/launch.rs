//! A launch: held to the device's limits, its blocks spread over workers in an order that the seed decides.

use crate::block::Block;
use crate::fault::Fault;
use crate::image::Kernel;
use crate::random::Random;
use crate::{Counters, Profile};
use halyard_sim_memory::{Memory, Order};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// Everything that a kernel is started with.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub shared_bytes: u32,
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: Vec<u8>,
    /// Index of the device.
    pub device: u32,
    /// A bit for each device whose memory it may use beside its own.
    pub peers: u64,
    /// Its place among the operations of all streams.
    pub order: Order,
    /// Decides the order of blocks and warps.
    pub seed: u64,
}

/// Why a launch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A grid or block of a size that is not allowed.
    #[error("kernel {kernel}: {what}")]
    Shape {
        /// The kernel.
        kernel: String,
        /// Which extent, and its limit.
        what: String,
    },
    /// More of a multiprocessor than there is, or than was asked for.
    #[error("kernel {kernel}: {what}")]
    Resources {
        /// The kernel.
        kernel: String,
        /// What, how much of it, and the limit.
        what: String,
    },
}

impl Launch {
    /// Checks the launch against a device. `opt_in` is the limit of shared memory that the kernel was given by attribute.
    ///
    /// # Errors
    /// The first limit that it breaks.
    pub fn check(&self, profile: &Profile, opt_in: u32) -> Result<(), LaunchError> {
        let kernel = self.kernel.name().to_owned();
        let shape = |what| Err(LaunchError::Shape { kernel: kernel.clone(), what });
        let [gx, gy, gz] = self.grid;
        let [bx, by, bz] = self.block;
        if gx == 0 || gy == 0 || gz == 0 || bx == 0 || by == 0 || bz == 0 {
            return shape(format!(
                "grid {:?} and block {:?} must not be empty",
                self.grid, self.block
            ));
        }
        if gx > i32::MAX as u32 || gy > 65_535 || gz > 65_535 {
            return shape(format!("grid {:?}, at most [2147483647, 65535, 65535]", self.grid));
        }
        let threads = u64::from(bx) * u64::from(by) * u64::from(bz);
        if threads > Profile::BLOCK_THREADS.into() || bz > 64 {
            return shape(format!("block {:?}, at most 1024 threads, 64 of them in z", self.block));
        }
        let limits = self.kernel.program().limits;
        let most = limits.max_threads.map(|[x, y, z]| u64::from(x) * u64::from(y) * u64::from(z));
        if most.is_some_and(|most| threads > most) {
            return shape(format!("block of {threads} threads, at most {most:?} by its .maxntid"));
        }
        if limits.required_threads.is_some_and(|required| required != self.block) {
            return shape(format!("block {:?}, not as its .reqntid says", self.block));
        }
        let shared = u64::from(self.kernel.shared_bytes()) + u64::from(self.shared_bytes);
        let limit = opt_in.clamp(Profile::SHARED_BYTES, profile.shared_opt_in_bytes);
        if shared > limit.into() {
            let most = profile.shared_opt_in_bytes;
            let what = format!(
                "{shared} bytes of shared memory a block, {limit} allowed (attribute \
                 MAX_DYNAMIC_SHARED_SIZE_BYTES; at most {most} on {})",
                profile.name
            );
            return Err(LaunchError::Resources { kernel, what });
        }
        Ok(())
    }

    fn blocks(&self) -> u64 {
        self.grid.iter().map(|extent| u64::from(*extent)).product()
    }

    /// The block that comes `turn`th.
    fn block_at(&self, turn: u64, random: Shuffle) -> [u32; 3] {
        let number = random.place(turn, self.blocks());
        let [x, y, _] = self.grid.map(u64::from);
        [(number % x) as u32, (number / x % y) as u32, (number / x / y) as u32]
    }
}

/// A permutation of blocks, by a step that is coprime to their number.
#[derive(Clone, Copy, Debug)]
struct Shuffle {
    step: u64,
    first: u64,
}

impl Shuffle {
    fn new(seed: u64, blocks: u64) -> Self {
        let mut random = Random::new(seed);
        let mut step = random.next() % blocks.max(1);
        while gcd(step, blocks) != 1 {
            step += 1;
        }
        Self { step, first: random.next() % blocks.max(1) }
    }

    fn place(self, turn: u64, blocks: u64) -> u64 {
        let moved = u128::from(turn) * u128::from(self.step) + u128::from(self.first);
        (moved % u128::from(blocks)) as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Workers that launches share.
#[derive(Debug)]
pub struct Executor {
    memory: Arc<Memory>,
    helpers: Vec<Sender<Arc<Job>>>,
    limit: u64,
    compiles: bool,
}

/// One launch under way.
#[derive(Debug)]
struct Job {
    launch: Launch,
    memory: Arc<Memory>,
    limit: u64,
    compiles: bool,
    shuffle: Shuffle,
    next: AtomicU64,
    stop: AtomicBool,
    state: Mutex<Outcome>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Outcome {
    workers: usize,
    counters: Counters,
    fault: Option<Fault>,
}

impl Executor {
    /// Instructions that the warps of a block may execute unless [`Executor::with_limit`] says otherwise: more than any kernel that ends
    /// executes in a test, and a minute or so of one that does not.
    pub const LIMIT: u64 = 1 << 31;

    /// Workers over `memory`: the thread that launches, and `helpers` others.
    #[must_use]
    pub fn new(memory: Arc<Memory>, helpers: usize) -> Self {
        let helpers = (0..helpers).filter_map(|index| {
            let (sender, receiver) = channel();
            let name = format!("cuda-sim-{index}");
            let spawned = thread::Builder::new().name(name).spawn(move || help(&receiver));
            // Fewer threads make launches slower, not wrong.
            spawned.ok().map(|_| sender)
        });
        Self { memory, helpers: helpers.collect(), limit: Self::LIMIT, compiles: true }
    }

    /// The same, where a block whose warps have executed `instructions` instructions counts as one that never ends.
    #[must_use]
    pub fn with_limit(self, instructions: u64) -> Self {
        Self { limit: instructions, ..self }
    }

    /// The same, where nothing is compiled to machine code: every instruction is interpreted, to the same results.
    #[must_use]
    pub fn interpreting(self) -> Self {
        Self { compiles: false, ..self }
    }

    /// The memory that kernels use.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Runs a launch to its end.
    ///
    /// # Errors
    /// The first mistake that a thread made; blocks that had not begun by then are not run.
    pub fn run(&self, launch: Launch) -> Result<Counters, Box<Fault>> {
        let blocks = launch.blocks();
        let job = Arc::new(Job {
            shuffle: Shuffle::new(launch.seed, blocks),
            launch,
            memory: self.memory.clone(),
            limit: self.limit,
            compiles: self.compiles,
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            state: Mutex::default(),
            idle: Condvar::new(),
        });
        for helper in self.helpers.iter().take(usize::try_from(blocks - 1).unwrap_or(usize::MAX)) {
            // A helper that is gone leaves its blocks to the others.
            _ = helper.send(job.clone());
        }
        job.work();
        let state = job.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = job
            .idle
            .wait_while(state, |state| state.workers > 0)
            .unwrap_or_else(PoisonError::into_inner);
        match state.fault.take() {
            Some(fault) => Err(Box::new(fault)),
            None => Ok(state.counters),
        }
    }
}

fn help(jobs: &Receiver<Arc<Job>>) {
    while let Ok(job) = jobs.recv() {
        job.work();
    }
}

impl Job {
    /// Takes blocks until there are none.
    fn work(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).workers += 1;
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.blocks()));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok((counters, fault)) => {
                state.counters.add(&counters);
                state.fault = state.fault.take().or(fault);
            }
            Err(_) => state.fault = state.fault.take().or_else(|| Some(self.internal())),
        }
        state.workers -= 1;
        self.idle.notify_all();
    }

    fn blocks(&self) -> (Counters, Option<Fault>) {
        let blocks = self.launch.blocks();
        if self.next.load(SeqCst) >= blocks {
            return (Counters::default(), None);
        }
        let mut block = Block::new(&self.launch, &self.memory, self.limit, self.compiles);
        let mut fault = None;
        while fault.is_none() && !self.stop.load(SeqCst) {
            let turn = self.next.fetch_add(1, SeqCst);
            if turn >= blocks {
                break;
            }
            let mut random = Random::new(self.launch.seed ^ turn.rotate_left(32));
            let id = self.launch.block_at(turn, self.shuffle);
            fault = block.run(id, &mut random).err();
        }
        if fault.is_some() {
            self.stop.store(true, SeqCst);
        }
        (block.finish(), fault)
    }

    /// A panic of the executor itself, which must not take the process with it.
    fn internal(&self) -> Fault {
        self.stop.store(true, SeqCst);
        Fault {
            kind: crate::FaultKind::Trap,
            kernel: self.launch.kernel.name().to_owned(),
            line: 0,
            block: [0; 3],
            thread: [0; 3],
            text: "the simulator itself failed: a bug in it".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_its_turn() {
        for blocks in [1, 2, 12, 97, 1000] {
            for seed in 0..20 {
                let shuffle = Shuffle::new(seed, blocks);
                let mut seen: Vec<_> =
                    (0..blocks).map(|turn| shuffle.place(turn, blocks)).collect();
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..blocks));
            }
        }
    }
}
