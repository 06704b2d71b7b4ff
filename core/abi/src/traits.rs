//! `Device`, `Kernel` and `Collective`: what a backend does for a host.
//!
//! Rules for every method:
//! - **Threads.** Any method may be called from any thread; the backend binds its own context inside the call and restores the
//!   previous one. Calls that name the *same* stream, plan or communicator are serialised by the caller.
//! - **Asynchrony.** `Ok` from a launch, copy, fill or collective means *enqueued*. A failure on the device surfaces from the next
//!   `stream_query`, `stream_sync` or `event_*` of that device, never silently; after a sticky code every call gives `POISONED`.
//!   A backend whose device is the host's own processor may do the work inside the call (property `INLINE`).
//! - **Panics** never leave a backend: the SDK turns them into `PANIC` and poisons the device.
//!
//! Methods after `last_prefix_field` came later or are optional: their default is `UNSUPPORTED`.
#![expect(
    unused_qualifications,
    clippy::mem_forget,
    clippy::cast_ptr_alignment,
    reason = "sabi_trait's expansion"
)]

use abi_stable::{
    sabi_trait,
    std_types::{RBox, ROption, RResult, RSlice, RSliceMut, RStr, RString},
};

use crate::{
    error::{AbiError, R},
    ids::{Code, Event, Graph, InfoKey, Plan, PropKey, ReduceOp, Stream, Weight},
    types::{
        A2av, AllocReq, Buffer, CommDesc, CopyReq, KvDesc, KvLayout, LaunchArgs, MemRef, Metric,
        Notify, OpDesc, TensorSpec, TensorView, WeightDesc, WeightFill, WeightPlan,
    },
};

/// An owned kernel.
pub type KernelBox = Kernel_TO<RBox<()>>;
/// An owned communicator.
pub type CollectiveBox = Collective_TO<RBox<()>>;
/// An owned device.
pub type DeviceBox = Device_TO<RBox<()>>;

/// [`Kernel::flags`]: may be captured in a graph, also before its first launch.
pub const CAPTURABLE: u64 = 1;
/// [`Kernel::flags`]: equal inputs give equal bits.
pub const DETERMINISTIC: u64 = 2;
/// [`Kernel::flags`]: `LaunchArgs::host` must be filled.
pub const HOST_LENGTHS: u64 = 4;
/// [`Kernel::flags`]: an output row's bits do not depend on what else is in the batch.
pub const BATCH_INVARIANT: u64 = 8;
/// [`Kernel::flags`]: [`Kernel::plan_update`] works, so a kernel with [`HOST_LENGTHS`] can be captured with lengths that vary.
pub const PLAN_UPDATE: u64 = 16;

/// [`Device::supports`]: no.
pub const SUPPORT_NO: u32 = 0;
/// [`Device::supports`]: correct, but slow.
pub const SUPPORT_SLOW: u32 = 1;
/// [`Device::supports`]: native.
pub const SUPPORT_NATIVE: u32 = 2;
/// [`Device::supports`]: tuned for this shape.
pub const SUPPORT_TUNED: u32 = 3;

fn unsupported<T>(method: &str) -> R<T> {
    let error = AbiError::new(Code::UNSUPPORTED, format!("this backend has no `{method}`"));
    RResult::RErr(error)
}

/// A prepared operation. Made once per distinct [`OpDesc`] and shared by all layers.
#[sabi_trait]
pub trait Kernel: Send + Sync + 'static {
    /// [`CAPTURABLE`], [`DETERMINISTIC`], [`HOST_LENGTHS`], [`BATCH_INVARIANT`], [`PLAN_UPDATE`].
    fn flags(&self) -> u64;

    /// Upper bound of the scratch bytes a launch with tensors of these shapes needs; monotone in every dim.
    fn workspace_bytes(&self, shape: RSlice<'_, TensorSpec>) -> u64;

    /// Enqueues the operation on `stream`. Does not block, allocate device memory or synchronise.
    ///
    /// The host has checked dtypes, ranks, fixed dims and bounds against the descriptor; the backend checks what only the values
    /// can tell. Every buffer named lives until the work is done; outputs overlap no input unless the op says so.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `UNSUPPORTED` inside a capture, or the vendor's failure to enqueue.
    #[sabi(last_prefix_field)]
    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> R<()>;

    /// Prepares a step for a batch shape: depends only on `host` arrays, `scalars` and dims, and is reused by every layer.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    fn plan(&self, _stream: Stream, _args: &LaunchArgs<'_>) -> R<Plan> {
        let none = Plan::NONE;
        RResult::ROk(none)
    }

    /// Releases a plan.
    fn plan_free(&self, _plan: Plan) {
        let _nothing_to_free = ();
    }

    /// Prepares a plan anew, for other `host` arrays of the same lengths, and the dims and scalars that it was made with. Launches that were
    /// captured with the plan go by it in every `graph_launch` that comes after this call; one in flight is left alone. `args` are as
    /// for [`Kernel::plan`].
    ///
    /// # Errors
    /// As [`Kernel::launch`]; the plan is as before then. `UNSUPPORTED` without [`PLAN_UPDATE`].
    fn plan_update(&self, _stream: Stream, _plan: Plan, _args: &LaunchArgs<'_>) -> R<()> {
        let refused = unsupported("plan_update");
        refused
    }
}

/// One rank's membership in a communicator. All ranks issue the same calls in the same order.
///
/// Views are contiguous and plain, of equal dtypes ([`collective`](crate::collective) has the rules). In place where `src` and `dst` are
/// the same data (`all_gather`, `reduce_scatter`: the own slot); otherwise views do not overlap. Reductions of 8- and 16-bit floats
/// accumulate in f32 or better and round once; every rank gets the same bits; integers wrap; a NaN in MIN and MAX wins; AVG is for
/// floats.
///
/// What a rank's own arguments tell is `INVALID_ARGUMENT` before anything is exchanged, and leaves the communicator whole. Everything
/// else ends it, for all ranks: other calls, sizes, dtypes or roots on different ranks, a rank that is gone, and a wait longer than the
/// communicator's timeout are `COMM_ERROR`, with a message that names rank and call.
#[sabi_trait]
pub trait Collective: Send + Sync + 'static {
    /// Element-wise combination over all ranks, everywhere.
    fn all_reduce(&self, s: Stream, src: &TensorView, dst: &TensorView, op: ReduceOp) -> R<()>;
    /// Concatenates `src` of all ranks along dim 0, by rank.
    fn all_gather(&self, s: Stream, src: &TensorView, dst: &TensorView) -> R<()>;
    /// Combination, of which rank `r` keeps slice `r` of dim 0.
    fn reduce_scatter(&self, s: Stream, src: &TensorView, dst: &TensorView, op: ReduceOp) -> R<()>;
    /// `buf` of `root`, everywhere.
    fn broadcast(&self, s: Stream, buf: &TensorView, root: u32) -> R<()>;
    /// Rows to and from each peer, with own counts; what a rank sends is what its peer expects.
    fn all_to_all_v(&self, s: Stream, a: &A2av<'_>) -> R<()>;
    /// To one peer, which receives as many elements of the same dtype. Messages to one peer arrive in their order. To oneself in a
    /// group only.
    fn send(&self, s: Stream, src: &TensorView, peer: u32) -> R<()>;
    /// From one peer.
    fn recv(&self, s: Stream, dst: &TensorView, peer: u32) -> R<()>;
    /// Opens a group: calls up to `group_end` are issued together, so that messages may be in any order. Groups do not nest.
    fn group_begin(&self) -> R<()>;
    /// Issues the group: its collectives in their order, and its messages all at once. Buffers stay with the group until then.
    fn group_end(&self) -> R<()>;
    /// No rank passes before all have arrived.
    fn barrier(&self, s: Stream) -> R<()>;
    /// The communicator's asynchronous error, if any; never blocks.
    fn status(&self) -> R<()>;
    /// From any thread: unblocks pending work everywhere with `COMM_ABORTED`.
    #[sabi(last_prefix_field)]
    fn abort(&self) -> R<()>;
    /// A communicator of the ranks that pass the same `color`, ordered by `key`, then rank. All ranks call it. One with a negative
    /// `color` gets a communicator without ranks, whose every call is `INVALID_ARGUMENT`.
    fn split(&self, _color: i32, _key: i32) -> R<Collective_TO<RBox<()>>> {
        let refused = unsupported("split");
        refused
    }
}

/// One accelerator.
#[sabi_trait]
pub trait Device: Send + Sync + 'static {
    /// A number about the device; absent if the key is unknown or has no answer here.
    fn property(&self, key: PropKey) -> ROption<u64>;
    /// A string about the device; empty if there is no answer.
    fn info(&self, key: InfoKey) -> RString;
    /// Writes live measurements to `out`; returns how many exist.
    fn telemetry(&self, out: RSliceMut<'_, Metric>) -> u32;

    /// Allocates memory, aligned to `max(align, 256)`; contents are undefined.
    fn alloc(&self, req: &AllocReq) -> R<Buffer>;
    /// Frees a buffer. The caller has made sure that no work in flight uses it.
    fn free(&self, buf: Buffer) -> R<()>;
    /// Copies between host and device or within the device, in stream order. Plain host memory must stay valid until the copy
    /// is done.
    fn copy(&self, s: Stream, req: &CopyReq) -> R<()>;
    /// Fills `bytes` (a multiple of 4) with a repeated 32-bit pattern.
    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> R<()>;

    /// A new stream; lower `priority` values run first where the device can tell.
    fn stream_create(&self, priority: i32, flags: u32) -> R<Stream>;
    /// Destroys a stream after its work is done.
    fn stream_destroy(&self, s: Stream) -> R<()>;
    /// Waits for a stream; `u64::MAX` waits for ever. `TIMEOUT` leaves the work running.
    fn stream_sync(&self, s: Stream, timeout_ns: u64) -> R<()>;
    /// `NOT_READY` while work is pending.
    fn stream_query(&self, s: Stream) -> R<()>;
    /// A new event; flag 1 makes it keep the time.
    fn event_create(&self, flags: u32) -> R<Event>;
    /// Destroys an event.
    fn event_destroy(&self, e: Event) -> R<()>;
    /// Marks the current end of `s`.
    fn event_record(&self, e: Event, s: Stream) -> R<()>;
    /// Later work of `s` waits for `e`.
    fn event_wait(&self, s: Stream, e: Event) -> R<()>;
    /// Waits on the host.
    fn event_sync(&self, e: Event, timeout_ns: u64) -> R<()>;
    /// `NOT_READY` until reached.
    fn event_query(&self, e: Event) -> R<()>;
    /// Nanoseconds from `a` to `b`, both with time.
    fn event_elapsed_ns(&self, a: Event, b: Event) -> R<u64>;

    /// How well the op is supported: [`SUPPORT_NO`] to [`SUPPORT_TUNED`]. A yes is a promise that `prepare` succeeds and the
    /// result passes conformance.
    fn supports(&self, op: &OpDesc<'_>) -> u32;
    /// Why `supports` said no or slow; for people. Empty otherwise.
    fn explain(&self, op: &OpDesc<'_>) -> RString;
    /// Prepares a kernel; may compile and tune for seconds.
    fn prepare(&self, op: &OpDesc<'_>) -> R<Kernel_TO<RBox<()>>>;

    /// How many bytes the packed form of a weight takes.
    fn weight_plan(&self, w: &WeightDesc<'_>) -> R<WeightPlan>;
    /// Begins a weight in memory of the host's (as planned), which lives until `weight_destroy`.
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> R<Weight>;
    /// Packs some rows; any number of times, in any order, until every row of every group has come once. The parts may be host
    /// memory and are consumed when the stream has reached this point.
    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> R<()>;
    /// Ends filling. `INVALID_ARGUMENT` if rows are missing.
    fn weight_seal(&self, s: Stream, w: Weight) -> R<()>;
    /// Forgets a weight; its memory is the host's to free.
    fn weight_destroy(&self, w: Weight) -> R<()>;
    /// How the backend arranges a paged cache. Only the KV ops and attention touch its contents.
    fn kv_layout(&self, kv: &KvDesc<'_>) -> R<KvLayout>;

    /// Writes a fresh communicator id to `out` if it fits; returns its size (at most 8 KiB).
    fn comm_unique_id(&self, out: RSliceMut<'_, u8>) -> R<u32>;
    /// Joins a communicator; blocks until all ranks have come, or the timeout.
    #[sabi(last_prefix_field)]
    fn comm_create(&self, desc: &CommDesc<'_>) -> R<Collective_TO<RBox<()>>>;

    /// Calls the host back when `s` reaches this point.
    fn notify(&self, _s: Stream, _n: &Notify) -> R<()> {
        let refused = unsupported("notify");
        refused
    }
    /// Begins capturing: from now on what is enqueued on `s` is kept instead of done. A host captures launches, fills and, with property
    /// `GRAPH_COMM`, calls of communicators; other streams and threads go on meanwhile.
    fn graph_begin(&self, _s: Stream) -> R<()> {
        let refused = unsupported("graph_begin");
        refused
    }
    /// Ends the capture. Whatever the captured work uses lives as long as the graph.
    fn graph_end(&self, _s: Stream) -> R<Graph> {
        let refused = unsupported("graph_end");
        refused
    }
    /// Enqueues everything that was captured, with the addresses, dims, scalars and host arrays that it had; a plan is as it is now
    /// ([`Kernel::plan_update`]).
    fn graph_launch(&self, _g: Graph, _s: Stream) -> R<()> {
        let refused = unsupported("graph_launch");
        refused
    }
    /// Destroys a graph, of which no launch is in flight.
    fn graph_destroy(&self, _g: Graph) -> R<()> {
        let refused = unsupported("graph_destroy");
        refused
    }
    /// The vendor's own door: bytes in, bytes out; returns how many the answer has.
    fn vendor_call(
        &self,
        _name: RStr<'_>,
        _input: RSlice<'_, u8>,
        _output: RSliceMut<'_, u8>,
    ) -> R<u64> {
        let refused = unsupported("vendor_call");
        refused
    }
}
