//! One op a file: what of the catalogue it supports, how much scratch memory it wants, and the operators it enqueues.

/// Enqueues an operator on a launch's stream: a `Result`. Arguments are named twice, so they are plain values and references.
macro_rules! enqueue {
    ($on:expr, $name:ident($($arg:expr),* $(,)?)) => {
        enqueue!($on, Again, $name($($arg),*))
    };
    ($on:expr, $use:ident, $name:ident($($arg:expr),* $(,)?)) => {{
        use crate::driver::{Create, Describe};
        let on: &crate::driver::Stream = $on;
        // SAFETY: the arguments are the same. Addresses come from a launch's views, weights and workspace alone, whose bounds the host has
        // checked against the catalogue and which it keeps until the work is done, or are the device's own.
        unsafe {
            crate::driver::run(
                stringify!($name),
                on.driver().operators.$name,
                (on, crate::driver::Use::$use),
                |key| { $(Describe::describe(&$arg, key);)* },
                |size, held, bytes, executor| {
                    Ok(size($(Create::create(&$arg, held)?,)* bytes, executor))
                },
            )
        }
    }};
}

mod args;
mod attention;
mod batched;
mod calc;
mod combine;
mod constants;
mod elementwise;
mod grouped;
mod index;
mod kv;
mod linear;
mod logits;
mod moe;
mod norm;
mod process;
mod quantised;
mod rope;
mod rows;
mod sample;
mod widen;

use std::sync::Arc;

use halyard_ascend_sys::types::ACL_INT32;
use halyard_sdk::{
    DType, Error, Kernel, LaunchArgs, OpDesc, OpKind, Plan, Result, Signature, Stream, TensorSpec,
    abi::{
        ops::{
            Sym,
            attrs::OpAttrs,
            check::{Bindings, check_desc},
        },
        traits::{CAPTURABLE, HOST_LENGTHS, PLAN_UPDATE},
    },
};

use crate::{
    device::Shared,
    driver::{self, Scalar, Tensor},
    weights::Packed,
};
use args::Args;
pub(crate) use attention::StepPlan;
pub(crate) use combine::{Combination, combine};
pub(crate) use constants::Constants;

/// What the backend promises (`conformance/README.md`).
pub(crate) const PROFILES: &str =
    "dense,moe,moe_trio,mla,contiguous,sample,quant:int8_channel,quant:int4_group,comm";

/// An op, ready to launch.
pub(crate) trait Launch: Send + Sync + 'static {
    /// Upper bound of scratch bytes.
    fn workspace_bytes(&self, _shapes: &[TensorSpec]) -> u64 {
        0
    }

    /// Whether it wants the host's copy of the lengths.
    fn wants_lengths(&self) -> bool {
        false
    }

    /// Why it is slow, if it is.
    fn slow(&self) -> Option<&'static str> {
        None
    }

    /// Prepares a step, if what is captured can follow a plan.
    fn plan(&self, _args: &LaunchArgs<'_>) -> Result<Option<StepPlan>> {
        Ok(None)
    }

    /// Whether it can.
    fn follows_plans(&self) -> bool {
        false
    }

    /// Enqueues the work.
    fn launch(&self, args: &Args<'_>) -> Result<()>;
}

/// A descriptor with everything that is known of it.
struct Op<'a> {
    desc: &'a OpDesc<'a>,
    bindings: Bindings,
    weights: Vec<Packed>,
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

    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::unsupported(format!("{}: {what}", self.desc.kind))
    }

    /// Refuses slots of other types than f32, f16 and bf16.
    fn floats(&self, slots: &[usize]) -> Result<()> {
        let known = [DType::F32, DType::F16, DType::BF16, DType::NONE];
        match slots.iter().map(|&slot| self.dtype(slot)).find(|d| !known.contains(d)) {
            Some(other) => Err(self.refuse(format!("{other}; supported: f32, f16, bf16"))),
            None => Ok(()),
        }
    }
}

/// Parses and checks a descriptor.
pub(crate) fn prepare(desc: &OpDesc<'_>) -> Result<Box<dyn Launch>> {
    let (_, bindings) = check_desc(desc)?;
    let weights = desc.weights.iter().map(|w| Packed::of(w, 0)).collect::<Result<_>>()?;
    let op = Op { desc, bindings, weights };
    match desc.kind {
        OpKind::COPY => elementwise::copy(&op),
        OpKind::ADD => elementwise::add(&op),
        OpKind::MUL => elementwise::mul(&op),
        OpKind::ACT_MUL => elementwise::act_mul(&op),
        OpKind::GATHER_ROWS => rows::gather(&op),
        OpKind::EMBEDDING => rows::embedding(&op),
        OpKind::RMS_NORM => norm::prepare(&op),
        OpKind::ROPE => rope::prepare(&op),
        OpKind::LINEAR => linear::prepare(&op),
        OpKind::KV_WRITE => kv::write(&op),
        OpKind::KV_COPY_BLOCKS => kv::copy_blocks(&op),
        OpKind::MLA_WRITE => kv::write_latent(&op),
        OpKind::PAGED_ATTENTION => attention::paged(&op),
        OpKind::MLA_ATTENTION => attention::latent(&op),
        OpKind::VARLEN_ATTENTION => attention::contiguous(&op),
        OpKind::MERGE_ATTENTION => attention::merge(&op),
        OpKind::KV_GATHER => attention::gather(&op),
        OpKind::BATCHED_LINEAR => batched::prepare(&op),
        OpKind::MOE_ROUTER => moe::router(&op),
        OpKind::MOE_EXPERTS => moe::experts(&op),
        OpKind::MOE_PERMUTE => moe::permute(&op),
        OpKind::GROUPED_LINEAR => grouped::prepare(&op),
        OpKind::MOE_UNPERMUTE => moe::unpermute(&op),
        OpKind::ARGMAX => logits::argmax(&op),
        OpKind::TOPK => logits::topk(&op),
        OpKind::LOGPROBS => logits::logprobs(&op),
        OpKind::LOGITS_PROCESS => process::prepare(&op),
        OpKind::SAMPLE => sample::prepare(&op),
        other => Err(Error::unsupported(format!("the Ascend backend has no op {other}"))),
    }
}

/// Fills words of device memory, the first one so many words from `base`.
pub(crate) fn fill(
    on: &driver::Stream,
    (base, first): (u64, u64),
    pattern: u32,
    words: u64,
) -> Result<()> {
    if words == 0 {
        return Ok(());
    }
    let at = (base, first.cast_signed());
    let all = Tensor::new((ACL_INT32, 4), &[words.cast_signed()], &[1], at);
    let value = Scalar::word(pattern);
    enqueue!(on, InplaceFillScalar(&all, &value))
}

/// A prepared kernel.
pub(crate) struct AscendKernel {
    launch: Box<dyn Launch>,
    shared: Arc<Shared>,
    signature: Signature,
}

impl AscendKernel {
    pub(crate) fn new(launch: Box<dyn Launch>, shared: Arc<Shared>, desc: &OpDesc<'_>) -> Self {
        Self { launch, shared, signature: Signature::of(desc) }
    }
}

impl Kernel for AscendKernel {
    fn flags(&self) -> u64 {
        let lengths = if self.launch.wants_lengths() { HOST_LENGTHS } else { 0 };
        let follows = if self.launch.follows_plans() { PLAN_UPDATE } else { 0 };
        if self.shared.has_graphs() { lengths | follows | CAPTURABLE } else { lengths }
    }

    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.launch.workspace_bytes(shapes)
    }

    fn launch(&self, stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        let shared = &self.shared;
        self.signature.launch(args, || {
            let _bound = shared.bind()?;
            let on = shared.stream(stream)?;
            shared.told(stream, self.launch.launch(&Args::new(shared, &on, args)))
        })
    }

    fn plan(&self, _: Stream, args: &LaunchArgs<'_>) -> Result<Plan> {
        let plan = self.launch.plan(args)?;
        Ok(plan.map_or(Plan::NONE, |plan| Plan(self.shared.plans.insert(plan))))
    }

    fn plan_free(&self, plan: Plan) {
        if let Err(error) = self.shared.plans.remove(plan.0) {
            tracing::debug!(%error, "a plan that is freed");
        }
    }

    fn plan_update(&self, _: Stream, plan: Plan, args: &LaunchArgs<'_>) -> Result<()> {
        let other = self.launch.plan(args)?;
        let other = other.ok_or_else(|| Error::unsupported("this op has no plan"))?;
        self.shared.plans.get(plan.0)?.update(&other)
    }
}
