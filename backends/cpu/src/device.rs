//! The backend and its one device: the host's processor.

use std::sync::Arc;

use halyard_sdk::{
    Backend, DType, Error, HostMemory, InfoKey, InlineDevice, Kernel, KvDesc, KvLayout, MemRef,
    OpDesc, Options, PropKey, Result, Scheme, Support, Weight, WeightDesc, WeightFill, WeightPlan,
};

use crate::isa::Isa;
use crate::kv::PlaneShape;
use crate::ops;
use crate::pool::{MAX_THREADS, Pool};
use crate::topology;
use crate::weights::{SCHEMES, Weights};

/// The environment variable that chooses the instruction set, like the option `isa`.
const ISA_VARIABLE: &str = "HALYARD_CPU_ISA";

/// Largest KV block, as a power of two.
pub(crate) const MAX_BLOCK_BITS: u32 = 12;

/// Identity of the packed weights' arrangement, for caches on disk: a change of [`crate::pack`] needs
/// a new number.
const WEIGHT_FORMAT: u64 = 0x6370_7500_0001;

/// Identity of the cache's arrangement; a change of [`crate::kv`] needs a new number.
const KV_FORMAT: u64 = 0x6370_7500_0001;

/// The CPU backend, `cpu`.
#[derive(Clone, Copy, Debug)]
pub struct Cpu;

impl Backend for Cpu {
    type Device = CpuDevice;

    fn info(key: InfoKey) -> String {
        match key {
            InfoKey::ID => "cpu".into(),
            InfoKey::NAME => "CPU (SIMD, threads, packed weights)".into(),
            InfoKey::VERSION => env!("CARGO_PKG_VERSION").into(),
            InfoKey::VENDOR => "Halyard".into(),
            InfoKey::PROFILES => profiles(),
            InfoKey::ARCH => Isa::detect().describe(),
            InfoKey::BUILD if cfg!(debug_assertions) => "debug assertions".into(),
            InfoKey::PROBE_REASON => "runs everywhere".into(),
            _ => String::new(),
        }
    }

    fn probe() -> i32 {
        10
    }

    fn device_count() -> Result<u32> {
        Ok(1)
    }

    /// Options: `threads` (default: physical cores), `isa` (`avx512`, `avx2` or `portable`; default: the
    /// best there is, or what the environment variable `HALYARD_CPU_ISA` says).
    fn open(_ordinal: u32, mut options: Options) -> Result<CpuDevice> {
        let range = format!("1 to {MAX_THREADS}");
        let threads = match options.take::<usize>("threads", &range)? {
            None => topology::physical_cores(),
            Some(n) if (1..=MAX_THREADS).contains(&n) => n,
            Some(n) => {
                return Err(Error::invalid(format!("option threads={n}: expected {range}")));
            }
        };
        let isa = options.take::<String>("isa", "an instruction set")?;
        options.finish(&["threads", "isa"])?;
        let isa = match isa.or_else(|| std::env::var(ISA_VARIABLE).ok()) {
            None => Isa::detect(),
            Some(name) => Isa::named(&name).map_err(Error::unsupported)?,
        };
        CpuDevice::new(isa, threads)
    }
}

fn profiles() -> String {
    let quant = SCHEMES.iter().filter(|s| **s != Scheme::DENSE).map(|s| format!(",quant:{s}"));
    let quant = quant.collect::<String>();
    format!("dense,moe,moe_trio,mla,contiguous,kv8,act_quant,fusion,sample,comm{quant}")
}

/// What kernels share: how to compute, with which threads, on which weights.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    pub(crate) weights: Weights,
}

/// The host's processor.
#[derive(Debug)]
pub struct CpuDevice {
    memory: HostMemory,
    context: Arc<Context>,
}

impl CpuDevice {
    fn new(isa: Isa, threads: usize) -> Result<Self> {
        let pool = Pool::new(threads).map_err(|e| {
            Error::new(halyard_sdk::Code::OUT_OF_MEMORY, format!("starting {threads} threads: {e}"))
        })?;
        tracing::debug!(isa = isa.name(), threads, "opened the CPU device");
        let context = Arc::new(Context { isa, pool, weights: Weights::default() });
        Ok(Self { memory: HostMemory::new(), context })
    }
}

impl InlineDevice for CpuDevice {
    fn memory(&self) -> &HostMemory {
        &self.memory
    }

    fn property(&self, key: PropKey) -> Option<u64> {
        let mask = |ids: &[u32]| ids.iter().fold(0, |m, id| m | 1u64 << id);
        match key {
            PropKey::COMPUTE_UNITS => Some(self.context.pool.threads() as u64),
            PropKey::PREFERRED_KV_BLOCK => Some(16),
            PropKey::KV_BLOCK_MASK => Some((2 << MAX_BLOCK_BITS) - 1),
            PropKey::DTYPE_MASK => Some(mask(&[DType::F32.0, DType::F16.0, DType::BF16.0])),
            PropKey::SCHEME_MASK => Some(mask(&SCHEMES.map(|s| s.0))),
            PropKey::GRAPH | PropKey::NOTIFY | PropKey::PEER_MASK => Some(0),
            _ => None,
        }
    }

    fn info(&self, key: InfoKey) -> String {
        match key {
            InfoKey::NAME => topology::model_name(),
            InfoKey::ARCH => self.context.isa.describe(),
            InfoKey::VERSION | InfoKey::VENDOR => Cpu::info(key),
            _ => String::new(),
        }
    }

    fn support(&self, op: &OpDesc<'_>) -> Support {
        match ops::prepare(op, &self.context) {
            Ok(prepared) => prepared.support,
            Err(error) => Support::No(error.message.into()),
        }
    }

    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        let prepared = ops::prepare(op, &self.context)?;
        Ok(Box::new(ops::CpuKernel::new(prepared, Arc::clone(&self.context), op)))
    }

    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        let bytes = Weights::bytes(w)?;
        Ok(WeightPlan { bytes, align: 256, scratch_bytes: 0, format: WEIGHT_FORMAT })
    }

    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        let start = self.memory.resolve(dst, Weights::bytes(w)?)?;
        // SAFETY: `resolve` found the bytes in a live buffer, which the host keeps until `weight_destroy`.
        unsafe { self.context.weights.create(w, start) }
    }

    fn weight_fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.context.weights.fill(&self.context.pool, w, f)
    }

    fn weight_seal(&self, w: Weight) -> Result<()> {
        self.context.weights.seal(w)
    }

    fn weight_destroy(&self, w: Weight) -> Result<()> {
        self.context.weights.destroy(w)
    }

    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        let shape = ops::shape_of(kv)?;
        let bytes = |plane: PlaneShape| plane.block_bytes().unwrap_or(0) as u64;
        Ok(KvLayout { block_bytes: [bytes(shape.k), bytes(shape.v)], align: 64, format: KV_FORMAT })
    }
}
