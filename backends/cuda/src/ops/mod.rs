//! One op a file: what of the catalogue it supports, how much scratch memory it wants, and its launches.
//!
//! Each file has the twins of the structs that its kernels in `kernels/` take.

mod args;
mod attention;
mod elementwise;
mod experts;
mod flash;
mod kv;
mod library;
mod linear;
mod logits;
mod matrix;
mod norm;
mod permute;
mod qkv;
mod quantise;
mod rope;
mod router;
mod rows;
mod select;
mod stage;

use std::sync::Arc;

use halyard_sdk::{
    DType, Error, Kernel, LaunchArgs, OpDesc, OpKind, Result, Scheme, Signature, Stream, Support,
    TensorSpec,
    abi::{
        ops::{
            Sym,
            attrs::OpAttrs,
            check::{Bindings, check_desc},
        },
        traits::{CAPTURABLE, DETERMINISTIC},
    },
};

use crate::{
    device::Shared,
    driver::Function,
    nccl,
    weights::{Layout, SCHEMES},
};
use args::Args;
pub(crate) use args::{Float, address};

/// What the backend promises (`conformance/README.md`).
pub(crate) fn profiles() -> String {
    let quant = SCHEMES.iter().filter(|s| **s != Scheme::DENSE).map(|s| format!(",quant:{s}"));
    // Devices work together where there is NCCL.
    let comm = if nccl::start().is_ok() { ",comm" } else { "" };
    format!(
        "dense,moe,moe_trio,mla,contiguous,kv8,act_quant,fusion,sample{comm}{}",
        quant.collect::<String>()
    )
}

/// An op, ready to launch.
pub(crate) trait Launch: Send + Sync + 'static {
    /// Upper bound of scratch bytes.
    fn workspace_bytes(&self, _shapes: &[TensorSpec]) -> u64 {
        0
    }

    /// Enqueues the work.
    fn launch(&self, args: &Args<'_>) -> Result<()>;
}

/// What [`prepare`] gives.
pub(crate) struct Prepared {
    pub(crate) support: Support,
    launch: Box<dyn Launch>,
}

impl Prepared {
    fn native(launch: impl Launch) -> Self {
        Self { support: Support::Native, launch: Box::new(launch) }
    }
}

/// A descriptor with everything that is known of it.
struct Op<'a> {
    desc: &'a OpDesc<'a>,
    bindings: Bindings,
    /// Forms of the weights.
    layouts: Vec<Layout>,
    shared: &'a Shared,
}

impl Op<'_> {
    fn attrs<A: OpAttrs>(&self) -> Result<A> {
        A::from_desc(self.desc)
    }

    fn present(&self, slot: usize) -> bool {
        self.desc.tensors.get(slot).is_some_and(|t| !t.is_none())
    }

    /// A symbol's value: -1 if it is known only at launch or not used.
    fn dim(&self, sym: Sym) -> i64 {
        self.bindings.get(sym).unwrap_or(-1)
    }

    fn dtype(&self, slot: usize) -> DType {
        self.desc.tensors.get(slot).map_or(DType::NONE, |t| t.dtype)
    }

    /// A slot's float type.
    fn float(&self, slot: usize) -> Result<Float> {
        Float::of(self.dtype(slot))
            .map_err(|e| Error::unsupported(format!("{}: {}", self.desc.kind, e.message)))
    }

    /// A kernel of `kernels/MODULE.cu`.
    fn kernel<P: Copy>(&self, module: &'static str, name: &str) -> Result<Function<P>> {
        let _bound = self.shared.bind()?;
        self.shared.kernels.function(module, name)
    }
}

/// Parses and checks a descriptor.
pub(crate) fn prepare(desc: &OpDesc<'_>, shared: &Shared) -> Result<Prepared> {
    let (_, bindings) = check_desc(desc)?;
    let layouts = desc.weights.iter().map(Layout::of).collect::<Result<_>>()?;
    let op = Op { desc, bindings, layouts, shared };
    match desc.kind {
        OpKind::COPY => elementwise::copy(&op),
        OpKind::ADD => elementwise::add(&op),
        OpKind::MUL => elementwise::mul(&op),
        OpKind::GATHER_ROWS => rows::gather(&op),
        OpKind::EMBEDDING => rows::embedding(&op),
        OpKind::RMS_NORM => norm::prepare(&op),
        OpKind::ROPE => rope::prepare(&op),
        OpKind::ACT_MUL => elementwise::act_mul(&op),
        OpKind::LINEAR => linear::prepare(&op),
        OpKind::LINEAR_ACT_MUL => linear::act_mul(&op),
        OpKind::BATCHED_LINEAR => linear::batched(&op),
        OpKind::GROUPED_LINEAR => linear::grouped(&op),
        OpKind::QUANT_ACT => quantise::quant_act(&op),
        OpKind::RMS_NORM_QUANT => quantise::norm_quant(&op),
        OpKind::QKV_POST => qkv::prepare(&op),
        OpKind::MOE_ROUTER => router::prepare(&op),
        OpKind::MOE_EXPERTS => experts::prepare(&op),
        OpKind::MOE_PERMUTE => permute::permute(&op),
        OpKind::MOE_UNPERMUTE => permute::unpermute(&op),
        OpKind::ARGMAX => logits::argmax(&op),
        OpKind::TOPK => select::topk(&op),
        OpKind::LOGPROBS => logits::logprobs(&op),
        OpKind::LOGITS_PROCESS => logits::process(&op),
        OpKind::SAMPLE => select::sample(&op),
        OpKind::PAGED_ATTENTION => attention::paged(&op),
        OpKind::VARLEN_ATTENTION => attention::varlen(&op),
        OpKind::MLA_ATTENTION => attention::mla(&op),
        OpKind::MERGE_ATTENTION => attention::merge(&op),
        OpKind::KV_WRITE => kv::write(&op),
        OpKind::MLA_WRITE => kv::mla_write(&op),
        OpKind::KV_GATHER => kv::gather(&op),
        OpKind::KV_COPY_BLOCKS => kv::copy_blocks(&op),
        other => Err(Error::unsupported(format!("the CUDA backend has no op {other}"))),
    }
}

/// A prepared kernel.
pub(crate) struct CudaKernel {
    launch: Box<dyn Launch>,
    shared: Arc<Shared>,
    signature: Signature,
}

impl CudaKernel {
    pub(crate) fn new(prepared: Prepared, shared: Arc<Shared>, desc: &OpDesc<'_>) -> Self {
        Self { launch: prepared.launch, shared, signature: Signature::of(desc) }
    }
}

impl Kernel for CudaKernel {
    fn flags(&self) -> u64 {
        DETERMINISTIC | CAPTURABLE
    }

    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.launch.workspace_bytes(shapes)
    }

    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        let shared = &self.shared;
        self.signature.launch(args, || {
            let _bound = shared.bind()?;
            let stream = shared.stream(stream)?;
            self.launch.launch(&Args { shared, stream: &stream, args })
        })
    }
}
