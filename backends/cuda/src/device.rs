//! One GPU, as a host sees it.

use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use halyard_sdk::{
    AllocReq, Buffer, Code, Collective, CommDesc, CopyReq, DType, Device, Error, Event, InfoKey,
    Kernel, KvDesc, KvLayout, MemRef, Metric, MetricKey, Notify, OpDesc, PropKey, Result, Stream,
    Support, Weight, WeightDesc, WeightFill, WeightPlan,
    vendor::{Handles, report, wait},
};

use crate::{
    capture::{Captures, Graph},
    collective,
    cublas::Blas,
    driver::{self, Bound, Context},
    kernels::{Arch, Kernels},
    kv,
    memory::{ALIGN, Buffers},
    nvml::Sensors,
    ops,
    weights::{SCHEMES, Weights},
};

/// Events that keep the time.
const TIMED: u32 = 1;

/// What the device is, asked once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) capability: (u32, u32),
    /// Streaming multiprocessors.
    pub(crate) processors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub(crate) shared_bytes: u32,
    total_memory: u64,
    /// Bytes a second that the memory's clock and bus allow, in MB/s.
    bandwidth_mbps: u64,
}

impl Limits {
    fn of(context: &Context) -> Result<Self> {
        let ask = |which| context.attribute(which);
        let clock_khz = ask(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bus_bits = ask(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        Ok(Self {
            capability: (
                ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            processors: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            total_memory: context.total_memory()?,
            // Two transfers a clock.
            bandwidth_mbps: u64::from(clock_khz) * 2 * u64::from(bus_bits) / 8 / 1000,
        })
    }
}

/// What the device, its kernels and its weights share.
#[derive(Debug)]
pub(crate) struct Shared {
    context: Context,
    pub(crate) limits: Limits,
    pub(crate) kernels: Kernels,
    pub(crate) weights: Weights,
    /// None where it is not there or not wanted.
    pub(crate) blas: Option<Blas>,
    pub(crate) buffers: Buffers,
    streams: Handles<driver::Stream>,
    events: Handles<driver::Event>,
    pub(crate) captures: Captures,
    graphs: Handles<Graph>,
    /// What [`Stream::NONE`] names.
    default_stream: Option<Arc<driver::Stream>>,
    /// Found when measurements are first wanted; none without NVML.
    sensors: OnceLock<Option<Sensors>>,
}

impl Shared {
    /// Makes the device's context the thread's.
    pub(crate) fn bind(&self) -> Result<Bound<'_>> {
        self.context.bind()
    }

    /// Lets linked devices of this process use this one's memory.
    pub(crate) fn share_memory(&self) -> Result<()> {
        self.context.share_pool()
    }

    pub(crate) fn stream(&self, s: Stream) -> Result<Arc<driver::Stream>> {
        match &self.default_stream {
            Some(stream) if s == Stream::NONE => Ok(Arc::clone(stream)),
            _ => self.streams.get(s.0),
        }
    }
}

impl Drop for Shared {
    /// Objects of the driver need their context bound when they are freed.
    fn drop(&mut self) {
        let Ok(_bound) = self.context.bind() else { return };
        self.graphs.clear();
        self.events.clear();
        self.streams.clear();
        self.default_stream = None;
        self.weights.clear();
        self.buffers.clear();
        self.kernels.clear();
        self.blas = None;
    }
}

/// An NVIDIA GPU.
#[derive(Debug)]
pub struct CudaDevice {
    shared: Arc<Shared>,
}

impl CudaDevice {
    pub(crate) fn open(ordinal: u32) -> Result<Self> {
        let context = Context::retain(ordinal)?;
        let limits = Limits::of(&context)?;
        let arch = Arch::of(limits.capability.0, limits.capability.1)?;
        let (default_stream, buffers, blas) = {
            let _bound = context.bind()?;
            let stream = Some(Arc::new(driver::Stream::create(0)?));
            (stream, Buffers::new()?, Blas::open(limits.capability)?)
        };
        tracing::debug!(ordinal, name = context.name(), arch = arch.name(), "opened a CUDA device");
        let shared = Shared {
            context,
            limits,
            kernels: Kernels::new(arch, driver::start()?),
            weights: Weights::default(),
            blas,
            buffers,
            streams: Handles::new("stream"),
            events: Handles::new("event"),
            captures: Captures::default(),
            graphs: Handles::new("graph"),
            default_stream,
            sensors: OnceLock::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Device for CudaDevice {
    fn property(&self, key: PropKey) -> Option<u64> {
        let limits = &self.shared.limits;
        let mask = |ids: &[u32]| ids.iter().fold(0, |m, id| m | 1u64 << id);
        Some(match key {
            PropKey::TOTAL_MEMORY => limits.total_memory,
            PropKey::COMPUTE_UNITS => u64::from(limits.processors),
            PropKey::ARCH_MAJOR => u64::from(limits.capability.0),
            PropKey::ARCH_MINOR => u64::from(limits.capability.1),
            PropKey::WARP => 32,
            PropKey::ALIGN => ALIGN,
            PropKey::GRAPH | PropKey::GRAPH_COMM | PropKey::NOTIFY => 1,
            PropKey::PEER_MASK | PropKey::INLINE => 0,
            PropKey::PREFERRED_KV_BLOCK => 16,
            PropKey::KV_BLOCK_MASK => kv::BLOCK_MASK,
            PropKey::DTYPE_MASK => mask(&[DType::F32.0, DType::F16.0, DType::BF16.0]),
            PropKey::TENSOR_CORE_MASK => mask(&[DType::F16.0, DType::BF16.0]),
            PropKey::SCHEME_MASK => mask(&SCHEMES.map(|s| s.0)),
            PropKey::MEM_BW_MBPS => limits.bandwidth_mbps,
            _ => return None,
        })
    }

    fn info(&self, key: InfoKey) -> String {
        let context = &self.shared.context;
        match key {
            InfoKey::NAME => context.name(),
            InfoKey::UUID => context.uuid(),
            InfoKey::PCI => context.bus_id(),
            InfoKey::DRIVER => match &self.shared.blas {
                Some(blas) => format!("{}, cuBLASLt {}", driver::version_text(), blas.version()),
                None => format!("{}, no cuBLASLt", driver::version_text()),
            },
            InfoKey::VENDOR => "NVIDIA".into(),
            InfoKey::ARCH => {
                let (major, minor) = self.shared.limits.capability;
                format!(
                    "compute capability {major}.{minor}, kernels for {}",
                    self.shared.kernels.arch().name()
                )
            }
            _ => String::new(),
        }
    }

    fn telemetry(&self, out: &mut [Metric]) -> u32 {
        let context = &self.shared.context;
        let Ok((free, total)) = context.memory_now() else { return 0 };
        let memory = [
            (MetricKey::MEM_FREE, free),
            (MetricKey::MEM_USED, total - free),
            (MetricKey::MEM_USED_BY_US, self.shared.buffers.named.device_bytes()),
        ];
        let sensors = self.shared.sensors.get_or_init(|| Sensors::of(&context.bus_id()));
        let measured = sensors.iter().flat_map(Sensors::read);
        report(out, memory.into_iter().chain(measured))
    }

    fn alloc(&self, req: &AllocReq) -> Result<Buffer> {
        let _bound = self.shared.bind()?;
        self.shared.buffers.alloc(req)
    }

    fn free(&self, buffer: Buffer) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.buffers.named.free(&buffer)
    }

    fn copy(&self, s: Stream, req: &CopyReq) -> Result<()> {
        let _bound = self.shared.bind()?;
        let stream = self.shared.stream(s)?;
        let Some([dst, src]) = self.shared.buffers.named.planes(req)? else { return Ok(()) };
        // SAFETY: `planes` found both spans in live buffers, or they are the host's, who keeps all until the copy is done.
        unsafe { driver::copy(&stream, dst, src, req.row_bytes, req.rows) }
    }

    fn fill(&self, s: Stream, dst: &MemRef, pattern: u32, bytes: u64) -> Result<()> {
        let _bound = self.shared.bind()?;
        let stream = self.shared.stream(s)?;
        let found = self.shared.buffers.named.words(dst, bytes)?;
        // SAFETY: `words` found the span in a live buffer, which the host keeps until the fill is done.
        unsafe { driver::fill(&stream, found.address, pattern, bytes / 4) }
    }

    fn stream_create(&self, priority: i32, flags: u32) -> Result<Stream> {
        if flags != 0 {
            return Err(Error::unsupported(format!("stream flags {flags:#x}, none is known")));
        }
        let _bound = self.shared.bind()?;
        Ok(Stream(self.shared.streams.insert(driver::Stream::create(priority)?)))
    }

    fn stream_destroy(&self, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.streams.remove(s.0)?.synchronize()
    }

    fn stream_sync(&self, s: Stream, timeout_ns: u64) -> Result<()> {
        let _bound = self.shared.bind()?;
        let stream = self.shared.stream(s)?;
        wait(timeout_ns, || stream.synchronize(), || stream.query())
    }

    fn stream_query(&self, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.stream(s)?.query()
    }

    fn event_create(&self, flags: u32) -> Result<Event> {
        if flags & !TIMED != 0 {
            return Err(Error::unsupported(format!(
                "event flags {flags:#x}, {TIMED} (timing) is known"
            )));
        }
        let _bound = self.shared.bind()?;
        Ok(Event(self.shared.events.insert(driver::Event::create(flags & TIMED != 0)?)))
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
        Ok((f64::from(b.milliseconds_since(&a)?) * 1e6) as u64)
    }

    fn support(&self, op: &OpDesc<'_>) -> Support {
        match ops::prepare(op, &self.shared) {
            Ok(prepared) => prepared.support,
            Err(error) if [Code::UNSUPPORTED, Code::INVALID_ARGUMENT].contains(&error.code) => {
                Support::No(error.message.into())
            }
            // It should work, and what the driver says of it is an error, which `prepare` gives.
            Err(_) => Support::Native,
        }
    }

    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        let prepared = ops::prepare(op, &self.shared)?;
        Ok(Box::new(ops::CudaKernel::new(prepared, Arc::clone(&self.shared), op)))
    }

    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        Weights::plan(w)
    }

    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        let _bound = self.shared.bind()?;
        let place = self.shared.buffers.named.resolve(dst, Weights::plan(w)?.bytes)?;
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
        collective::unique_id(out)
    }

    fn comm_create(&self, desc: &CommDesc<'_>) -> Result<Box<dyn Collective>> {
        collective::join(&self.shared, desc)
    }

    fn notify(&self, s: Stream, n: &Notify) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.stream(s)?.call(n.func, n.ctx)
    }

    fn graph_begin(&self, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.captures.begin(s, &*self.shared.stream(s)?)
    }

    fn graph_end(&self, s: Stream) -> Result<halyard_sdk::Graph> {
        let _bound = self.shared.bind()?;
        let graph = self.shared.captures.end(s, &*self.shared.stream(s)?)?;
        Ok(halyard_sdk::Graph(self.shared.graphs.insert(graph)))
    }

    fn graph_launch(&self, g: halyard_sdk::Graph, s: Stream) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.graphs.get(g.0)?.launch(s, &*self.shared.stream(s)?)
    }

    fn graph_destroy(&self, g: halyard_sdk::Graph) -> Result<()> {
        let _bound = self.shared.bind()?;
        self.shared.graphs.remove(g.0).map(drop)
    }
}
