//! Devices and kernels of the C door.

use std::{
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use halyard_abi::{
    AbiError, AllocReq, Buffer, Code, CollectiveBox, CommDesc, CopyReq, Event, Graph, InfoKey,
    KernelBox, KvDesc, KvLayout, LaunchArgs, MemRef, Metric, Notify, OpDesc, Plan, PropKey, R,
    ROption, RSlice, RSliceMut, RStr, RString, Stream, TensorSpec, Weight, WeightDesc, WeightFill,
    WeightPlan,
    c::{self, Entries, ErrorBuffer},
    exporting::TD_Opaque,
    traits::{self, SUPPORT_NO},
};

use super::{call, collective::CCollective, object, text};

/// An opened device, closed when nothing of it is left.
pub(super) struct Open {
    pub(super) entries: &'static Entries,
    pub(super) raw: NonNull<c::Device>,
    /// A sticky failure: nothing of the device is called any more, but what destroys.
    poisoned: AtomicBool,
}

// SAFETY: the header lets any thread call any function; the pointer is never read on this side.
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

impl Open {
    pub(super) fn new(entries: &'static Entries, raw: NonNull<c::Device>) -> Self {
        Self { entries, raw, poisoned: AtomicBool::new(false) }
    }

    pub(super) fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Runs an entry, unless the device is poisoned, and notes a sticky failure.
    pub(super) fn call(
        &self,
        name: &str,
        entry: impl FnOnce(&mut ErrorBuffer) -> Code,
    ) -> Result<(), AbiError> {
        if self.poisoned() {
            return Err(AbiError::new(
                Code::POISONED,
                "an earlier failure has made this device unusable; reopen it",
            ));
        }
        let result = call(name, entry);
        if let Err(error) = &result
            && matches!(error.code, Code::PANIC | Code::DEVICE_LOST | Code::KERNEL_FAULT)
        {
            self.poisoned.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: kernels and communicators hold this alive, so they are destroyed; nobody calls the device after this.
        unsafe { (self.entries.device_close)(self.raw.as_ptr()) };
    }
}

/// Calls a function of the table: `entry!(open, functions.name(arguments))`, with the error buffer as last argument.
macro_rules! entry {
    ($open:expr, $functions:ident.$name:ident($($arg:expr),*)) => {
        $open.call(stringify!($name), |err| {
            let function = $functions.$name;
            // SAFETY: the table's author promises the header's contract for this function; objects are alive, inputs live
            // until it returns, outputs are live and zeroed.
            unsafe { function($($arg,)* err) }
        })
    };
}
pub(super) use entry;

/// The same for a function that may be missing.
macro_rules! optional {
    ($open:expr, $name:ident($($arg:expr),*)) => {
        match $open.entries.$name {
            None => Err(AbiError::unsupported(concat!("this backend has no `", stringify!($name), "`"))),
            Some(function) => $open.call(stringify!($name), |err| {
                // SAFETY: as in `entry!`.
                unsafe { function($($arg,)* err) }
            }),
        }
    };
}

/// The boundary's device over a C one.
pub(super) struct CDevice {
    open: Arc<Open>,
}

impl CDevice {
    pub(super) fn new(open: Arc<Open>) -> Self {
        Self { open }
    }

    fn raw(&self) -> *mut c::Device {
        self.open.raw.as_ptr()
    }

    /// For calls that return no code: nothing is called on a poisoned device.
    fn healthy(&self) -> Option<&'static Entries> {
        (!self.open.poisoned()).then_some(self.open.entries)
    }
}

const NO_BUFFER: Buffer = Buffer { id: 0, base: 0, bytes: 0, kind: 0, flags: 0 };
const NO_PLAN: WeightPlan = WeightPlan { bytes: 0, align: 0, scratch_bytes: 0, format: 0 };
const NO_LAYOUT: KvLayout = KvLayout { block_bytes: [0; 2], align: 0, format: 0 };

impl traits::Device for CDevice {
    fn property(&self, key: PropKey) -> ROption<u64> {
        let mut value = 0;
        let answer = self.healthy().is_some_and(|entries| {
            // SAFETY: the device is alive, the output live.
            let answered = unsafe { (entries.device_property)(self.raw(), key, &mut value) };
            answered != 0
        });
        answer.then_some(value).into()
    }
    fn info(&self, key: InfoKey) -> RString {
        let Some(entries) = self.healthy() else { return RString::new() };
        // SAFETY: the device is alive, `text` gives a buffer of this size.
        text(|buf, cap| unsafe { (entries.device_info)(self.raw(), key, buf, cap) }).into()
    }
    fn telemetry(&self, mut out: RSliceMut<'_, Metric>) -> u32 {
        let telemetry = self.healthy().and_then(|entries| entries.device_telemetry);
        let Some(telemetry) = telemetry else { return 0 };
        let (start, cap) = (out.as_mut_slice().as_mut_ptr(), out.len());
        // SAFETY: the device is alive, the slice has this length.
        unsafe { telemetry(self.raw(), start, cap) }
    }
    fn alloc(&self, req: &AllocReq) -> R<Buffer> {
        let (entries, mut buffer) = (self.open.entries, NO_BUFFER);
        entry!(self.open, entries.device_alloc(self.raw(), req, &mut buffer))
            .map(|()| buffer)
            .into()
    }
    fn free(&self, buffer: Buffer) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.device_free(self.raw(), &buffer)).into()
    }
    fn copy(&self, s: Stream, req: &CopyReq) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.device_copy(self.raw(), s, req)).into()
    }
    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.device_fill(self.raw(), s, dst, pattern, bytes)).into()
    }
    fn stream_create(&self, priority: i32, flags: u32) -> R<Stream> {
        let (entries, mut stream) = (self.open.entries, Stream::NONE);
        entry!(self.open, entries.stream_create(self.raw(), priority, flags, &mut stream))
            .map(|()| stream)
            .into()
    }
    fn stream_destroy(&self, s: Stream) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.stream_destroy(self.raw(), s)).into()
    }
    fn stream_sync(&self, s: Stream, timeout_ns: u64) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.stream_sync(self.raw(), s, timeout_ns)).into()
    }
    fn stream_query(&self, s: Stream) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.stream_query(self.raw(), s)).into()
    }
    fn event_create(&self, flags: u32) -> R<Event> {
        let (entries, mut event) = (self.open.entries, Event::NONE);
        entry!(self.open, entries.event_create(self.raw(), flags, &mut event))
            .map(|()| event)
            .into()
    }
    fn event_destroy(&self, e: Event) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.event_destroy(self.raw(), e)).into()
    }
    fn event_record(&self, e: Event, s: Stream) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.event_record(self.raw(), e, s)).into()
    }
    fn event_wait(&self, s: Stream, e: Event) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.event_wait(self.raw(), s, e)).into()
    }
    fn event_sync(&self, e: Event, timeout_ns: u64) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.event_sync(self.raw(), e, timeout_ns)).into()
    }
    fn event_query(&self, e: Event) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.event_query(self.raw(), e)).into()
    }
    fn event_elapsed_ns(&self, a: Event, b: Event) -> R<u64> {
        let (entries, mut ns) = (self.open.entries, 0);
        entry!(self.open, entries.event_elapsed_ns(self.raw(), a, b, &mut ns)).map(|()| ns).into()
    }
    fn supports(&self, op: &OpDesc<'_>) -> u32 {
        let Some(entries) = self.healthy() else { return SUPPORT_NO };
        // SAFETY: the device is alive, the descriptor lives until the call returns.
        unsafe { (entries.device_supports)(self.raw(), op) }
    }
    fn explain(&self, op: &OpDesc<'_>) -> RString {
        let Some(entries) = self.healthy() else { return "the device is poisoned".into() };
        // SAFETY: as in `supports`; `text` gives a buffer of this size.
        text(|buf, cap| unsafe { (entries.device_explain)(self.raw(), op, buf, cap) }).into()
    }
    fn prepare(&self, op: &OpDesc<'_>) -> R<KernelBox> {
        let (entries, mut raw) = (self.open.entries, ptr::null_mut());
        entry!(self.open, entries.device_prepare(self.raw(), op, &mut raw))
            .and_then(|()| object("device_prepare", raw))
            .map(|raw| {
                let kernel = CKernel { open: Arc::clone(&self.open), raw };
                traits::Kernel_TO::from_value(kernel, TD_Opaque)
            })
            .into()
    }
    fn weight_plan(&self, w: &WeightDesc<'_>) -> R<WeightPlan> {
        let (entries, mut plan) = (self.open.entries, NO_PLAN);
        entry!(self.open, entries.weight_plan(self.raw(), w, &mut plan)).map(|()| plan).into()
    }
    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> R<Weight> {
        let (entries, mut weight) = (self.open.entries, Weight::NONE);
        entry!(self.open, entries.weight_create(self.raw(), w, dst, &mut weight))
            .map(|()| weight)
            .into()
    }
    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.weight_fill(self.raw(), s, w, f)).into()
    }
    fn weight_seal(&self, s: Stream, w: Weight) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.weight_seal(self.raw(), s, w)).into()
    }
    fn weight_destroy(&self, w: Weight) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.weight_destroy(self.raw(), w)).into()
    }
    fn kv_layout(&self, kv: &KvDesc<'_>) -> R<KvLayout> {
        let (entries, mut layout) = (self.open.entries, NO_LAYOUT);
        entry!(self.open, entries.kv_layout(self.raw(), kv, &mut layout)).map(|()| layout).into()
    }
    fn comm_unique_id(&self, mut out: RSliceMut<'_, u8>) -> R<u32> {
        let Some(comm) = &self.open.entries.collectives else { return no_collectives() };
        let (start, cap) = (out.as_mut_slice().as_mut_ptr(), out.len());
        let mut bytes = 0;
        entry!(self.open, comm.device_comm_unique_id(self.raw(), start, cap, &mut bytes))
            .map(|()| bytes)
            .into()
    }
    fn comm_create(&self, desc: &CommDesc<'_>) -> R<CollectiveBox> {
        let Some(comm) = &self.open.entries.collectives else { return no_collectives() };
        let mut raw = ptr::null_mut();
        entry!(self.open, comm.device_comm_create(self.raw(), desc, &mut raw))
            .and_then(|()| object("device_comm_create", raw))
            .map(|raw| CCollective::boxed(&self.open, comm, raw))
            .into()
    }
    fn notify(&self, s: Stream, n: &Notify) -> R<()> {
        optional!(self.open, device_notify(self.raw(), s, n)).into()
    }
    fn graph_begin(&self, s: Stream) -> R<()> {
        optional!(self.open, graph_begin(self.raw(), s)).into()
    }
    fn graph_end(&self, s: Stream) -> R<Graph> {
        let mut graph = Graph::NONE;
        optional!(self.open, graph_end(self.raw(), s, &mut graph)).map(|()| graph).into()
    }
    fn graph_launch(&self, g: Graph, s: Stream) -> R<()> {
        optional!(self.open, graph_launch(self.raw(), g, s)).into()
    }
    fn graph_destroy(&self, g: Graph) -> R<()> {
        optional!(self.open, graph_destroy(self.raw(), g)).into()
    }
    fn vendor_call(
        &self,
        name: RStr<'_>,
        input: RSlice<'_, u8>,
        mut output: RSliceMut<'_, u8>,
    ) -> R<u64> {
        let (start, cap) = (output.as_mut_slice().as_mut_ptr(), output.len());
        let mut bytes = 0;
        optional!(self.open, device_vendor_call(self.raw(), name, input, start, cap, &mut bytes))
            .map(|()| bytes)
            .into()
    }
}

fn no_collectives<T>() -> R<T> {
    Err(AbiError::unsupported("this backend has no collectives")).into()
}

/// The boundary's kernel over a C one.
struct CKernel {
    open: Arc<Open>,
    raw: NonNull<c::Kernel>,
}

// SAFETY: as for `Open`.
unsafe impl Send for CKernel {}
// SAFETY: as for `Open`.
unsafe impl Sync for CKernel {}

impl Drop for CKernel {
    fn drop(&mut self) {
        // SAFETY: nobody uses the kernel after this, and its device is still open.
        unsafe { (self.open.entries.kernel_destroy)(self.raw.as_ptr()) };
    }
}

impl traits::Kernel for CKernel {
    fn flags(&self) -> u64 {
        if self.open.poisoned() {
            return 0;
        }
        // SAFETY: the kernel is alive.
        unsafe { (self.open.entries.kernel_flags)(self.raw.as_ptr()) }
    }
    fn workspace_bytes(&self, shape: RSlice<'_, TensorSpec>) -> u64 {
        if self.open.poisoned() {
            return 0;
        }
        // SAFETY: the kernel is alive, the shapes live until the call returns.
        unsafe { (self.open.entries.kernel_workspace_bytes)(self.raw.as_ptr(), shape) }
    }
    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> R<()> {
        let entries = self.open.entries;
        entry!(self.open, entries.kernel_launch(self.raw.as_ptr(), stream, args)).into()
    }
    fn plan(&self, stream: Stream, args: &LaunchArgs<'_>) -> R<Plan> {
        let mut plan = Plan::NONE;
        if self.open.entries.kernel_plan.is_none() {
            return Ok(plan).into();
        }
        optional!(self.open, kernel_plan(self.raw.as_ptr(), stream, args, &mut plan))
            .map(|()| plan)
            .into()
    }
    fn plan_free(&self, plan: Plan) {
        if let Some(free) = self.open.entries.kernel_plan_free {
            // SAFETY: the kernel is alive, the plan is its own.
            unsafe { free(self.raw.as_ptr(), plan) };
        }
    }
    fn plan_update(&self, stream: Stream, plan: Plan, args: &LaunchArgs<'_>) -> R<()> {
        optional!(self.open, kernel_plan_update(self.raw.as_ptr(), stream, plan, args)).into()
    }
}
