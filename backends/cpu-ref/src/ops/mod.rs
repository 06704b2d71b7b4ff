//! One op a file, each a function of its attributes and arguments beside the formula.

mod act_mul;
mod add;
mod argmax;
mod copy;
mod embedding;
mod gather_rows;
mod kv_copy_blocks;
mod kv_write;
mod linear;
mod logits_process;
mod logprobs;
mod moe_experts;
mod moe_router;
mod mul;
mod paged_attention;
mod rms_norm;
mod rope;
mod sample;
mod topk;

use halyard_sdk::{
    DType, Error, OpDesc, OpKind, Result,
    abi::ops::{
        attrs::{self, OpAttrs},
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

/// Parses and checks a descriptor.
pub(crate) fn prepare(desc: &OpDesc<'_>) -> Result<Run> {
    let (_, bindings) = check_desc(desc)?;
    for w in desc.weights.iter() {
        weights::check(w)?;
    }
    let b = &bindings;
    match desc.kind {
        OpKind::COPY => Op { check: copy::check, run: copy::run }.prepare(desc, b),
        OpKind::ADD => any(add::run).prepare(desc, b),
        OpKind::MUL => any(mul::run).prepare(desc, b),
        OpKind::GATHER_ROWS => any(gather_rows::run).prepare(desc, b),
        OpKind::EMBEDDING => any(embedding::run).prepare(desc, b),
        OpKind::RMS_NORM => any(rms_norm::run).prepare(desc, b),
        OpKind::ROPE => Op { check: rope::check, run: rope::run }.prepare(desc, b),
        OpKind::ACT_MUL => any(act_mul::run).prepare(desc, b),
        OpKind::LINEAR => Op { check: linear::check, run: linear::run }.prepare(desc, b),
        OpKind::KV_WRITE => Op { check: kv_write::check, run: kv_write::run }.prepare(desc, b),
        OpKind::PAGED_ATTENTION => {
            Op { check: paged_attention::check, run: paged_attention::run }.prepare(desc, b)
        }
        OpKind::KV_COPY_BLOCKS => {
            Op { check: kv_copy_blocks::check, run: kv_copy_blocks::run }.prepare(desc, b)
        }
        OpKind::MOE_ROUTER => {
            Op { check: moe_router::check, run: moe_router::run }.prepare(desc, b)
        }
        OpKind::MOE_EXPERTS => {
            Op { check: moe_experts::check, run: moe_experts::run }.prepare(desc, b)
        }
        OpKind::ARGMAX => any::<attrs::Argmax>(argmax::run).prepare(desc, b),
        OpKind::TOPK => Op { check: topk::check, run: topk::run }.prepare(desc, b),
        OpKind::LOGPROBS => any(logprobs::run).prepare(desc, b),
        OpKind::LOGITS_PROCESS => {
            Op { check: logits_process::check, run: logits_process::run }.prepare(desc, b)
        }
        OpKind::SAMPLE => any(sample::run).prepare(desc, b),
        other => Err(Error::unsupported(format!("op {other}"))),
    }
}

/// Refuses a cache dtype that this backend cannot store.
pub(crate) fn check_cache(dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(());
    }
    Err(Error::unsupported(format!("a cache of {dtype}; supported: f32, f16, bf16")))
}

/// Checks the two caches of a KV op: float dtypes, both there, and no scales, which belong to 8-bit caches.
fn check_caches(desc: &OpDesc<'_>, caches: [usize; 2], scales: &[usize]) -> Result<()> {
    let present = |slot: usize| desc.tensors.get(slot).filter(|t| !t.is_none());
    let [k, v] = caches.map(present);
    let (Some(k), Some(_)) = (k, v) else {
        return Err(Error::unsupported("values fused into the key cache"));
    };
    check_cache(k.dtype)?;
    if scales.iter().any(|&slot| present(slot).is_some()) {
        return Err(Error::unsupported(format!("scales with a cache of {}", k.dtype)));
    }
    Ok(())
}

/// A row number that a launch's values give.
fn checked_row(what: &str, row: i64, rows: usize) -> Result<usize> {
    usize::try_from(row)
        .ok()
        .filter(|&r| r < rows)
        .ok_or_else(|| Error::invalid(format!("{what} is {row}, there are {rows}")))
}
