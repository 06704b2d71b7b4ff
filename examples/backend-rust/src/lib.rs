//! A complete small backend: profiles `dense` and `sample` in plain loops on the host's processor.
//!
//! Start a backend of your own from a copy of this folder: rename `toy`, replace the bodies in `ops/`, and run
//! `halyard verify toy --backend-path target/release` until every case of the profiles you declare passes.
//!
//! A device that is not the host's processor implements `halyard_sdk::Device` instead of `InlineDevice`, with its own memory,
//! streams and events.

mod ops;
mod weights;

use std::sync::Arc;

use halyard_sdk::{
    Backend, DType, Error, HostMemory, InfoKey, InlineDevice, Kernel, KvDesc, KvLayout, MemRef,
    OpDesc, Options, PropKey, Result, Scheme, Support, Weight, WeightDesc, WeightFill, WeightPlan,
};
use weights::Weights;

/// What `export_backend!` exports.
pub struct Toy;

impl Backend for Toy {
    type Device = ToyDevice;

    fn info(key: InfoKey) -> String {
        match key {
            InfoKey::ID => "toy",
            InfoKey::NAME => "Toy: plain loops on the host's processor",
            InfoKey::VERSION => env!("CARGO_PKG_VERSION"),
            InfoKey::VENDOR => "Halyard's examples",
            InfoKey::PROFILES => "dense,sample",
            _ => "",
        }
        .into()
    }

    fn probe() -> i32 {
        1
    }

    fn device_count() -> Result<u32> {
        Ok(1)
    }

    fn open(_ordinal: u32, options: Options) -> Result<ToyDevice> {
        options.finish(&[])?;
        Ok(ToyDevice { memory: HostMemory::new(), weights: Arc::new(Weights::new()) })
    }
}

/// The only device.
pub struct ToyDevice {
    memory: HostMemory,
    weights: Arc<Weights>,
}

impl InlineDevice for ToyDevice {
    fn memory(&self) -> &HostMemory {
        &self.memory
    }

    fn property(&self, key: PropKey) -> Option<u64> {
        match key {
            PropKey::COMPUTE_UNITS => Some(1),
            PropKey::PREFERRED_KV_BLOCK => Some(16),
            PropKey::DTYPE_MASK => {
                Some([DType::F32, DType::F16, DType::BF16].iter().map(|d| 1 << d.0).sum())
            }
            PropKey::SCHEME_MASK => Some(1 << Scheme::DENSE.0),
            _ => None,
        }
    }

    fn info(&self, key: InfoKey) -> String {
        match key {
            InfoKey::NAME => "toy device".into(),
            InfoKey::ARCH => std::env::consts::ARCH.into(),
            _ => String::new(),
        }
    }

    // What `prepare` can do is what is supported: one answer for both.
    fn support(&self, op: &OpDesc<'_>) -> Support {
        match ops::prepare(op, &self.weights) {
            Ok(_) => Support::Slow("plain loops, one thread".into()),
            Err(error) => Support::No(error.message.to_string()),
        }
    }

    fn prepare(&self, op: &OpDesc<'_>) -> Result<Box<dyn Kernel>> {
        ops::prepare(op, &self.weights)
    }

    fn weight_plan(&self, w: &WeightDesc<'_>) -> Result<WeightPlan> {
        weights::plan(w)
    }

    fn weight_create(&self, w: &WeightDesc<'_>, dst: &MemRef) -> Result<Weight> {
        weights::create(&self.weights, &self.memory, w, dst)
    }

    fn weight_fill(&self, w: Weight, f: &WeightFill<'_>) -> Result<()> {
        weights::fill(&self.weights, w, f)
    }

    fn weight_seal(&self, w: Weight) -> Result<()> {
        self.weights.seal(w)
    }

    fn weight_destroy(&self, w: Weight) -> Result<()> {
        self.weights.destroy(w)
    }

    // Row-major blocks: what `HostTensor` takes an opaque view for.
    fn kv_layout(&self, kv: &KvDesc<'_>) -> Result<KvLayout> {
        let float = matches!(kv.dtype, DType::F32 | DType::F16 | DType::BF16);
        if kv.kind != halyard_sdk::abi::types::KV_STANDARD || !float {
            return Err(Error::unsupported(format!(
                "a cache of kind {} and {}",
                kv.kind, kv.dtype
            )));
        }
        let bytes = |dim: u32| {
            let elements = u64::from(kv.block_size) * u64::from(kv.heads) * u64::from(dim);
            kv.dtype.bytes(elements).ok_or_else(|| Error::invalid("a block too large"))
        };
        Ok(KvLayout { block_bytes: [bytes(kv.dim_k)?, bytes(kv.dim_v)?], align: 64, format: 0 })
    }
}

halyard_sdk::export_backend!(Toy);
