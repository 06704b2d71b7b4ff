//! The traits a backend implements. They say in Rust what [`halyard_abi::traits`] says at the boundary; the contracts are there.

use halyard_abi::{
    A2av, AllocReq, Buffer, CommDesc, CopyReq, Event, Graph, InfoKey, KvDesc, KvLayout, LaunchArgs,
    MemRef, Metric, Notify, OpDesc, Plan, PropKey, ReduceOp, Stream, TensorSpec, TensorView,
    Weight, WeightDesc, WeightFill, WeightPlan,
};

use crate::{Error, Result};

/// A kind of hardware.
pub trait Backend: 'static {
    /// Its devices.
    type Device: Device;

    /// A string about the backend. Must answer [`InfoKey::ID`], [`InfoKey::NAME`], [`InfoKey::VERSION`] and
    /// [`InfoKey::PROFILES`]; must not initialise a driver.
    fn info(key: InfoKey) -> String;

    /// How well it would run here; `<= 0` means it cannot. Say why in [`InfoKey::PROBE_REASON`].
    fn probe() -> i32;

    /// Devices present.
    ///
    /// # Errors
    /// If the driver cannot be asked.
    fn device_count() -> Result<u32>;

    /// Opens a device. Take every option you know with [`Options::take`], then call [`Options::finish`].
    ///
    /// The last device to be dropped stops whatever the backend started: threads, a driver's state of the whole process. Another may
    /// be opened later. A process may also end without dropping anything.
    ///
    /// # Errors
    /// If there is no such device, it cannot be opened, or an option is unknown or malformed.
    fn open(ordinal: u32, options: Options) -> Result<Self::Device>;
}

/// Options given at `open`, by name.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pairs: Vec<(String, String)>,
}

impl Options {
    /// These options.
    #[must_use]
    pub fn new(pairs: Vec<(String, String)>) -> Self {
        Self { pairs }
    }

    /// Removes an option and parses it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the option, its value and what was expected.
    pub fn take<T: core::str::FromStr>(&mut self, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(at) = self.pairs.iter().position(|(k, _)| k == key) else { return Ok(None) };
        let (_, value) = self.pairs.swap_remove(at);
        value
            .parse()
            .map(Some)
            .map_err(|_| Error::invalid(format!("option {key}={value}: expected {expected}")))
    }

    /// Refuses options that nobody took.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` naming the first one and those the backend `known`s.
    pub fn finish(self, known: &[&str]) -> Result<()> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(Error::invalid(format!(
                "unknown option {key}; this backend knows: {}",
                known.join(", ")
            ))),
        }
    }
}

/// Answer of [`Device::support`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// Never works here; why, for people.
    No(String),
    /// Correct, but slow; why, for people.
    Slow(String),
    /// Native.
    Native,
    /// Tuned for this shape.
    Tuned,
}

/// A prepared operation; see [`halyard_abi::traits::Kernel`].
pub trait Kernel: Send + Sync + 'static {
    /// [`halyard_abi::traits::CAPTURABLE`] and its siblings.
    fn flags(&self) -> u64;

    /// Upper bound of scratch bytes for these shapes.
    fn workspace_bytes(&self, _shapes: &[TensorSpec]) -> u64 {
        0
    }

    /// Enqueues the operation.
    ///
    /// # Errors
    /// What only the values can tell, or the vendor's failure to enqueue.
    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> Result<()>;

    /// Prepares a step.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    fn plan(&self, _stream: Stream, _args: &LaunchArgs<'_>) -> Result<Plan> {
        Ok(Plan::NONE)
    }

    /// Releases a plan.
    fn plan_free(&self, _plan: Plan) {}

    /// Prepares a plan anew, for what was captured with it.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    fn plan_update(&self, _stream: Stream, _plan: Plan, _args: &LaunchArgs<'_>) -> Result<()> {
        absent("plan_update")
    }
}

/// A device method that the backend does not have.
///
/// # Errors
/// Always `UNSUPPORTED`, naming it.
pub fn absent<T>(method: &str) -> Result<T> {
    Err(Error::unsupported(format!("this backend has no `{method}`")))
}

/// One accelerator; see [`halyard_abi::traits::Device`] for each method's contract and errors.
#[expect(clippy::missing_errors_doc, reason = "the boundary's trait says them")]
pub trait Device: Send + Sync + 'static {
    /// A number about the device.
    fn property(&self, key: PropKey) -> Option<u64>;
    /// A string about the device; empty if there is no answer.
    fn info(&self, key: InfoKey) -> String;
    /// Live measurements; returns how many exist.
    fn telemetry(&self, _out: &mut [Metric]) -> u32 {
        0
    }

    /// Allocates memory.
    fn alloc(&self, req: &AllocReq) -> Result<Buffer>;
    /// Frees memory.
    fn free(&self, buffer: Buffer) -> Result<()>;
    /// Copies.
    fn copy(&self, s: Stream, req: &CopyReq) -> Result<()>;
    /// Fills with a pattern.
    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> Result<()>;

    /// Creates a stream.
    fn stream_create(&self, priority: i32, flags: u32) -> Result<Stream>;
    /// Destroys a stream.
    fn stream_destroy(&self, s: Stream) -> Result<()>;
    /// Waits for a stream.
    fn stream_sync(&self, s: Stream, timeout_ns: u64) -> Result<()>;
    /// Asks a stream.
    fn stream_query(&self, s: Stream) -> Result<()>;
    /// Creates an event.
    fn event_create(&self, flags: u32) -> Result<Event>;
    /// Destroys an event.
    fn event_destroy(&self, e: Event) -> Result<()>;
    /// Marks a point.
    fn event_record(&self, e: Event, s: Stream) -> Result<()>;
    /// Makes a stream wait.
    fn event_wait(&self, s: Stream, e: Event) -> Result<()>;
    /// Waits on the host.
    fn event_sync(&self, e: Event, timeout_ns: u64) -> Result<()>;
    /// Asks an event.
    fn event_query(&self, e: Event) -> Result<()>;
    /// Time between two events.
    fn event_elapsed_ns(&self, a: Event, b: Event) -> Result<u64>;

    /// How well an op is supported, exactly as `prepare` will decide.
    fn support(&self, op: &OpDesc<'_>) -> Support;
    /// Prepares a kernel.
    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>>;

    /// Size of a packed weight.
    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan>;
    /// Begins a weight.
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight>;
    /// Packs rows.
    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> Result<()>;
    /// Ends filling.
    fn weight_seal(&self, s: Stream, w: Weight) -> Result<()>;
    /// Forgets a weight.
    fn weight_destroy(&self, w: Weight) -> Result<()>;
    /// Arrangement of a paged cache.
    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout>;

    /// A fresh communicator id.
    fn comm_unique_id(&self, _out: &mut [u8]) -> Result<u32> {
        absent("comm_unique_id")
    }
    /// Joins a communicator.
    fn comm_create(&self, _desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
        absent("comm_create")
    }

    /// Calls the host back.
    fn notify(&self, _s: Stream, _n: &Notify) -> Result<()> {
        absent("notify")
    }
    /// Begins a capture.
    fn graph_begin(&self, _s: Stream) -> Result<()> {
        absent("graph_begin")
    }
    /// Ends a capture.
    fn graph_end(&self, _s: Stream) -> Result<Graph> {
        absent("graph_end")
    }
    /// Replays a capture.
    fn graph_launch(&self, _g: Graph, _s: Stream) -> Result<()> {
        absent("graph_launch")
    }
    /// Destroys a capture.
    fn graph_destroy(&self, _g: Graph) -> Result<()> {
        absent("graph_destroy")
    }
    /// The vendor's own door.
    fn vendor_call(&self, _name: &str, _input: &[u8], _output: &mut [u8]) -> Result<u64> {
        absent("vendor_call")
    }
}

/// One rank of a communicator; see [`halyard_abi::traits::Collective`] for each method's contract and errors.
#[expect(clippy::missing_errors_doc, reason = "the boundary's trait says them")]
pub trait Collective: Send + Sync + 'static {
    /// Combination, everywhere.
    fn all_reduce(&self, s: Stream, src: &TensorView, dst: &TensorView, op: ReduceOp)
    -> Result<()>;
    /// Concatenation, everywhere.
    fn all_gather(&self, s: Stream, src: &TensorView, dst: &TensorView) -> Result<()>;
    /// Combination, scattered.
    fn reduce_scatter(
        &self,
        s: Stream,
        src: &TensorView,
        dst: &TensorView,
        op: ReduceOp,
    ) -> Result<()>;
    /// One rank's data, everywhere.
    fn broadcast(&self, s: Stream, buf: &TensorView, root: u32) -> Result<()>;
    /// Rows to and from each peer.
    fn all_to_all_v(&self, s: Stream, a: &A2av<'_>) -> Result<()>;
    /// To one peer.
    fn send(&self, s: Stream, src: &TensorView, peer: u32) -> Result<()>;
    /// From one peer.
    fn recv(&self, s: Stream, dst: &TensorView, peer: u32) -> Result<()>;
    /// Opens a group.
    fn group_begin(&self) -> Result<()>;
    /// Issues the group.
    fn group_end(&self) -> Result<()>;
    /// Barrier.
    fn barrier(&self, s: Stream) -> Result<()>;
    /// Asynchronous error.
    fn status(&self) -> Result<()>;
    /// Aborts.
    fn abort(&self) -> Result<()>;
    /// Splits.
    fn split(&self, _color: i32, _key: i32) -> Result<Box<dyn Collective>> {
        absent("split")
    }
}
