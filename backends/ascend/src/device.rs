//! One NPU, as a host sees it.

use std::sync::{Arc, OnceLock};

use halyard_sdk::{
    AllocReq, Buffer, Code, Collective, CommDesc, CopyReq, DType, Device, Error, Event, Graph,
    InfoKey, Kernel, KvDesc, KvLayout, MemRef, Metric, MetricKey, Notify, OpDesc, PropKey, Result,
    Stream, Support, Weight, WeightDesc, WeightFill, WeightPlan,
    vendor::{Handles, report, wait},
};

use crate::{
    collective::{self, Fates},
    driver::{self, Bound, Context, Driver},
    kv,
    memory::{self, ALIGN, Buffers},
    ops,
    weights::{SCHEMES, Weights},
};

/// Events that keep the time.
const TIMED: u32 = 1;

/// What the device, its kernels and its weights share.
#[derive(Debug)]
pub(crate) struct Shared {
    context: Context,
    chip: String,
    cores: u64,
    pub(crate) weights: Weights,
    pub(crate) buffers: Buffers,
    /// What operators read beside a launch's own.
    pub(crate) constants: Option<ops::Constants>,
    /// Of steps.
    pub(crate) plans: Handles<ops::StepPlan>,
    graphs: Handles<driver::Graph>,
    streams: Handles<driver::Stream>,
    events: Handles<driver::Event>,
    /// What [`Stream::NONE`] names.
    default_stream: Option<Arc<driver::Stream>>,
    pub(crate) fates: Fates,
    /// Found when measurements are first wanted; none without DCMI and `npu-smi`.
    sensors: OnceLock<Option<driver::Sensors>>,
}

impl Shared {
    /// Makes the device's context the thread's.
    pub(crate) fn bind(&self) -> Result<Bound<'_>> {
        self.context.bind()
    }

    pub(crate) fn driver(&self) -> &'static Driver {
        self.context.driver
    }

    /// Whether the release has all that graphs want.
    pub(crate) fn has_graphs(&self) -> bool {
        driver::graphs_lack(self.driver()).is_empty()
    }

    pub(crate) fn stream(&self, s: Stream) -> Result<Arc<driver::Stream>> {
        match &self.default_stream {
            Some(stream) if s == Stream::NONE => Ok(Arc::clone(stream)),
            _ => self.streams.get(s.0),
        }
    }

    /// A stream's failure with its cause.
    pub(crate) fn told<T>(&self, s: Stream, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.fates.cause(s, error))
    }
}

impl Drop for Shared {
    /// Objects of the runtime need their context bound when they are freed.
    fn drop(&mut self) {
        let Ok(_bound) = self.context.bind() else { return };
        self.graphs.clear();
        self.events.clear();
        self.streams.clear();
        self.default_stream = None;
        self.constants = None;
        self.buffers.clear();
    }
}

/// An Ascend NPU.
#[derive(Debug)]
pub struct AscendDevice {
    shared: Arc<Shared>,
}

/// Refuses chips whose operators have other limits.
fn check_chip(chip: &str) -> Result<()> {
    let model = chip.strip_prefix("Ascend910B").and_then(|rest| rest.chars().next());
    if model.is_some_and(|c| ('1'..='4').contains(&c)) {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "the chip is {chip}; supported: Ascend910B1 to Ascend910B4 (Atlas A2)"
    )))
}

impl AscendDevice {
    pub(crate) fn open(ordinal: u32) -> Result<Self> {
        let context = Context::open(ordinal)?;
        let (chip, cores, default_stream, constants) = {
            let _bound = context.bind()?;
            let chip = context.chip()?;
            check_chip(&chip)?;
            let stream = driver::Stream::create(context.driver)?;
            let constants = ops::Constants::new(&stream)?;
            (chip, context.cores()?, Some(Arc::new(stream)), Some(constants))
        };
        tracing::debug!(ordinal, chip, "opened an Ascend device");
        let lacks = driver::graphs_lack(context.driver);
        if !lacks.is_empty() {
            let (cann, lacks) = (driver::version_text(), lacks.join(", "));
            tracing::info!(ordinal, cann, lacks, "no graphs: CANN lacks functions of theirs");
        }
        let shared = Shared {
            chip,
            cores,
            weights: Weights::default(),
            buffers: Buffers::default(),
            constants,
            plans: Handles::new("plan"),
            graphs: Handles::new("graph"),
            streams: Handles::new("stream"),
            events: Handles::new("event"),
            default_stream,
            fates: Fates::default(),
            sensors: OnceLock::new(),
            context,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn memory_now(&self) -> Result<(u64, u64)> {
        let _bound = self.shared.bind()?;
        self.shared.context.memory_now()
    }
}

impl Device for AscendDevice {
    fn property(&self, key: PropKey) -> Option<u64> {
        let mask = |ids: &[u32]| ids.iter().fold(0, |m, id| m | 1u64 << id);
        Some(match key {
            PropKey::TOTAL_MEMORY => self.memory_now().ok()?.1,
            PropKey::COMPUTE_UNITS => self.shared.cores,
            PropKey::ALIGN => ALIGN,
            PropKey::NOTIFY => u64::from(self.shared.driver().acl.aclrtLaunchHostFunc.is_some()),
            PropKey::GRAPH => u64::from(self.shared.has_graphs()),
            PropKey::GRAPH_COMM | PropKey::PEER_MASK | PropKey::INLINE => 0,
            PropKey::PREFERRED_KV_BLOCK => kv::PREFERRED_BLOCK,
            PropKey::KV_BLOCK_MASK => kv::BLOCK_MASK,
            PropKey::DTYPE_MASK => mask(&[DType::F32.0, DType::F16.0, DType::BF16.0]),
            PropKey::TENSOR_CORE_MASK => mask(&[DType::F16.0, DType::BF16.0]),
            PropKey::SCHEME_MASK => mask(&SCHEMES.map(|s| s.0)),
            _ => return None,
        })
    }

    fn info(&self, key: InfoKey) -> String {
        match key {
            InfoKey::NAME | InfoKey::ARCH => self.shared.chip.clone(),
            InfoKey::DRIVER => driver::version_text(),
            InfoKey::VENDOR => "Huawei".into(),
            _ => String::new(),
        }
    }

    fn telemetry(&self, out: &mut [Metric]) -> u32 {
        let Ok((free, total)) = self.memory_now() else { return 0 };
        let memory = [
            (MetricKey::MEM_FREE, free),
            (MetricKey::MEM_USED, total - free),
            (MetricKey::MEM_USED_BY_US, self.shared.buffers.device_bytes()),
        ];
        let sensors = self.shared.sensors.get_or_init(|| self.shared.context.sensors());
        let measured = sensors.iter().flat_map(driver::Sensors::read);
        report(out, memory.into_iter().chain(measured))
    }

    fn alloc(&self, req: &AllocReq) -> Result<Buffer> {
        let _bound = self.shared.bind()?;
        memory::alloc(self.shared.driver(), &self.shared.buffers, req)
    }

    fn free(&self, buffer: Buffer) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.buffers.free(&buffer)
    }

    fn copy(&self, s: Stream, req: &CopyReq) -> Result<()> {
        let _bound = self.shared.bind()?;
        let stream = self.shared.stream(s)?;
        let Some([dst, src]) = self.shared.buffers.planes(req)? else { return Ok(()) };
        // SAFETY: `planes` found both spans in live buffers, or they are the host's, who keeps all until the copy is done.
        let copied = unsafe { driver::copy(&stream, dst, src, req.row_bytes, req.rows) };
        self.shared.told(s, copied)
    }

    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> Result<()> {
        let _bound = self.shared.bind()?;
        let stream = self.shared.stream(s)?;
        if self.shared.buffers.words(dst, bytes)?.on_host {
            return Err(Error::unsupported("a fill of host memory; the device fills its own"));
        }
        let filled = ops::fill(&stream, (dst.base, dst.offset / 4), pattern, bytes / 4);
        self.shared.told(s, filled)
    }

    fn stream_create(&self, _priority: i32, flags: u32) -> Result<Stream> {
        if flags != 0 {
            return Err(Error::unsupported(format!("stream flags {flags:#x}, none is known")));
        }
        let _bound = self.shared.bind()?;
        Ok(Stream(self.shared.streams.insert(driver::Stream::create(self.shared.driver())?)))
    }

    fn stream_destroy(&self, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        let ended = self.shared.streams.remove(s.0)?.synchronize();
        let ended = self.shared.told(s, ended);
        self.shared.fates.forget(s);
        match ended {
            // Its communicator told of it.
            Err(error) if [Code::COMM_ERROR, Code::COMM_ABORTED].contains(&error.code) => Ok(()),
            other => other,
        }
    }

    fn stream_sync(&self, s: Stream, timeout_ns: u64) -> Result<()> {
        let _bound = self.shared.bind()?;
        let stream = self.shared.stream(s)?;
        let waited = wait(timeout_ns, || stream.synchronize(), || stream.query());
        self.shared.told(s, waited)
    }

    fn stream_query(&self, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        let asked = self.shared.stream(s)?.query();
        self.shared.told(s, asked)
    }

    fn event_create(&self, flags: u32) -> Result<Event> {
        if flags & !TIMED != 0 {
            return Err(Error::unsupported(format!(
                "event flags {flags:#x}, {TIMED} (timing) is known"
            )));
        }
        let _bound = self.shared.bind()?;
        Ok(Event(
            self.shared
                .events
                .insert(driver::Event::create(self.shared.driver(), flags & TIMED != 0)?),
        ))
    }

    fn event_destroy(&self, e: Event) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.events.remove(e.0).map(drop)
    }

    fn event_record(&self, e: Event, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.events.get(e.0)?.record(&*self.shared.stream(s)?)
    }

    fn event_wait(&self, s: Stream, e: Event) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.events.get(e.0)?.hold(&*self.shared.stream(s)?)
    }

    fn event_sync(&self, e: Event, timeout_ns: u64) -> Result<()> {
        let _bound = self.shared.bind()?;
        let event = self.shared.events.get(e.0)?;
        wait(timeout_ns, || event.synchronize(), || event.query())
    }

    fn event_query(&self, e: Event) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.events.get(e.0)?.query()
    }

    fn event_elapsed_ns(&self, a: Event, b: Event) -> Result<u64> {
        let _bound = self.shared.bind()?;
        let (a, b) = (self.shared.events.get(a.0)?, self.shared.events.get(b.0)?);
        Ok((f64::from(b.milliseconds_since(&a)?).max(0.0) * 1e6) as u64)
    }

    fn support(&self, op: &OpDesc<'_>) -> Support {
        match ops::prepare(op) {
            Ok(launch) => launch.slow().map_or(Support::Native, |why| Support::Slow(why.into())),
            Err(error) => Support::No(error.message.into()),
        }
    }

    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        let prepared = ops::prepare(op)?;
        Ok(Box::new(ops::AscendKernel::new(prepared, Arc::clone(&self.shared), op)))
    }

    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        Weights::plan(w)
    }

    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        let _bound = self.shared.bind()?;
        let place = self.shared.buffers.resolve(dst, Weights::plan(w)?.bytes)?;
        if place.on_host {
            return Err(Error::invalid("a weight in host memory, expected device memory"));
        }
        self.shared.weights.create(w, place.address)
    }

    fn weight_fill(&self, s: Stream, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.weights.fill(&*self.shared.stream(s)?, w, f)
    }

    fn weight_seal(&self, s: Stream, w: Weight) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.stream(s)?.synchronize()?;
        self.shared.weights.seal(w)
    }

    fn weight_destroy(&self, w: Weight) -> Result<()> {
        self.shared.weights.destroy(w)
    }

    fn kv_layout(&self, desc: &KvDesc<'_>) -> Result<KvLayout> {
        kv::layout(desc)
    }

    fn comm_unique_id(&self, out: &mut [u8]) -> Result<u32> {
        collective::unique_id(&self.shared, out)
    }

    fn comm_create(&self, desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
        collective::join(&self.shared, desc)
    }

    fn notify(&self, s: Stream, n: &Notify) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.stream(s)?.call(n.func, n.ctx)
    }

    fn graph_begin(&self, s: Stream) -> Result<()> {
        if !self.shared.has_graphs() {
            return Err(Error::unsupported("graphs: CANN lacks functions of theirs"));
        }
        let _bound = self.shared.bind()?;
        self.shared.stream(s)?.begin_capture()
    }

    fn graph_end(&self, s: Stream) -> Result<Graph> {
        let _bound = self.shared.bind()?;
        Ok(Graph(self.shared.graphs.insert(driver::Graph::end(self.shared.stream(s)?)?)))
    }

    fn graph_launch(&self, g: Graph, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        let launched = self.shared.graphs.get(g.0)?.launch(&*self.shared.stream(s)?);
        self.shared.told(s, launched)
    }

    fn graph_destroy(&self, g: Graph) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.graphs.remove(g.0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_second_generation_is_opened() {
        for chip in ["Ascend910B1", "Ascend910B2C", "Ascend910B4-1"] {
            assert!(check_chip(chip).is_ok(), "{chip}");
        }
        for chip in ["Ascend910B", "Ascend910A", "Ascend310P3", "Ascend910_9391", "Ascend950"] {
            assert!(check_chip(chip).is_err(), "{chip}");
        }
    }
}
