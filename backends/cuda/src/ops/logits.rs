//! ARGMAX, LOGPROBS and LOGITS_PROCESS: `kernels/logits.cu`.

use halyard_sdk::{
    Error, Result, TensorView,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op, Prepared,
    args::{Args, address, small},
};
use crate::driver::{Function, Grid};

/// Threads that take a row.
pub(super) const THREADS: u32 = 1024;

#[repr(C)]
#[derive(Clone, Copy)]
struct ArgmaxParams {
    logits: u64,
    ids: u64,
    stride: i64,
    vocabulary: u32,
}

struct Argmax(Function<ArgmaxParams>);

pub(super) fn argmax(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::Argmax>()?;
    let kernel = op.kernel("logits", &format!("argmax_{}", op.float(0)?.suffix()))?;
    Ok(Prepared::native(Argmax(kernel)))
}

impl Launch for Argmax {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, ids) = (args.view(0)?, args.view(1)?);
        let params = ArgmaxParams {
            logits: address(logits),
            ids: address(ids),
            stride: logits.strides[0],
            vocabulary: small("logits", logits.dims[1])?,
        };
        args.enqueue(&self.0, Grid::line(small("rows", logits.dims[0])?, THREADS), &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LogprobsParams {
    logits: u64,
    ids: u64,
    out: u64,
    logits_stride: i64,
    ids_stride: i64,
    out_stride: i64,
    vocabulary: u32,
    wanted: u32,
}

struct Logprobs(Function<LogprobsParams>);

pub(super) fn logprobs(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::Logprobs>()?;
    let kernel = op.kernel("logits", &format!("logprobs_{}", op.float(0)?.suffix()))?;
    Ok(Prepared::native(Logprobs(kernel)))
}

impl Launch for Logprobs {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, ids, out) = (args.view(0)?, args.view(1)?, args.view(2)?);
        let params = LogprobsParams {
            logits: address(logits),
            ids: address(ids),
            out: address(out),
            logits_stride: logits.strides[0],
            ids_stride: ids.strides[0],
            out_stride: out.strides[0],
            vocabulary: small("logits", logits.dims[1])?,
            wanted: small("ids", ids.dims[1])?,
        };
        args.enqueue(&self.0, Grid::line(small("rows", logits.dims[0])?, THREADS), &params)
    }
}

/// Slots of LOGITS_PROCESS.
const MASK: usize = 1;
const IDS: usize = 2;
const BIAS_IDS: usize = 6;

/// Threads a block, and ids that it takes.
const PART_THREADS: u32 = 256;
const PART: u32 = 4096;

/// A list a row, address 0 if it is absent.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct List {
    data: u64,
    stride: i64,
}

impl List {
    fn of(view: Option<&TensorView>) -> Self {
        view.map_or(Self::default(), |v| Self { data: address(v), stride: v.strides[0] })
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProcessParams {
    logits: List,
    mask: List,
    ids: List,
    count_all: List,
    count_out: List,
    params: List,
    bias_ids: List,
    bias: List,
    vocabulary: u32,
    listed: u32,
    biased: u32,
}

struct Process(Function<ProcessParams>);

pub(super) fn process(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::LogitsProcess>()?;
    let apart = (IDS..BIAS_IDS).any(|slot| op.present(slot) != op.present(IDS));
    if apart || op.present(BIAS_IDS) != op.present(BIAS_IDS + 1) {
        return Err(Error::invalid(
            "logits_process: ids, count_all, count_out and params come together, as do bias_ids and bias",
        ));
    }
    check_words(op.dim(Sym::Words), op.dim(Sym::V))?;
    Ok(Prepared::native(Process(op.kernel("logits", "logits_process")?)))
}

/// Whether the mask's words have a bit for each id; -1 is not known yet.
fn check_words(words: i64, ids: i64) -> Result<()> {
    if words >= 0 && ids >= 0 && words < (ids + 31) / 32 {
        return Err(Error::invalid(format!("{words} mask words for {ids} ids")));
    }
    Ok(())
}

impl Launch for Process {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let logits = args.view(0)?;
        if let Some(mask) = args.optional(MASK) {
            check_words(mask.dims[1], logits.dims[1])?;
        }
        let list = |slot| List::of(args.optional(slot));
        let length = |slot| args.optional(slot).map_or(Ok(0), |v| small("ids", v.dims[1]));
        let vocabulary = small("logits", logits.dims[1])?;
        let params = ProcessParams {
            logits: list(0),
            mask: list(MASK),
            ids: list(IDS),
            count_all: list(3),
            count_out: list(4),
            params: list(5),
            bias_ids: list(BIAS_IDS),
            bias: list(7),
            vocabulary,
            listed: length(IDS)?,
            biased: length(BIAS_IDS)?,
        };
        let parts = vocabulary.div_ceil(PART);
        if parts > u32::from(u16::MAX) {
            return Err(Error::unsupported(format!("rows of {vocabulary} logits")));
        }
        let blocks = [small("rows", logits.dims[0])?, parts, 1];
        args.enqueue(&self.0, Grid { blocks, threads: PART_THREADS, shared: 0 }, &params)
    }
}
