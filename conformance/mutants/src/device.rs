//! The reference device with a mutant in it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use halyard_cpu_ref::{CpuRef, RefDevice};
use halyard_sdk::{
    AllocReq, Attr, Backend, Buffer, Collective, CommDesc, CopyReq, Device, Error, Event, InfoKey,
    Kernel, KvDesc, KvLayout, LaunchArgs, MemRef, Metric, OpDesc, OpKind, Options, PropKey, Result,
    Stream, Support, TensorSpec, Weight, WeightDesc, WeightFill, WeightPlan, abi::RSlice,
};

use crate::{
    bugs,
    call::Call,
    mutant::{Desc, Mutant},
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
        options.finish(&["mutant"])?;
        let find = |name: String| {
            let found = bugs::all().find(|m| m.name == name);
            found.ok_or_else(|| Error::invalid(format!("no mutant is called {name}")))
        };
        let mutant = name.map(find).transpose()?;
        Ok(MutantDevice { inner: Arc::default(), mutant, pending: Mutex::default() })
    }
}

/// The device.
#[derive(Debug)]
pub(crate) struct MutantDevice {
    inner: Arc<RefDevice>,
    mutant: Option<&'static Mutant>,
    pending: Mutex<Pending>,
}

impl MutantDevice {
    fn of(&self, kind: OpKind) -> Option<&'static Mutant> {
        self.mutant.filter(|m| m.op == kind)
    }

    /// The mutant, if it is one of how weights are packed.
    fn packs(&self) -> Option<&'static Mutant> {
        self.mutant.filter(|m| m.weight.is_some() || m.fill.is_some())
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

impl Device for MutantDevice {
    right! {
        property(key: PropKey) -> Option<u64>;
        info(key: InfoKey) -> String;
        telemetry(out: &mut [Metric]) -> u32;
        alloc(req: &AllocReq) -> Result<Buffer>;
        free(buffer: Buffer) -> Result<()>;
        copy(s: Stream, req: &CopyReq) -> Result<()>;
        fill(s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> Result<()>;
        stream_create(priority: i32, flags: u32) -> Result<Stream>;
        stream_destroy(s: Stream) -> Result<()>;
        stream_sync(s: Stream, timeout_ns: u64) -> Result<()>;
        stream_query(s: Stream) -> Result<()>;
        event_create(flags: u32) -> Result<Event>;
        event_destroy(e: Event) -> Result<()>;
        event_record(e: Event, s: Stream) -> Result<()>;
        event_wait(s: Stream, e: Event) -> Result<()>;
        event_sync(e: Event, timeout_ns: u64) -> Result<()>;
        event_query(e: Event) -> Result<()>;
        event_elapsed_ns(a: Event, b: Event) -> Result<u64>;
        weight_plan(w: &WeightDesc<'_>) -> Result<WeightPlan>;
        kv_layout(kv: &KvDesc<'_>) -> Result<KvLayout>;
        comm_unique_id(out: &mut [u8]) -> Result<u32>;
        comm_create(desc: &CommDesc<'_>) -> Result<Box<dyn Collective>>;
    }

    fn support(&self, op: &OpDesc<'_>) -> Support {
        match self.of(op.kind).and_then(|m| m.habit) {
            Some(Habit::PromisesTooMuch) => Support::Native,
            Some(Habit::PromisesTooLittle) => Support::No("a habit".into()),
            _ => Device::support(&*self.inner, op),
        }
    }

    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        let Some(mutant) = self.of(op.kind) else { return Device::prepare(&*self.inner, op) };
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
        Ok(Box::new(MutantKernel {
            inner: Device::prepare(&*self.inner, &changed)?,
            mutant,
            attrs: op.attrs.to_vec(),
            launches: AtomicU64::new(0),
        }))
    }

    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        let weight = Device::weight_create(&*self.inner, w, dst)?;
        if self.packs().is_some() {
            self.pending().create(weight, w)?;
        }
        Ok(weight)
    }

    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        match self.packs() {
            Some(mutant) => self.pending().fill(&self.inner, mutant, w, f),
            None => Device::weight_fill(&*self.inner, s, w, f),
        }
    }

    fn weight_seal(&self, s: Stream, w: Weight) -> Result<()> {
        if let Some(mutant) = self.packs() {
            self.pending().seal(&self.inner, mutant, w)?;
        }
        Device::weight_seal(&*self.inner, s, w)
    }

    fn weight_destroy(&self, w: Weight) -> Result<()> {
        self.pending().forget(w);
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
