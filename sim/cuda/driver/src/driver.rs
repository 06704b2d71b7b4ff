//! The devices of the process, and what the driver hands out of them.

use crate::code::{Code, Failure, Outcome};
use crate::stream::Stream;
use halyard_sim_cuda_exec::{Counters, Executor, Image, Kernel, Memory, Order, Past, Profile};
use std::collections::{BTreeMap, HashMap};
use std::env;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// Names the devices, such as `h100,h100`; without it there is one A100.
const DEVICES: &str = "HALYARD_SIM_CUDA_DEVICES";
/// Decides the order of blocks and warps.
const SEED: &str = "HALYARD_SIM_CUDA_SEED";
/// Threads that execute kernels, beside the streams' own.
const THREADS: &str = "HALYARD_SIM_CUDA_THREADS";

/// All of the driver's state.
pub(crate) struct Driver {
    pub(crate) devices: Vec<Device>,
    pub(crate) executor: Executor,
    pub(crate) timeline: Mutex<Timeline>,
    pub(crate) modules: Handles<Arc<Module>>,
    pub(crate) functions: Handles<Arc<Function>>,
    pub(crate) streams: Handles<Arc<Stream>>,
    pub(crate) events: Handles<Arc<crate::event::Event>>,
    pub(crate) graphs: Handles<Arc<crate::graph::Graph>>,
    pub(crate) seed: u64,
    /// By kernel: launches, and what they did.
    pub(crate) totals: Mutex<BTreeMap<String, (u64, Counters)>>,
}

/// One device and its primary context.
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) profile: &'static Profile,
    /// How often the context is retained.
    pub(crate) retained: AtomicU32,
    /// A bit for each device whose memory its kernels may use.
    pub(crate) peers: AtomicU64,
    /// The stream that all blocking streams wait for and that waits for them.
    pub(crate) null_stream: OnceLock<Arc<Stream>>,
    /// The first fault: every later call fails with it.
    pub(crate) fault: Mutex<Option<Failure>>,
}

/// What was enqueued so far, and what the host knows to be done.
#[derive(Default)]
pub(crate) struct Timeline {
    last: u32,
    pub(crate) host: Past,
}

impl Timeline {
    pub(crate) fn next(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    /// An operation of the host, after all that it knows to be done.
    pub(crate) fn host_order(&mut self) -> Order {
        let order = Order { op: self.next(), past: self.host.clone() };
        self.host.insert(order.op);
        order
    }
}

/// A loaded module.
pub(crate) struct Module {
    pub(crate) image: Image,
    pub(crate) device: u32,
    /// Handles of its kernels that were asked for, by name.
    pub(crate) functions: Mutex<HashMap<String, usize>>,
}

/// A kernel of a module.
pub(crate) struct Function {
    pub(crate) kernel: Kernel,
    pub(crate) module: Arc<Module>,
    /// What `MAX_DYNAMIC_SHARED_SIZE_BYTES` was set to.
    pub(crate) max_dynamic_shared: AtomicU32,
}

/// Things that the caller knows by number. A number is never used twice, so that a stale one is noticed.
pub(crate) struct Handles<T> {
    all: Mutex<HashMap<usize, T>>,
}

/// The next handle; far from zero and from numbers with a meaning.
static NEXT_HANDLE: AtomicUsize = AtomicUsize::new(0x10000);

impl<T: Clone> Handles<T> {
    fn new() -> Self {
        Self { all: Mutex::new(HashMap::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, T>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, thing: T) -> usize {
        let handle = NEXT_HANDLE.fetch_add(16, SeqCst);
        self.lock().insert(handle, thing);
        handle
    }

    pub(crate) fn get(&self, handle: usize) -> Outcome<T> {
        self.lock().get(&handle).cloned().ok_or_else(|| Code::InvalidHandle.into())
    }

    pub(crate) fn remove(&self, handle: usize) -> Outcome<T> {
        self.lock().remove(&handle).ok_or_else(|| Code::InvalidHandle.into())
    }

    pub(crate) fn values(&self) -> Vec<T> {
        self.lock().values().cloned().collect()
    }
}

static DRIVER: OnceLock<Result<Driver, Failure>> = OnceLock::new();
/// The devices' names, where a program chose them.
static CHOSEN: OnceLock<String> = OnceLock::new();

/// Chooses the devices, before the driver is started.
pub(crate) fn choose(names: String) -> Outcome {
    if DRIVER.get().is_some() || CHOSEN.set(names).is_err() {
        return Err(Failure::new(Code::InvalidValue, "devices are chosen once, before cuInit"));
    }
    Ok(())
}

impl Driver {
    /// The driver, started if it was not: `cuInit`.
    pub(crate) fn start() -> Outcome<&'static Self> {
        DRIVER.get_or_init(Self::new).as_ref().map_err(Clone::clone)
    }

    /// The driver, which must have been started.
    pub(crate) fn get() -> Outcome<&'static Self> {
        match DRIVER.get() {
            Some(driver) => driver.as_ref().map_err(Clone::clone),
            None => Err(Code::NotInitialized.into()),
        }
    }

    fn new() -> Outcome<Self> {
        let chosen = CHOSEN.get().cloned().or_else(|| env::var(DEVICES).ok());
        let names = chosen.unwrap_or_else(|| "a100-80g".to_owned());
        let profiles =
            names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(|name| {
                Profile::named(name).ok_or_else(|| {
                    let known: Vec<_> = Profile::ALL.iter().map(|profile| profile.name).collect();
                    let text = format!("{DEVICES} names '{name}'; known are {}", known.join(", "));
                    Failure::new(Code::InvalidDevice, text)
                })
            });
        let profiles = profiles.collect::<Outcome<Vec<_>>>()?;
        if profiles.is_empty() {
            return Err(Code::NoDevice.into());
        }
        let memory =
            Arc::new(Memory::new(profiles.iter().map(|profile| profile.memory_bytes).collect()));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = number(THREADS)
            .and_then(|threads| usize::try_from(threads).ok())
            .unwrap_or(cores)
            .max(1);
        Ok(Self {
            devices: profiles
                .into_iter()
                .zip(0..)
                .map(|(profile, index)| Device::new(index, profile))
                .collect(),
            executor: Executor::new(memory, threads - 1),
            timeline: Mutex::default(),
            modules: Handles::new(),
            functions: Handles::new(),
            streams: Handles::new(),
            events: Handles::new(),
            graphs: Handles::new(),
            seed: number(SEED).unwrap_or(0),
            totals: Mutex::default(),
        })
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        self.executor.memory()
    }

    pub(crate) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn device(&self, index: i32) -> Outcome<&Device> {
        let found = usize::try_from(index).ok().and_then(|index| self.devices.get(index));
        found.ok_or_else(|| Code::InvalidDevice.into())
    }

    /// Waits for everything that was enqueued on a device.
    pub(crate) fn synchronize(&self, device: &Device) -> Outcome {
        for stream in self.streams_of(device) {
            stream.synchronize(self)?;
        }
        device.healthy()
    }

    /// The null stream and all others.
    pub(crate) fn streams_of(&self, device: &Device) -> Vec<Arc<Stream>> {
        let mut all = self.streams.values();
        all.retain(|stream| stream.device == device.index);
        all.extend(device.null_stream.get().cloned());
        all
    }
}

impl Device {
    fn new(index: u32, profile: &'static Profile) -> Self {
        Self {
            index,
            profile,
            retained: AtomicU32::new(0),
            peers: AtomicU64::new(0),
            null_stream: OnceLock::new(),
            fault: Mutex::new(None),
        }
    }

    /// The failure that ended this device's context, if one did.
    pub(crate) fn healthy(&self) -> Outcome {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone().map_or(Ok(()), Err)
    }

    /// Begins the context anew.
    pub(crate) fn reset(&self) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ends the context: real ones do not recover from a fault either.
    pub(crate) fn fail(&self, failure: Failure) {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        crate::code::remember(&failure);
        fault.get_or_insert(failure);
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}
