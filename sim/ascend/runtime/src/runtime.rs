//! The devices of the process, and what the libraries hand out of them.

use crate::code::{Code, Failure, Outcome};
use crate::soc::Chip;
use crate::stream::Stream;
use halyard_sim_memory::{Home, Memory, Order, Past};
use std::any::Any;
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::env;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Names the devices, such as `910B1,910B4`; without it there is one 910B1.
const DEVICES: &str = "HALYARD_SIM_ASCEND_DEVICES";
/// The devices that the process has, by their place in that list; without it all.
const VISIBLE: &str = "ASCEND_RT_VISIBLE_DEVICES";
/// Decides how late streams are.
const SEED: &str = "HALYARD_SIM_ASCEND_SEED";
/// The longest that a stream waits before an operation, in microseconds.
const DELAY: &str = "HALYARD_SIM_ASCEND_DELAY_US";

/// All of the libraries' state.
pub(crate) struct Runtime {
    pub(crate) devices: Vec<Device>,
    /// What is in the machine: the chip, and the device that it is for this process.
    pub(crate) cards: Vec<(&'static Chip, Option<u32>)>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) handles: Handles,
    pub(crate) seed: u64,
    pub(crate) delay_us: u64,
    timeline: Mutex<Timeline>,
}

/// One device.
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) chip: &'static Chip,
    /// The context that `aclrtSetDevice` makes.
    pub(crate) context: OnceLock<usize>,
    /// What NULL as a stream means.
    default_stream: OnceLock<Arc<Stream>>,
    /// Once it is lost every call fails, until it is reset.
    lost: Mutex<Option<Failure>>,
}

/// A context: all that matters of it is its device.
pub(crate) struct Context {
    pub(crate) device: u32,
}

/// Operations whose names are kept: those that a failure may still name.
const NAMED: usize = 1 << 16;

/// What was enqueued so far, and what the host knows to be done.
#[derive(Default)]
pub(crate) struct Timeline {
    /// The number of the operation that was enqueued last; they are numbered from 1.
    last: u32,
    /// Names of the latest ones, for messages.
    names: VecDeque<&'static str>,
    pub(crate) host: Past,
}

impl Timeline {
    /// The number of the next operation.
    pub(crate) fn next(&mut self, name: &'static str) -> u32 {
        if self.names.len() == NAMED {
            self.names.pop_front();
        }
        self.names.push_back(name);
        self.last = self.last.checked_add(1).expect("fewer than four thousand million operations");
        self.last
    }

    /// An operation of the host, after all that it knows to be done.
    pub(crate) fn host_order(&mut self, name: &'static str) -> Order {
        let order = Order { op: self.next(name), past: self.host.clone() };
        self.host.insert(order.op);
        order
    }

    /// What the operation with this number is.
    pub(crate) fn name(&self, op: u32) -> &'static str {
        let back = self.last.checked_sub(op).map(|back| back as usize);
        let index = back.and_then(|back| self.names.len().checked_sub(back + 1));
        index.and_then(|i| self.names.get(i)).copied().unwrap_or("an operation")
    }
}

/// Something that callers know by a handle.
pub(crate) trait Kind: Any + Send + Sync {
    /// What it is called.
    const NAME: &'static str;
    /// Result for a handle that is not one.
    const BAD: Code = Code::HANDLE;
    /// What has become of a handle that is none any more.
    const GONE: &'static str = "was destroyed";
}

impl Kind for Context {
    const NAME: &'static str = "context";
}

/// A thing, and what it is called.
type Named = (&'static str, Arc<dyn Any + Send + Sync>);
type Table = HashMap<usize, Named>;

/// Things that callers know by number. A number is never used twice, so that a stale one is noticed.
#[derive(Default)]
pub(crate) struct Handles {
    all: Mutex<Table>,
}

const FIRST_HANDLE: usize = 0x10000;
const HANDLE_STEP: usize = 16;
static NEXT_HANDLE: AtomicUsize = AtomicUsize::new(FIRST_HANDLE);

impl Handles {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add<T: Kind>(&self, thing: Arc<T>) -> usize {
        let handle = NEXT_HANDLE.fetch_add(HANDLE_STEP, SeqCst);
        self.lock().insert(handle, (T::NAME, thing));
        handle
    }

    /// The thing that `argument` says.
    pub(crate) fn get<T: Kind>(&self, argument: &str, handle: usize) -> Outcome<Arc<T>> {
        let found = self.lock().get(&handle).cloned();
        typed(argument, handle, found)
    }

    /// Takes the thing that `argument` says away.
    pub(crate) fn remove<T: Kind>(&self, argument: &str, handle: usize) -> Outcome<Arc<T>> {
        let mut all = self.lock();
        let found = typed(argument, handle, all.get(&handle).cloned())?;
        all.remove(&handle);
        Ok(found)
    }

    /// All things of a kind.
    pub(crate) fn all<T: Kind>(&self) -> Vec<(usize, Arc<T>)> {
        let all = self.lock();
        let of_kind = all.iter().filter_map(|(handle, (_, thing))| {
            Some((*handle, Arc::clone(thing).downcast::<T>().ok()?))
        });
        of_kind.collect()
    }
}

fn typed<T: Kind>(argument: &str, handle: usize, found: Option<Named>) -> Outcome<Arc<T>> {
    if handle == 0 {
        return Err(Failure::null(argument));
    }
    let given = (FIRST_HANDLE..NEXT_HANDLE.load(SeqCst)).contains(&handle)
        && (handle - FIRST_HANDLE).is_multiple_of(HANDLE_STEP);
    let what = match found {
        Some((name, thing)) => match thing.downcast::<T>() {
            Ok(thing) => return Ok(thing),
            Err(_) => format!("is of kind {name}"),
        },
        None if given => T::GONE.to_owned(),
        None => "was never made here".to_owned(),
    };
    let wanted = T::NAME;
    let text = format!("argument `{argument}`: {handle:#x} {what}; kind {wanted} was expected");
    Err(Failure::new(T::BAD, text))
}

static RUNTIME: OnceLock<Result<Runtime, Failure>> = OnceLock::new();
static INITIALISED: AtomicBool = AtomicBool::new(false);
static FINALIZED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Handle of this thread's context, or 0.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// `aclInit`.
pub(crate) fn initialise() -> Outcome {
    start()?;
    if INITIALISED.swap(true, SeqCst) {
        return Err(Failure::new(Code::REPEAT_INITIALISE, "aclInit was called before"));
    }
    FINALIZED.store(false, SeqCst);
    Ok(())
}

/// `aclFinalize`.
pub(crate) fn finalize() -> Outcome {
    if !INITIALISED.swap(false, SeqCst) {
        let (code, text) = match FINALIZED.load(SeqCst) {
            true => (Code::REPEAT_FINALIZE, "aclFinalize was called before"),
            false => (Code::NOT_INITIALISED, "aclInit was not called"),
        };
        return Err(Failure::new(code, text));
    }
    FINALIZED.store(true, SeqCst);
    Ok(())
}

fn start() -> Outcome<&'static Runtime> {
    RUNTIME.get_or_init(Runtime::new).as_ref().map_err(Clone::clone)
}

/// The state, which needs `aclInit`.
pub(crate) fn runtime() -> Outcome<&'static Runtime> {
    if !INITIALISED.load(SeqCst) {
        return Err(Failure::new(Code::NOT_INITIALISED, "aclInit was not called"));
    }
    start()
}

/// The state, for those who look from outside.
pub(crate) fn initialised_or_not() -> Outcome<&'static Runtime> {
    start()
}

/// The state, for objects that need no device: they may be made before `aclInit`.
pub(crate) fn objects() -> Outcome<&'static Handles> {
    Ok(&start()?.handles)
}

/// The state and this thread's device.
pub(crate) fn here() -> Outcome<(&'static Runtime, &'static Device)> {
    let runtime = runtime()?;
    let handle = current_context();
    if handle == 0 {
        let text = "this thread has no device: neither aclrtSetDevice nor aclrtSetCurrentContext was called on it";
        return Err(Failure::new(Code::CONTEXT_NULL, text));
    }
    let context: Arc<Context> =
        runtime.handles.get("context", handle).map_err(|f| f.coded(Code::CONTEXT_NULL))?;
    let device = &runtime.devices[context.device as usize];
    device.healthy()?;
    Ok((runtime, device))
}

pub(crate) fn current_context() -> usize {
    CURRENT.get()
}

pub(crate) fn set_current_context(handle: usize) {
    CURRENT.set(handle);
}

impl Runtime {
    fn new() -> Outcome<Self> {
        let names = env::var(DEVICES).unwrap_or_else(|_| "910B1".to_owned());
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let chips = names.map(Chip::named).collect::<Outcome<Vec<_>>>();
        let chips = chips.map_err(|failure| failure.within(DEVICES))?;
        let places = visible(chips.len())?;
        let device_of = |card: usize| (0..).zip(&places).find(|(_, place)| **place == card);
        let cards = chips.iter().enumerate();
        let cards = cards.map(|(card, chip)| (*chip, device_of(card).map(|(device, _)| device)));
        let cards = cards.collect();
        let chips: Vec<_> = places.iter().map(|place| chips[*place]).collect();
        let memory = Memory::new(chips.iter().map(|chip| chip.hbm_bytes).collect());
        let devices = chips.into_iter().zip(0..).map(|(chip, index)| Device {
            index,
            chip,
            context: OnceLock::new(),
            default_stream: OnceLock::new(),
            lost: Mutex::default(),
        });
        Ok(Self {
            devices: devices.collect(),
            cards,
            memory: Arc::new(memory),
            handles: Handles::default(),
            seed: number(SEED).unwrap_or(1),
            delay_us: number(DELAY).unwrap_or(200),
            timeline: Mutex::default(),
        })
    }

    pub(crate) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device with this index.
    pub(crate) fn device(&self, argument: &str, index: i32) -> Outcome<&Device> {
        let found = usize::try_from(index).ok().and_then(|index| self.devices.get(index));
        found.ok_or_else(|| {
            let count = self.devices.len();
            let text = format!("argument `{argument}`: device {index} of {count}");
            Failure::new(Code::DEVICE_ID, text)
        })
    }

    /// All streams of a device, the default one among them.
    pub(crate) fn streams_of(&self, device: &Device) -> Vec<Arc<Stream>> {
        let mut all: Vec<_> =
            self.handles.all::<Stream>().into_iter().map(|(_, stream)| stream).collect();
        all.retain(|stream| stream.device == device.index);
        all.extend(device.default_stream.get().cloned());
        all
    }

    /// The stream that `argument` says, which must be of this device; NULL is the default one.
    pub(crate) fn stream(
        &'static self,
        device: &'static Device,
        handle: usize,
    ) -> Outcome<Arc<Stream>> {
        if handle == 0 {
            return device.default_stream(self);
        }
        let stream: Arc<Stream> = self.handles.get("stream", handle)?;
        if stream.device != device.index {
            let (its, own) = (stream.device, device.index);
            let text = format!(
                "argument `stream`: a stream of device {its}, and this thread's device is {own}"
            );
            return Err(Failure::new(Code::STREAM_CONTEXT, text));
        }
        Ok(stream)
    }

    /// A memory failure in words that name the other operation.
    pub(crate) fn explain(&self, error: halyard_sim_memory::MemoryError) -> Failure {
        let other = match &error {
            halyard_sim_memory::MemoryError::StreamRace { op, .. } => {
                format!(" (operation {op} is {})", self.timeline().name(*op))
            }
            _ => String::new(),
        };
        let mut failure = Failure::from(error);
        failure.text += &other;
        failure
    }

    /// `bytes` bytes from `address` are memory of `device`.
    pub(crate) fn check_device_range(
        &self,
        device: &Device,
        address: u64,
        bytes: u64,
    ) -> Result<(), String> {
        let at = format!("{address:#x}");
        match self.memory.lookup(address) {
            Some((base, size, Home::Device(owner))) => {
                if owner != device.index {
                    return Err(format!(
                        "{at} is memory of device {owner}, and this thread's device is {}",
                        device.index
                    ));
                }
                if bytes > size as u64 - (address - base) {
                    return Err(format!(
                        "{bytes} bytes from {at}: the allocation has {size} bytes from {base:#x}"
                    ));
                }
                Ok(())
            }
            Some((_, _, Home::Host)) => {
                Err(format!("{at} is pinned memory of the host; memory of the device was expected"))
            }
            None => {
                let (freed, what) = self.memory.describe(address, 1, "use of");
                if freed || address >= FIRST_DEVICE_ADDRESS {
                    return Err(what);
                }
                Err(format!("{at} is memory of the host; memory of the device was expected"))
            }
        }
    }
}

/// Below this there are only addresses of the host.
pub(crate) const FIRST_DEVICE_ADDRESS: u64 = 1 << 48;

impl Device {
    /// What NULL as a stream means; it begins when it is first used.
    pub(crate) fn default_stream(&'static self, runtime: &'static Runtime) -> Outcome<Arc<Stream>> {
        if let Some(stream) = self.default_stream.get() {
            return Ok(stream.clone());
        }
        let stream = Stream::new(runtime, self, true)?;
        Ok(self.default_stream.get_or_init(|| stream).clone())
    }

    fn lost(&self) -> MutexGuard<'_, Option<Failure>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The failure that lost this device, if it is lost.
    pub(crate) fn healthy(&self) -> Outcome {
        self.lost().clone().map_or(Ok(()), Err)
    }

    /// Every later call fails with this.
    pub(crate) fn lose(&self, failure: Failure) {
        self.lost().get_or_insert(failure);
    }

    /// `aclrtResetDevice`: begins anew.
    pub(crate) fn reset(&self, runtime: &Runtime) {
        *self.lost() = None;
        for stream in runtime.streams_of(self) {
            stream.forgive();
        }
    }
}

/// Places, ascending, of the devices that the process has.
fn visible(count: usize) -> Outcome<Vec<usize>> {
    let Ok(text) = env::var(VISIBLE) else { return Ok((0..count).collect()) };
    let places = text.split(',').map(|place| place.trim().parse().ok().filter(|p| *p < count));
    let places: Option<Vec<usize>> = places.collect();
    places.filter(|places| places.is_sorted_by(|a, b| a < b)).ok_or_else(|| {
        let what = format!("'{text}'; places from 0 to {}, ascending, were expected", count - 1);
        Failure::argument(VISIBLE, what).coded(Code::NO_DEVICE)
    })
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}
