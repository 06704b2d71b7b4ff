//! TOPK and SAMPLE: `kernels/select.cu`.

use halyard_sdk::{
    Error, Result,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op, Prepared,
    args::{Args, address, small},
    logits::THREADS,
};
use crate::driver::{Function, Grid};

/// Logits of which the kernels can sum the masses in 64 bits.
const MOST_LOGITS: i64 = 1 << 23;

fn check_vocabulary(logits: i64) -> Result<()> {
    if logits > MOST_LOGITS {
        return Err(Error::unsupported(format!(
            "rows of {logits} logits; at most {MOST_LOGITS} are supported"
        )));
    }
    Ok(())
}

/// -1 is not known yet.
fn check_top(top: i64, logits: i64) -> Result<()> {
    if top >= 0 && logits >= 0 && top > logits {
        return Err(Error::invalid(format!("topk: the {top} largest of {logits}")));
    }
    check_vocabulary(logits)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TopKParams {
    logits: u64,
    values: u64,
    ids: u64,
    logits_stride: i64,
    values_stride: i64,
    ids_stride: i64,
    vocabulary: u32,
    top: u32,
}

struct TopK(Function<TopKParams>);

pub(super) fn topk(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::Topk>()?;
    check_top(op.dim(Sym::Top), op.dim(Sym::V))?;
    let kernel = op.kernel("select", &format!("topk_{}", op.float(0)?.suffix()))?;
    Ok(Prepared::native(TopK(kernel)))
}

impl Launch for TopK {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, values, ids) = (args.view(0)?, args.view(1)?, args.view(2)?);
        check_top(values.dims[1], logits.dims[1])?;
        let params = TopKParams {
            logits: address(logits),
            values: address(values),
            ids: address(ids),
            logits_stride: logits.strides[0],
            values_stride: values.strides[0],
            ids_stride: ids.strides[0],
            vocabulary: small("logits", logits.dims[1])?,
            top: small("ids", values.dims[1])?,
        };
        args.enqueue(&self.0, Grid::line(small("rows", logits.dims[0])?, THREADS), &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SampleParams {
    logits: u64,
    temperature: u64,
    top_k: u64,
    top_p: u64,
    min_p: u64,
    seed: u64,
    offset: u64,
    ids: u64,
    logprob: u64,
    stride: i64,
    vocabulary: u32,
}

struct Sample(Function<SampleParams>);

pub(super) fn sample(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::Sample>()?;
    check_vocabulary(op.dim(Sym::V))?;
    let kernel = op.kernel("select", &format!("sample_{}", op.float(0)?.suffix()))?;
    Ok(Prepared::native(Sample(kernel)))
}

impl Launch for Sample {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let logits = args.view(0)?;
        check_vocabulary(logits.dims[1])?;
        let of = |slot| args.view(slot).map(address);
        let params = SampleParams {
            logits: address(logits),
            temperature: of(1)?,
            top_k: of(2)?,
            top_p: of(3)?,
            min_p: of(4)?,
            seed: of(5)?,
            offset: of(6)?,
            ids: of(7)?,
            logprob: args.optional(8).map_or(0, address),
            stride: logits.strides[0],
            vocabulary: small("logits", logits.dims[1])?,
        };
        args.enqueue(&self.0, Grid::line(small("rows", logits.dims[0])?, THREADS), &params)
    }
}
