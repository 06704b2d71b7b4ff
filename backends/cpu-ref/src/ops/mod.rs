//! One op a file, each a function of its attributes and arguments beside the formula.

mod act_mul;
mod add;
mod argmax;
mod batched_linear;
mod copy;
mod embedding;
mod gather_rows;
mod grouped_linear;
mod kv_copy_blocks;
mod kv_gather;
mod kv_write;
mod linear;
mod linear_act_mul;
mod logits_process;
mod logprobs;
mod merge_attention;
mod mla_attention;
mod mla_write;
mod moe_experts;
mod moe_permute;
mod moe_router;
mod moe_unpermute;
mod mul;
mod paged_attention;
mod qkv_post;
mod quant_act;
mod rms_norm;
mod rms_norm_quant;
mod rope;
mod sample;
mod topk;
mod varlen_attention;

use halyard_sdk::{
    Error, OpDesc, OpKind, Result,
    abi::ops::{
        attrs::OpAttrs,
        check::{Bindings, check_desc},
    },
};

use crate::{glue::Args, weights};

/// A prepared op.
pub(crate) type Run = Box<dyn Fn(&Args) -> Result<()> + Send + Sync>;

/// What an op is: a check of what it cannot do, and the computation.
struct Op<A> {
    check: fn(&A, &OpDesc<'_>, &Bindings) -> Result<()>,
    run: fn(&A, &Args) -> Result<()>,
}

impl<A: OpAttrs + Send + Sync + 'static> Op<A> {
    fn prepare(self, desc: &OpDesc<'_>, bindings: &Bindings) -> Result<Run> {
        let attrs = A::from_desc(desc)?;
        (self.check)(&attrs, desc, bindings)?;
        let run = self.run;
        Ok(Box::new(move |args| run(&attrs, args)))
    }
}

/// An op that supports everything the catalogue allows.
fn any<A>(run: fn(&A, &Args) -> Result<()>) -> Op<A> {
    Op { check: |_, _, _| Ok(()), run }
}

/// An op with conditions beyond the catalogue's.
fn checked<A>(
    check: fn(&A, &OpDesc<'_>, &Bindings) -> Result<()>,
    run: fn(&A, &Args) -> Result<()>,
) -> Op<A> {
    Op { check, run }
}

/// Parses and checks a descriptor.
pub(crate) fn prepare(desc: &OpDesc<'_>) -> Result<Run> {
    let (_, bindings) = check_desc(desc)?;
    for w in desc.weights.iter() {
        weights::check(w)?;
    }
    let b = &bindings;
    match desc.kind {
        OpKind::COPY => any(copy::run).prepare(desc, b),
        OpKind::ADD => any(add::run).prepare(desc, b),
        OpKind::MUL => any(mul::run).prepare(desc, b),
        OpKind::GATHER_ROWS => any(gather_rows::run).prepare(desc, b),
        OpKind::EMBEDDING => any(embedding::run).prepare(desc, b),
        OpKind::RMS_NORM => any(rms_norm::run).prepare(desc, b),
        OpKind::ROPE => any(rope::run).prepare(desc, b),
        OpKind::ACT_MUL => any(act_mul::run).prepare(desc, b),
        OpKind::LINEAR => checked(linear::check, linear::run).prepare(desc, b),
        OpKind::BATCHED_LINEAR => any(batched_linear::run).prepare(desc, b),
        OpKind::QUANT_ACT => checked(quant_act::check, quant_act::run).prepare(desc, b),
        OpKind::KV_WRITE => checked(kv_write::check, kv_write::run).prepare(desc, b),
        OpKind::PAGED_ATTENTION => {
            checked(paged_attention::check, paged_attention::run).prepare(desc, b)
        }
        OpKind::MLA_WRITE => checked(mla_write::check, mla_write::run).prepare(desc, b),
        OpKind::MLA_ATTENTION => checked(mla_attention::check, mla_attention::run).prepare(desc, b),
        OpKind::VARLEN_ATTENTION => {
            checked(varlen_attention::check, varlen_attention::run).prepare(desc, b)
        }
        OpKind::MERGE_ATTENTION => any(merge_attention::run).prepare(desc, b),
        OpKind::KV_GATHER => checked(kv_gather::check, kv_gather::run).prepare(desc, b),
        OpKind::KV_COPY_BLOCKS => {
            checked(kv_copy_blocks::check, kv_copy_blocks::run).prepare(desc, b)
        }
        OpKind::MOE_ROUTER => any(moe_router::run).prepare(desc, b),
        OpKind::MOE_EXPERTS => checked(moe_experts::check, moe_experts::run).prepare(desc, b),
        OpKind::MOE_PERMUTE => any(moe_permute::run).prepare(desc, b),
        OpKind::GROUPED_LINEAR => {
            checked(grouped_linear::check, grouped_linear::run).prepare(desc, b)
        }
        OpKind::MOE_UNPERMUTE => any(moe_unpermute::run).prepare(desc, b),
        OpKind::ARGMAX => any(argmax::run).prepare(desc, b),
        OpKind::TOPK => checked(topk::check, topk::run).prepare(desc, b),
        OpKind::LOGPROBS => any(logprobs::run).prepare(desc, b),
        OpKind::LOGITS_PROCESS => {
            checked(logits_process::check, logits_process::run).prepare(desc, b)
        }
        OpKind::SAMPLE => any(sample::run).prepare(desc, b),
        OpKind::QKV_POST => checked(qkv_post::check, qkv_post::run).prepare(desc, b),
        OpKind::LINEAR_ACT_MUL => {
            checked(linear_act_mul::check, linear_act_mul::run).prepare(desc, b)
        }
        OpKind::RMS_NORM_QUANT => {
            checked(rms_norm_quant::check, rms_norm_quant::run).prepare(desc, b)
        }
        other => Err(Error::unsupported(format!("op {other}"))),
    }
}
