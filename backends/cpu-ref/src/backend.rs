//! The backend and its one device.

use std::sync::Arc;

use halyard_sdk::{
    Backend, DType, HostMemory, InfoKey, InlineDevice, Kernel, KvDesc, KvLayout, LaunchArgs,
    MemRef, OpDesc, Options, PropKey, Result, Scheme, Stream, Support, Weight, WeightDesc,
    WeightFill, WeightPlan,
    abi::traits::{BATCH_INVARIANT, DETERMINISTIC},
};

use crate::{
    cache,
    glue::Args,
    ops::{self, Run},
    weights::{SCHEMES, Weights},
};

/// The reference backend, `cpu-ref`.
#[derive(Clone, Copy, Debug)]
pub struct CpuRef;

impl Backend for CpuRef {
    type Device = RefDevice;

    fn info(key: InfoKey) -> String {
        match key {
            InfoKey::ID => "cpu-ref".into(),
            InfoKey::NAME => "CPU reference (plain loops, f64)".into(),
            InfoKey::VERSION => env!("CARGO_PKG_VERSION").into(),
            InfoKey::VENDOR => "Halyard".into(),
            InfoKey::PROFILES => profiles(),
            InfoKey::ARCH => std::env::consts::ARCH.into(),
            InfoKey::PROBE_REASON => "runs everywhere, slowly: it is for checking others".into(),
            _ => String::new(),
        }
    }

    fn probe() -> i32 {
        1
    }

    fn device_count() -> Result<u32> {
        Ok(1)
    }

    fn open(_ordinal: u32, options: Options) -> Result<RefDevice> {
        options.finish(&[])?;
        Ok(RefDevice::default())
    }
}

fn profiles() -> String {
    let quant = SCHEMES.iter().filter(|s| **s != Scheme::DENSE).map(|s| format!(",quant:{s}"));
    let quant = quant.collect::<String>();
    format!("dense,moe,moe_trio,mla,contiguous,kv8,act_quant,fusion,sample,comm{quant}")
}

/// The host's processor, one thread at a time.
#[derive(Debug, Default)]
pub struct RefDevice {
    memory: HostMemory,
    weights: Arc<Weights>,
}

impl InlineDevice for RefDevice {
    fn memory(&self) -> &HostMemory {
        &self.memory
    }

    fn property(&self, key: PropKey) -> Option<u64> {
        let mask = |ids: &[u32]| ids.iter().fold(0, |m, id| m | 1u64 << id);
        match key {
            PropKey::COMPUTE_UNITS => Some(1),
            PropKey::PREFERRED_KV_BLOCK => Some(16),
            // Any block size works.
            PropKey::KV_BLOCK_MASK => Some(u64::from(u32::MAX)),
            PropKey::DTYPE_MASK => Some(mask(&[DType::F32.0, DType::F16.0, DType::BF16.0])),
            PropKey::SCHEME_MASK => Some(mask(&SCHEMES.map(|s| s.0))),
            _ => None,
        }
    }

    fn info(&self, key: InfoKey) -> String {
        match key {
            InfoKey::NAME | InfoKey::ARCH | InfoKey::VERSION | InfoKey::VENDOR => CpuRef::info(key),
            _ => String::new(),
        }
    }

    fn support(&self, op: &OpDesc<'_>) -> Support {
        match ops::prepare(op) {
            Ok(_) => Support::Slow("plain loops, for checking other backends".into()),
            Err(error) => Support::No(error.message.into()),
        }
    }

    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(RefKernel { run: ops::prepare(op)?, weights: Arc::clone(&self.weights) }))
    }

    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        Weights::plan(w)
    }

    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        self.weights.create(&self.memory, w, dst)
    }

    fn weight_fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        self.weights.fill(w, f)
    }

    fn weight_seal(&self, w: Weight) -> Result<()> {
        self.weights.seal(w)
    }

    fn weight_destroy(&self, w: Weight) -> Result<()> {
        self.weights.destroy(w)
    }

    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        cache::layout(kv)
    }
}

struct RefKernel {
    run: Run,
    weights: Arc<Weights>,
}

impl Kernel for RefKernel {
    fn flags(&self) -> u64 {
        DETERMINISTIC | BATCH_INVARIANT
    }

    fn launch(&self, _stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        (self.run)(&Args::of_launch(args, &self.weights)?)
    }
}
