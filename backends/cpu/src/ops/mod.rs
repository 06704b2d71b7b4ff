//! One op a file: what of the catalogue it supports, how much scratch memory it wants, and its launch.

mod args;
mod attention;
mod batched;
mod copy;
mod elementwise;
mod gather;
mod grouped;
mod kv;
mod linear;
mod logits;
mod moe;
mod norm;
mod product;
mod qkv_post;
mod quant;
mod rope;
mod router;
mod routing;
mod sample;

use std::sync::Arc;

use halyard_sdk::{
    DType, Error, Kernel, LaunchArgs, OpDesc, OpKind, Result, Signature, Stream, Support,
    TensorSpec,
    abi::{
        ops::{
            attrs::OpAttrs,
            check::{Bindings, check_desc},
        },
        traits::{BATCH_INVARIANT, DETERMINISTIC},
    },
};

use crate::device::Context;
use crate::elem::Elem;
use crate::gemm::Layout;
use crate::pool::Pool;
use crate::weights;
use args::Args;
pub(crate) use kv::shape_of;

/// An op, ready to launch.
pub(crate) trait Launch: Send + Sync + 'static {
    /// Upper bound of scratch bytes.
    fn workspace_bytes(&self, _shapes: &[TensorSpec], _context: &Context) -> usize {
        0
    }

    /// Does the work.
    fn launch(&self, args: &Args<'_>) -> Result<()>;
}

/// What [`prepare`] gives.
pub(crate) struct Prepared {
    pub(crate) support: Support,
    launch: Box<dyn Launch>,
}

impl Prepared {
    fn tuned(launch: impl Launch) -> Self {
        Self { support: Support::Tuned, launch: Box::new(launch) }
    }

    fn native(launch: impl Launch) -> Self {
        Self { support: Support::Native, launch: Box::new(launch) }
    }

    fn slow(why: &str, launch: impl Launch) -> Self {
        Self { support: Support::Slow(why.into()), launch: Box::new(launch) }
    }
}

/// A descriptor with everything that is known of it.
struct Op<'a> {
    desc: &'a OpDesc<'a>,
    bindings: Bindings,
    /// Forms of the weights.
    layouts: Vec<Layout>,
    context: &'a Context,
}

impl Op<'_> {
    fn attrs<A: OpAttrs>(&self) -> Result<A> {
        A::from_desc(self.desc)
    }

    fn present(&self, slot: usize) -> bool {
        self.desc.tensors.get(slot).is_some_and(|t| !t.is_none())
    }

    /// A symbol's value: -1 if it is known only at launch or not used.
    fn dim(&self, sym: halyard_sdk::abi::ops::Sym) -> i64 {
        self.bindings.get(sym).unwrap_or(-1)
    }

    /// A slot's element type.
    fn elem(&self, slot: usize) -> Result<Elem> {
        Elem::of(self.desc.tensors.get(slot).map_or(DType::NONE, |t| t.dtype))
            .map_err(|e| Error::unsupported(format!("{}: {}", self.desc.kind, e.message)))
    }
}

/// Parses and checks a descriptor.
pub(crate) fn prepare(desc: &OpDesc<'_>, context: &Context) -> Result<Prepared> {
    let (_, bindings) = check_desc(desc)?;
    let layouts = desc.weights.iter().map(weights::layout).collect::<Result<_>>()?;
    let op = Op { desc, bindings, layouts, context };
    match desc.kind {
        OpKind::COPY => copy::prepare(&op),
        OpKind::ADD => elementwise::add(&op),
        OpKind::MUL => elementwise::mul(&op),
        OpKind::GATHER_ROWS => gather::gather_rows(&op),
        OpKind::EMBEDDING => gather::embedding(&op),
        OpKind::RMS_NORM => norm::prepare(&op),
        OpKind::ROPE => rope::prepare(&op),
        OpKind::ACT_MUL => elementwise::act_mul(&op),
        OpKind::LINEAR => linear::prepare(&op),
        OpKind::BATCHED_LINEAR => batched::prepare(&op),
        OpKind::QUANT_ACT => quant::quant_act(&op),
        OpKind::KV_WRITE => kv::write(&op),
        OpKind::PAGED_ATTENTION => attention::paged(&op),
        OpKind::MLA_WRITE => kv::mla_write(&op),
        OpKind::MLA_ATTENTION => attention::mla(&op),
        OpKind::VARLEN_ATTENTION => attention::varlen(&op),
        OpKind::MERGE_ATTENTION => attention::merge(&op),
        OpKind::KV_GATHER => kv::gather(&op),
        OpKind::KV_COPY_BLOCKS => kv::copy_blocks(&op),
        OpKind::MOE_ROUTER => router::prepare(&op),
        OpKind::MOE_EXPERTS => moe::prepare(&op),
        OpKind::MOE_PERMUTE => grouped::permute(&op),
        OpKind::GROUPED_LINEAR => grouped::linear(&op),
        OpKind::MOE_UNPERMUTE => grouped::unpermute(&op),
        OpKind::ARGMAX => logits::argmax(&op),
        OpKind::TOPK => logits::topk(&op),
        OpKind::LOGPROBS => logits::logprobs(&op),
        OpKind::LOGITS_PROCESS => logits::process(&op),
        OpKind::SAMPLE => sample::prepare(&op),
        OpKind::LINEAR_ACT_MUL => linear::act_mul(&op),
        OpKind::RMS_NORM_QUANT => quant::rms_norm_quant(&op),
        OpKind::QKV_POST => qkv_post::prepare(&op),
        other => Err(Error::unsupported(format!("the CPU backend has no op {other}"))),
    }
}

/// A prepared kernel.
pub(crate) struct CpuKernel {
    launch: Box<dyn Launch>,
    context: Arc<Context>,
    signature: Signature,
}

impl CpuKernel {
    pub(crate) fn new(prepared: Prepared, context: Arc<Context>, desc: &OpDesc<'_>) -> Self {
        Self { launch: prepared.launch, context, signature: Signature::of(desc) }
    }
}

impl Kernel for CpuKernel {
    fn flags(&self) -> u64 {
        DETERMINISTIC | BATCH_INVARIANT
    }

    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.launch.workspace_bytes(shapes, &self.context) as u64
    }

    fn launch(&self, _stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        let context = &self.context;
        self.signature.launch(args, || self.launch.launch(&Args { context, args }))
    }
}

/// A dim of a shape as a size; 0 if it is absent or negative.
fn spec_dim(shapes: &[TensorSpec], slot: usize, axis: usize) -> usize {
    let dim = shapes.get(slot).and_then(|s| s.dims().get(axis));
    dim.and_then(|&d| usize::try_from(d).ok()).unwrap_or(0)
}

/// Elements that one task of a simple op works on: enough to be worth waking a thread.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Calls `f` with ranges that cover `0..rows`, on as many threads as the work is worth.
fn for_rows(pool: &Pool, rows: usize, cols: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
    let per_task = (TASK_ELEMENTS / cols.max(1)).max(1);
    pool.run(rows.div_ceil(per_task), &|task| {
        let start = task * per_task;
        f(start..(start + per_task).min(rows));
    });
}

/// Refuses two sizes that differ.
fn same(what: &str, a: usize, b: usize) -> Result<()> {
    if a == b { Ok(()) } else { Err(Error::invalid(format!("{what}: {a} and {b} differ"))) }
}

/// A row number that a launch's values give.
fn checked_row(what: &str, row: i64, rows: usize) -> Result<usize> {
    usize::try_from(row)
        .ok()
        .filter(|&r| r < rows)
        .ok_or_else(|| Error::invalid(format!("{what} is {row}, there are {rows}")))
}
