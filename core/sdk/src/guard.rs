//! The objects that cross the boundary: a backend's own, each call in a panic guard.
//!
//! A panic inside a backend becomes [`Code::PANIC`] and poisons the device and everything made from it: later calls give
//! [`Code::POISONED`] without running. So does any sticky error the backend returns itself.

use core::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, Ordering},
};
use std::{panic::catch_unwind, sync::Arc};

use halyard_abi::{
    A2av, AllocReq, Buffer, Code, CollectiveBox, CommDesc, CopyReq, DeviceBox, Event, Graph,
    InfoKey, KernelBox, KvDesc, KvLayout, LaunchArgs, MemRef, Metric, Notify, OpDesc, Plan,
    PropKey, R, ROption, RResult, RSlice, RSliceMut, RStr, RString, ReduceOp, Stream, TensorSpec,
    TensorView, Weight, WeightDesc, WeightFill, WeightPlan,
    exporting::TD_Opaque,
    traits::{self as abi, SUPPORT_NATIVE, SUPPORT_NO, SUPPORT_SLOW, SUPPORT_TUNED},
};

use crate::{Error, Result, backend};

/// Runs `f`; a panic becomes an error.
pub(crate) fn catch<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    // The closure's captures may be left half-changed by a panic: the device is poisoned then, and nothing reads them again.
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        Err(Error::new(Code::PANIC, format!("the backend panicked: {}", panic_text(&*payload))))
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// An object of the backend's and its device's poison flag.
struct Guard<T: ?Sized> {
    poisoned: Arc<AtomicBool>,
    inner: Box<T>,
}

impl<T: ?Sized> Guard<T> {
    fn call<V>(&self, f: impl FnOnce(&T) -> Result<V>) -> R<V> {
        if self.poisoned.load(Ordering::Relaxed) {
            return RResult::RErr(Error::new(
                Code::POISONED,
                "an earlier failure has made this device unusable; reopen it",
            ));
        }
        match catch(|| f(&self.inner)) {
            Ok(value) => RResult::ROk(value),
            Err(error) => {
                if matches!(error.code, Code::PANIC | Code::DEVICE_LOST | Code::KERNEL_FAULT) {
                    self.poisoned.store(true, Ordering::Relaxed);
                }
                RResult::RErr(error)
            }
        }
    }

    /// For methods that have no error to return: `fallback` after a panic or when poisoned.
    fn value<V>(&self, fallback: V, f: impl FnOnce(&T) -> V) -> V {
        match self.call(|inner| Ok(f(inner))) {
            RResult::ROk(value) => value,
            RResult::RErr(_) => fallback,
        }
    }

    fn wrap<U: ?Sized>(&self, inner: Box<U>) -> Guard<U> {
        Guard { poisoned: Arc::clone(&self.poisoned), inner }
    }
}

/// Wraps a device for export.
pub(crate) fn device<D: backend::Device>(inner: D) -> DeviceBox {
    let inner: Box<dyn backend::Device> = Box::new(inner);
    let guard = Guard { poisoned: Arc::new(AtomicBool::new(false)), inner };
    abi::Device_TO::from_value(guard, TD_Opaque)
}

impl abi::Kernel for Guard<dyn backend::Kernel> {
    fn flags(&self) -> u64 {
        self.value(0, |k| k.flags())
    }
    fn workspace_bytes(&self, shape: RSlice<'_, TensorSpec>) -> u64 {
        self.value(0, |k| k.workspace_bytes(shape.as_slice()))
    }
    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> R<()> {
        self.call(|k| k.launch(stream, args))
    }
    fn plan(&self, stream: Stream, args: &LaunchArgs<'_>) -> R<Plan> {
        self.call(|k| k.plan(stream, args))
    }
    fn plan_free(&self, plan: Plan) {
        self.value((), |k| k.plan_free(plan));
    }
    fn plan_update(&self, stream: Stream, plan: Plan, args: &LaunchArgs<'_>) -> R<()> {
        self.call(|k| k.plan_update(stream, plan, args))
    }
}

impl abi::Device for Guard<dyn backend::Device> {
    fn property(&self, key: PropKey) -> ROption<u64> {
        self.value(None, |d| d.property(key)).into()
    }
    fn info(&self, key: InfoKey) -> RString {
        self.value(String::new(), |d| d.info(key)).into()
    }
    fn telemetry(&self, mut out: RSliceMut<'_, Metric>) -> u32 {
        self.value(0, |d| d.telemetry(out.as_mut_slice()))
    }
    fn alloc(&self, req: &AllocReq) -> R<Buffer> {
        self.call(|d| d.alloc(req))
    }
    fn free(&self, buf: Buffer) -> R<()> {
        self.call(|d| d.free(buf))
    }
    fn copy(&self, s: Stream, req: &CopyReq) -> R<()> {
        self.call(|d| d.copy(s, req))
    }
    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> R<()> {
        self.call(|d| d.fill(s, dst, pattern, bytes))
    }
    fn stream_create(&self, priority: i32, flags: u32) -> R<Stream> {
        self.call(|d| d.stream_create(priority, flags))
    }
    fn stream_destroy(&self, s: Stream) -> R<()> {
        self.call(|d| d.stream_destroy(s))
    }
    fn stream_sync(&self, s: Stream, timeout_ns: u64) -> R<()> {
        self.call(|d| d.stream_sync(s, timeout_ns))
    }
    fn stream_query(&self, s: Stream) -> R<()> {
        self.call(|d| d.stream_query(s))
    }
    fn event_create(&self, flags: u32) -> R<Event> {
        self.call(|d| d.event_create(flags))
    }
    fn event_destroy(&self, e: Event) -> R<()> {
        self.call(|d| d.event_destroy(e))
    }
    fn event_record(&self, e: Event, s: Stream) -> R<()> {
        self.call(|d| d.event_record(e, s))
    }
    fn event_wait(&self, s: Stream, e: Event) -> R<()> {
        self.call(|d| d.event_wait(s, e))
    }
    fn event_sync(&self, e: Event, timeout_ns: u64) -> R<()> {
        self.call(|d| d.event_sync(e, timeout_ns))
    }
    fn event_query(&self, e: Event) -> R<()> {
        self.call(|d| d.event_query(e))
    }
    fn event_elapsed_ns(&self, a: Event, b: Event) -> R<u64> {
        self.call(|d| d.event_elapsed_ns(a, b))
    }
    fn supports(&self, op: &OpDesc<'_>) -> u32 {
        self.value(SUPPORT_NO, |d| match d.support(op) {
            backend::Support::No(_) => SUPPORT_NO,
            backend::Support::Slow(_) => SUPPORT_SLOW,
            backend::Support::Native => SUPPORT_NATIVE,
            backend::Support::Tuned => SUPPORT_TUNED,
        })
    }
    fn explain(&self, op: &OpDesc<'_>) -> RString {
        self.value("the backend panicked in `support`".into(), |d| match d.support(op) {
            backend::Support::No(why) | backend::Support::Slow(why) => why,
            backend::Support::Native | backend::Support::Tuned => String::new(),
        })
        .into()
    }
    fn prepare(&self, op: &OpDesc<'_>) -> R<KernelBox> {
        self.call(|d| {
            let kernel = self.wrap(d.prepare(op)?);
            Ok(abi::Kernel_TO::from_value(kernel, TD_Opaque))
        })
    }
    fn weight_plan(&self, w: &WeightDesc<'_>) -> R<WeightPlan> {
        self.call(|d| d.weight_plan(w))
    }
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> R<Weight> {
        self.call(|d| d.weight_create(w, dst))
    }
    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> R<()> {
        self.call(|d| d.weight_fill(s, w, f))
    }
    fn weight_seal(&self, s: Stream, w: Weight) -> R<()> {
        self.call(|d| d.weight_seal(s, w))
    }
    fn weight_destroy(&self, w: Weight) -> R<()> {
        self.call(|d| d.weight_destroy(w))
    }
    fn kv_layout(&self, kv: &KvDesc<'_>) -> R<KvLayout> {
        self.call(|d| d.kv_layout(kv))
    }
    fn comm_unique_id(&self, mut out: RSliceMut<'_, u8>) -> R<u32> {
        self.call(|d| d.comm_unique_id(out.as_mut_slice()))
    }
    fn comm_create(&self, desc: &CommDesc<'_>) -> R<CollectiveBox> {
        self.call(|d| {
            let comm = self.wrap(d.comm_create(desc)?);
            Ok(abi::Collective_TO::from_value(comm, TD_Opaque))
        })
    }
    fn notify(&self, s: Stream, n: &Notify) -> R<()> {
        self.call(|d| d.notify(s, n))
    }
    fn graph_begin(&self, s: Stream) -> R<()> {
        self.call(|d| d.graph_begin(s))
    }
    fn graph_end(&self, s: Stream) -> R<Graph> {
        self.call(|d| d.graph_end(s))
    }
    fn graph_launch(&self, g: Graph, s: Stream) -> R<()> {
        self.call(|d| d.graph_launch(g, s))
    }
    fn graph_destroy(&self, g: Graph) -> R<()> {
        self.call(|d| d.graph_destroy(g))
    }
    fn vendor_call(
        &self,
        name: RStr<'_>,
        input: RSlice<'_, u8>,
        mut output: RSliceMut<'_, u8>,
    ) -> R<u64> {
        self.call(|d| d.vendor_call(name.as_str(), input.as_slice(), output.as_mut_slice()))
    }
}

impl abi::Collective for Guard<dyn backend::Collective> {
    fn all_reduce(&self, s: Stream, src: &TensorView, dst: &TensorView, op: ReduceOp) -> R<()> {
        self.call(|c| c.all_reduce(s, src, dst, op))
    }
    fn all_gather(&self, s: Stream, src: &TensorView, dst: &TensorView) -> R<()> {
        self.call(|c| c.all_gather(s, src, dst))
    }
    fn reduce_scatter(&self, s: Stream, src: &TensorView, dst: &TensorView, op: ReduceOp) -> R<()> {
        self.call(|c| c.reduce_scatter(s, src, dst, op))
    }
    fn broadcast(&self, s: Stream, buf: &TensorView, root: u32) -> R<()> {
        self.call(|c| c.broadcast(s, buf, root))
    }
    fn all_to_all_v(&self, s: Stream, a: &A2av<'_>) -> R<()> {
        self.call(|c| c.all_to_all_v(s, a))
    }
    fn send(&self, s: Stream, src: &TensorView, peer: u32) -> R<()> {
        self.call(|c| c.send(s, src, peer))
    }
    fn recv(&self, s: Stream, dst: &TensorView, peer: u32) -> R<()> {
        self.call(|c| c.recv(s, dst, peer))
    }
    fn group_begin(&self) -> R<()> {
        self.call(|c| c.group_begin())
    }
    fn group_end(&self) -> R<()> {
        self.call(|c| c.group_end())
    }
    fn barrier(&self, s: Stream) -> R<()> {
        self.call(|c| c.barrier(s))
    }
    fn status(&self) -> R<()> {
        self.call(|c| c.status())
    }
    fn abort(&self) -> R<()> {
        self.call(|c| c.abort())
    }
    fn split(&self, color: i32, key: i32) -> R<CollectiveBox> {
        self.call(|c| {
            let comm = self.wrap(c.split(color, key)?);
            Ok(abi::Collective_TO::from_value(comm, TD_Opaque))
        })
    }
}
