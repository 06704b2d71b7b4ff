//! The reference device with a mutant in it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_sdk::{
    AllocReq, Attr, Backend, Buffer, Collective, CommDesc, CopyReq, Device, Error, Event, InfoKey,
    Kernel, KvDesc, KvLayout, LaunchArgs, MemRef, Metric, OpDesc, OpKind, Options, Plan, PropKey,
    Result, Stream, Support, TensorSpec, TensorView, Weight, WeightDesc, WeightFill, WeightPlan,
    abi::RSlice,
};

use crate::{
    bugs,
    call::Call,
    mutant::{Desc, Mutant},
    queue::{QueueBug, Queues},
    weights::Pending,
};

/// What a whole device does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Habit {
    /// It says yes to what it then refuses to prepare.
    PromisesTooMuch,
    /// It says no to what it prepares all the same.
    PromisesTooLittle,
    /// A launch that fails says that it went well.
    SwallowsErrors,
    /// A kernel leaves something behind when it goes.
    LosesKernels,
    /// A weight stays when it is destroyed.
    KeepsWeights,
    /// Memory stays when it is freed.
    KeepsMemory,
    /// Streams work on their own, with a bug or without.
    Queues(QueueBug),
}

/// The backend: option `mutant` names the bug; without it all is right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mutants;

impl Backend for Mutants {
    type Device = MutantDevice;

    fn info(key: InfoKey) -> String {
        if key == InfoKey::ID { "mutants".into() } else { CpuRef::info(key) }
    }

    fn probe() -> i32 {
        1
    }

    fn device_count() -> Result<u32> {
        Ok(1)
    }

    fn open(_ordinal: u32, mut options: Options) -> Result<MutantDevice> {
        let name: Option<String> = options.take("mutant", "the name of a mutant")?;
        let queued: Option<bool> = options.take("queued", "true or false")?;
        options.finish(&["mutant", "queued"])?;
        let find = |name: String| {
            let found = bugs::all().find(|m| m.name == name);
            found.ok_or_else(|| Error::invalid(format!("no mutant is called {name}")))
        };
        let mutant = name.map(find).transpose()?;
        let queues = match mutant.and_then(|m| m.habit) {
            Some(Habit::Queues(bug)) => Some(Queues::new(bug)),
            _ => (queued == Some(true)).then(|| Queues::new(QueueBug::None)),
        };
        Ok(MutantDevice {
            inner: Arc::default(),
            mutant,
            pending: Mutex::default(),
            queues: queues.map(Arc::new),
        })
    }
}

/// The device.
#[derive(Debug)]
pub(crate) struct MutantDevice {
    inner: Arc<RefDevice>,
    mutant: Option<&'static Mutant>,
    pending: Mutex<Pending>,
    /// If its streams work on their own.
    queues: Option<Arc<Queues>>,
}

impl MutantDevice {
    fn has(&self, habit: Habit) -> bool {
        self.mutant.is_some_and(|m| m.habit == Some(habit))
    }

    fn of(&self, kind: OpKind) -> Option<&'static Mutant> {
        self.mutant.filter(|m| m.op == kind)
    }

    /// The mutant, if it is one of how weights are packed.
    fn packs(&self) -> Option<&'static Mutant> {
        self.mutant.filter(|m| m.weight.is_some() || m.fill.is_some())
    }

    /// The kernel, launched by the streams if they work on their own.
    fn queued(&self, kernel: Arc<dyn Kernel>) -> Box<dyn Kernel> {
        Box::new(QueuedKernel { inner: kernel, queues: self.queues.clone() })
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Methods that are the reference's own.
macro_rules! right {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty;)*) => {$(
        fn $name(&self, $($arg: $ty),*) -> $out {
            Device::$name(&*self.inner, $($arg),*)
        }
    )*};
}

/// Methods that are the reference's, or the queues' of a device that has some.
macro_rules! queued {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = |$q:ident| $with:expr;)*) => {$(
        fn $name(&self, $($arg: $ty),*) -> $out {
            match &self.queues {
                Some($q) => $with,
                None => Device::$name(&*self.inner, $($arg),*),
            }
        }
    )*};
}

impl Device for MutantDevice {
    right! {
        info(key: InfoKey) -> String;
        telemetry(out: &mut [Metric]) -> u32;
        alloc(req: &AllocReq) -> Result<Buffer>;
        weight_plan(w: &WeightDesc<'_>) -> Result<WeightPlan>;
        kv_layout(kv: &KvDesc<'_>) -> Result<KvLayout>;
        comm_unique_id(out: &mut [u8]) -> Result<u32>;
        comm_create(desc: &CommDesc<'_>) -> Result<Box<dyn Collective>>;
    }

    queued! {
        stream_create(priority: i32, flags: u32) -> Result<Stream> = |q| Ok(q.create());
        stream_destroy(s: Stream) -> Result<()> = |q| q.destroy(s);
        stream_sync(s: Stream, timeout_ns: u64) -> Result<()> = |q| q.sync(s);
        stream_query(s: Stream) -> Result<()> = |q| q.query(s);
        event_create(flags: u32) -> Result<Event> = |q| Ok(q.event_create());
        event_destroy(e: Event) -> Result<()> = |q| q.event_destroy(e);
        event_record(e: Event, s: Stream) -> Result<()> = |q| q.record(e, s);
        event_wait(s: Stream, e: Event) -> Result<()> = |q| q.wait(s, e);
        event_sync(e: Event, timeout_ns: u64) -> Result<()> = |q| q.event_sync(e);
        event_query(e: Event) -> Result<()> = |q| q.event_query(e);
        event_elapsed_ns(a: Event, b: Event) -> Result<u64> = |q| q.elapsed_ns(a, b);
    }

    fn property(&self, key: PropKey) -> Option<u64> {
        if key == PropKey::INLINE && self.queues.is_some() {
            return Some(0);
        }
        Device::property(&*self.inner, key)
    }

    fn free(&self, buffer: Buffer) -> Result<()> {
        if self.has(Habit::KeepsMemory) { Ok(()) } else { Device::free(&*self.inner, buffer) }
    }

    fn copy(&self, s: Stream, req: &CopyReq) -> Result<()> {
        let Some(queues) = &self.queues else { return Device::copy(&*self.inner, s, req) };
        let (inner, req) = (Arc::clone(&self.inner), *req);
        queues.push(s, move || Device::copy(&*inner, Stream::NONE, &req))
    }

    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> Result<()> {
        let Some(queues) = &self.queues else {
            return Device::fill(&*self.inner, s, dst, pattern, bytes);
        };
        let (inner, dst) = (Arc::clone(&self.inner), *dst);
        queues.fill(s, move || Device::fill(&*inner, Stream::NONE, &dst, pattern, bytes))
    }

    fn support(&self, op: &OpDesc<'_>) -> Support {
        match self.of(op.kind).and_then(|m| m.habit) {
            Some(Habit::PromisesTooMuch) => Support::Native,
            Some(Habit::PromisesTooLittle) => Support::No("a habit".into()),
            _ => Device::support(&*self.inner, op),
        }
    }

    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        let Some(mutant) = self.of(op.kind) else {
            let kernel = Device::prepare(&*self.inner, op)?;
            return Ok(self.queued(Arc::from(kernel)));
        };
        if mutant.habit == Some(Habit::LosesKernels) {
            bugs::lose(128);
        }
        if mutant.habit == Some(Habit::PromisesTooMuch) {
            return Err(Error::unsupported("on second thoughts, no"));
        }
        let mut desc = Desc { attrs: op.attrs.to_vec(), tensors: op.tensors.to_vec() };
        if let Some(change) = mutant.desc {
            change(&mut desc);
        }
        let changed = OpDesc {
            attrs: RSlice::from_slice(&desc.attrs),
            tensors: RSlice::from_slice(&desc.tensors),
            ..*op
        };
        Ok(self.queued(Arc::new(MutantKernel {
            inner: Device::prepare(&*self.inner, &changed)?,
            mutant,
            attrs: op.attrs.to_vec(),
            launches: AtomicU64::new(0),
        })))
    }

    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        let weight = Device::weight_create(&*self.inner, w, dst)?;
        if self.packs().is_some() {
            self.pending().create(weight, w)?;
        }
        Ok(weight)
    }

    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        if let Some(queues) = &self.queues {
            queues.reach(s)?;
        }
        match self.packs() {
            Some(mutant) => self.pending().fill(&self.inner, mutant, w, f),
            None => Device::weight_fill(&*self.inner, Stream::NONE, w, f),
        }
    }

    fn weight_seal(&self, _s: Stream, w: Weight) -> Result<()> {
        if let Some(mutant) = self.packs() {
            self.pending().seal(&self.inner, mutant, w)?;
        }
        Device::weight_seal(&*self.inner, Stream::NONE, w)
    }

    fn weight_destroy(&self, w: Weight) -> Result<()> {
        self.pending().forget(w);
        if self.has(Habit::KeepsWeights) {
            return Ok(());
        }
        Device::weight_destroy(&*self.inner, w)
    }
}

struct MutantKernel {
    inner: Box<dyn Kernel>,
    mutant: &'static Mutant,
    attrs: Vec<Attr>,
    launches: AtomicU64,
}

impl Kernel for MutantKernel {
    fn flags(&self) -> u64 {
        self.inner.flags()
    }

    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.inner.workspace_bytes(shapes).max(self.mutant.scratch)
    }

    fn launch(&self, _stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        let call = Call {
            kernel: &*self.inner,
            args,
            kind: self.mutant.op,
            attrs: &self.attrs,
            before: self.launches.fetch_add(1, Ordering::Relaxed),
        };
        let done = self.mutant.launch.map_or_else(|| call.run(), |around| around(&call));
        if self.mutant.habit == Some(Habit::SwallowsErrors) { Ok(()) } else { done }
    }
}

struct QueuedKernel {
    inner: Arc<dyn Kernel>,
    queues: Option<Arc<Queues>>,
}

/// The arguments of a launch that outlive the call.
struct Arguments {
    plan: Plan,
    workspace: (u64, u64),
    tensors: Vec<TensorView>,
    weights: Vec<Weight>,
    scalars: Vec<u64>,
    host: Vec<Vec<i32>>,
}

impl Arguments {
    fn of(args: &LaunchArgs<'_>) -> Self {
        Self {
            plan: args.plan,
            workspace: (args.workspace, args.workspace_bytes),
            tensors: args.tensors.to_vec(),
            weights: args.weights.to_vec(),
            scalars: args.scalars.to_vec(),
            host: args.host.iter().map(|values| values.to_vec()).collect(),
        }
    }

    fn launch(&self, kernel: &dyn Kernel) -> Result<()> {
        let host: Vec<RSlice<'_, i32>> = self.host.iter().map(|v| RSlice::from_slice(v)).collect();
        kernel.launch(
            Stream::NONE,
            &LaunchArgs {
                plan: self.plan,
                workspace: self.workspace.0,
                workspace_bytes: self.workspace.1,
                tensors: RSlice::from_slice(&self.tensors),
                weights: RSlice::from_slice(&self.weights),
                scalars: RSlice::from_slice(&self.scalars),
                host: RSlice::from_slice(&host),
            },
        )
    }
}

impl Kernel for QueuedKernel {
    fn flags(&self) -> u64 {
        self.inner.flags()
    }

    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.inner.workspace_bytes(shapes)
    }

    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        let Some(queues) = &self.queues else { return self.inner.launch(Stream::NONE, args) };
        let (kernel, args) = (Arc::clone(&self.inner), Arguments::of(args));
        queues.launch(stream, move || args.launch(&*kernel))
    }
}
