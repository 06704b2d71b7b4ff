//! The ops, each a function of the launch's tensors.

mod attention;
mod linear;
mod logits;
mod rows;

use std::sync::Arc;

use halyard_sdk::{
    Error, HostTensor, Kernel, LaunchArgs, OpDesc, OpKind, Result, Stream,
    abi::{
        ops::{
            attrs::{
                ActMul, Add, Argmax, Copy, Embedding, GatherRows, KvCopyBlocks, KvWrite, Linear,
                LogitsProcess, Logprobs, Mul, OpAttrs, PagedAttention, RmsNorm, Rope, Sample, Topk,
            },
            check::check_desc,
        },
        traits::{BATCH_INVARIANT, DETERMINISTIC},
    },
};

use crate::weights::Weights;

/// A launch's tensors by slot, and the rest of its arguments.
pub(crate) struct Call<'a> {
    tensors: Vec<Option<HostTensor>>,
    pub(crate) args: &'a LaunchArgs<'a>,
    pub(crate) weights: &'a Weights,
}

impl Call<'_> {
    /// A slot that the op must have; the host has checked that it is there.
    pub(crate) fn tensor(&self, slot: usize) -> HostTensor {
        self.optional(slot).expect("the host checks that required slots are there")
    }

    /// An optional slot.
    pub(crate) fn optional(&self, slot: usize) -> Option<HostTensor> {
        self.tensors.get(slot).copied().flatten()
    }
}

type Body = Box<dyn Fn(&Call<'_>) -> Result<()> + Send + Sync>;

struct ToyKernel {
    body: Body,
    weights: Arc<Weights>,
}

impl Kernel for ToyKernel {
    fn flags(&self) -> u64 {
        DETERMINISTIC | BATCH_INVARIANT
    }

    fn launch(&self, _stream: Stream, args: &LaunchArgs<'_>) -> Result<()> {
        let open = |view| {
            // SAFETY: the host promises that a launch's views span live memory of this device.
            unsafe { HostTensor::new(view) }
        };
        let tensors = args
            .tensors
            .iter()
            .map(|view| if view.is_none() { Ok(None) } else { open(view).map(Some) })
            .collect::<Result<_>>()?;
        (self.body)(&Call { tensors, args, weights: &self.weights })
    }
}

/// Prepares an op, or says why it is not supported.
pub(crate) fn prepare(op: &OpDesc<'_>, weights: &Arc<Weights>) -> Result<Box<dyn Kernel>> {
    check_desc(op)?;
    for w in op.weights.iter() {
        crate::weights::plan(w)?;
    }
    // `from_desc` refuses attributes that this SDK does not know: never ignore what has meaning.
    let body: Body = match op.kind {
        OpKind::COPY => rows::copy(Copy::from_desc(op)?),
        OpKind::ADD => rows::add(Add::from_desc(op)?),
        OpKind::MUL => rows::mul(Mul::from_desc(op)?),
        OpKind::GATHER_ROWS => rows::gather(GatherRows::from_desc(op)?),
        OpKind::RMS_NORM => rows::rms_norm(RmsNorm::from_desc(op)?),
        OpKind::ROPE => rows::rope(Rope::from_desc(op)?),
        OpKind::ACT_MUL => rows::act_mul(ActMul::from_desc(op)?),
        OpKind::EMBEDDING => linear::embedding(Embedding::from_desc(op)?),
        OpKind::LINEAR => linear::linear(Linear::from_desc(op)?)?,
        OpKind::KV_WRITE => attention::kv_write(KvWrite::from_desc(op)?, op)?,
        OpKind::PAGED_ATTENTION => attention::paged(PagedAttention::from_desc(op)?, op)?,
        OpKind::KV_COPY_BLOCKS => attention::copy_blocks(KvCopyBlocks::from_desc(op)?, op)?,
        OpKind::ARGMAX => logits::argmax(Argmax::from_desc(op)?),
        OpKind::TOPK => logits::topk(Topk::from_desc(op)?),
        OpKind::LOGPROBS => logits::logprobs(Logprobs::from_desc(op)?),
        OpKind::LOGITS_PROCESS => logits::process(LogitsProcess::from_desc(op)?),
        OpKind::SAMPLE => logits::sample(Sample::from_desc(op)?),
        other => return Err(Error::unsupported(format!("op {other}"))),
    };
    if op.tensors.iter().any(|t| !t.is_none() && t.dtype.bits().is_none_or(|b| b < 16)) {
        return Err(Error::unsupported(format!("{} with 8-bit tensors", op.kind)));
    }
    Ok(Box::new(ToyKernel { body, weights: Arc::clone(weights) }))
}

/// An index from an index tensor: `None` for padding (negative), an error beyond `limit`.
pub(crate) fn index(value: i64, limit: usize, what: &str) -> Result<Option<usize>> {
    match usize::try_from(value) {
        Err(_) => Ok(None),
        Ok(i) if i < limit => Ok(Some(i)),
        Ok(_) => Err(Error::invalid(format!("{what} {value}, there are {limit}"))),
    }
}
