//! COPY, ADD, MUL and ACT_MUL: `kernels/{elementwise,convert}.cu`.

use halyard_sdk::{
    DType, Error, Result,
    abi::ops::{Act, attrs},
};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, Rows, check_rank},
};
use crate::driver::{Function, Grid};

/// Threads a block, and columns that it takes.
const THREADS: u32 = 256;
const COLUMNS: u32 = 1024;

/// A block for each row and 1024 columns: `kernels/columns.h`.
pub(super) fn grid(rows: u32, cols: u32) -> Result<Grid> {
    Grid::rows(rows, (cols, COLUMNS), THREADS)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CopyParams {
    x: Rows,
    y: Rows,
    x_step: i64,
    y_step: i64,
    cols: u32,
}

struct Copy(Function<CopyParams>);

pub(super) fn copy(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::Copy>()?;
    let (x, y) = (op.dtype(0), op.dtype(1));
    check_rank(op.desc.tensors[0].rank)?;
    let name = match (Float::of(x), Float::of(y), x.bits()) {
        _ if x == y && x.bits().is_some_and(|b| b >= 8) => format!("b{}", x.bits().unwrap_or(0)),
        (Ok(x), Ok(y), _) => format!("{}_{}", x.suffix(), y.suffix()),
        _ => return convert(op),
    };
    Ok(Prepared::native(Copy(op.kernel("elementwise", &format!("copy_{name}"))?)))
}

impl CopyParams {
    fn of(args: &Args<'_>) -> Result<(Self, Grid)> {
        let (x, y) = (args.rows(0)?, args.rows(1)?);
        let params = Self { x: x.rows, y: y.rows, x_step: x.step, y_step: y.step, cols: y.cols };
        Ok((params, grid(y.count, y.cols)?))
    }
}

impl Launch for Copy {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (params, grid) = CopyParams::of(args)?;
        args.enqueue(&self.0, grid, &params)
    }
}

/// Types that `kernels/convert.cu` knows, by their number in `enum Type`.
const CONVERTED: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::F8E5M2,
    DType::I8,
    DType::U8,
    DType::I32,
    DType::U32,
    DType::I64,
    DType::U64,
];

/// `struct Convert` of `kernels/convert.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ConvertParams {
    x: Rows,
    y: Rows,
    x_step: i64,
    y_step: i64,
    cols: u32,
    from: u32,
    to: u32,
}

struct Convert {
    kernel: Function<ConvertParams>,
    from: u32,
    to: u32,
}

fn convert(op: &Op<'_>) -> Result<Prepared> {
    let number = |slot: usize| {
        let dtype = op.dtype(slot);
        let at = CONVERTED.iter().position(|&known| known == dtype);
        at.map(|at| at as u32).ok_or_else(|| {
            let known = CONVERTED.map(|d| d.to_string()).join(", ");
            Error::unsupported(format!("copy: {dtype} to another type; supported: {known}"))
        })
    };
    let (from, to) = (number(0)?, number(1)?);
    Ok(Prepared::native(Convert { kernel: op.kernel("convert", "convert")?, from, to }))
}

impl Launch for Convert {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (CopyParams { x, y, x_step, y_step, cols }, grid) = CopyParams::of(args)?;
        let params = ConvertParams { x, y, x_step, y_step, cols, from: self.from, to: self.to };
        args.enqueue(&self.kernel, grid, &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct BinaryParams {
    a: Rows,
    b: Rows,
    y: Rows,
    cols: u32,
    alpha: f32,
}

struct Binary {
    kernel: Function<BinaryParams>,
    alpha: f32,
}

pub(super) fn add(op: &Op<'_>) -> Result<Prepared> {
    let attrs::Add { alpha } = op.attrs()?;
    binary(op, "add", alpha as f32)
}

pub(super) fn mul(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::Mul>()?;
    binary(op, "mul", 1.0)
}

fn binary(op: &Op<'_>, name: &str, alpha: f32) -> Result<Prepared> {
    check_rank(op.desc.tensors[0].rank)?;
    let kernel = op.kernel("elementwise", &format!("{name}_{}", op.float(0)?.suffix()))?;
    Ok(Prepared::native(Binary { kernel, alpha }))
}

impl Launch for Binary {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (a, b, y) = (args.rows(0)?, args.rows_broadcast(1, 2)?, args.rows(2)?);
        let params =
            BinaryParams { a: a.rows, b: b.rows, y: y.rows, cols: y.cols, alpha: self.alpha };
        args.enqueue(&self.kernel, grid(y.count, y.cols)?, &params)
    }
}

/// `struct Gate` of `kernels/gate.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Gate {
    activation: u32,
    limit: f32,
}

impl Gate {
    pub(super) fn new(act: Act, limit: f64) -> Self {
        Self { activation: act as u32, limit: limit as f32 }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ActMulParams {
    gu: Rows,
    y: Rows,
    cols: u32,
    gate: Gate,
}

/// `act(g) u` of rows that hold gates, then ups.
pub(super) struct Gating {
    kernel: Function<ActMulParams>,
    gate: Gate,
}

impl Gating {
    pub(super) fn new(op: &Op<'_>, float: Float, act: Act, limit: f64) -> Result<Self> {
        let kernel = op.kernel("elementwise", &format!("act_mul_{}", float.suffix()))?;
        Ok(Self { kernel, gate: Gate::new(act, limit) })
    }

    /// Enqueues it: `cols` are those of `y`.
    pub(super) fn run(
        &self,
        args: &Args<'_>,
        gu: Rows,
        y: Rows,
        rows: u32,
        cols: u32,
    ) -> Result<()> {
        args.enqueue(
            &self.kernel,
            grid(rows, cols)?,
            &ActMulParams { gu, y, cols, gate: self.gate },
        )
    }
}

struct ActMul(Gating);

pub(super) fn act_mul(op: &Op<'_>) -> Result<Prepared> {
    let attrs::ActMul { act, limit } = op.attrs()?;
    Ok(Prepared::native(ActMul(Gating::new(op, op.float(0)?, act, limit)?)))
}

impl Launch for ActMul {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (gu, y) = (args.rows(0)?, args.rows(1)?);
        self.0.run(args, gu.rows, y.rows, y.count, y.cols)
    }
}
