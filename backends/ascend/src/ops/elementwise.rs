//! COPY, ADD, MUL, ACT_MUL.

use halyard_sdk::{
    DType, Result, TensorSpec,
    abi::ops::{
        Sym,
        attrs::{self, Act},
    },
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
};
use crate::driver::Scalar;

struct Copy;

pub(super) fn copy(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Copy {} = op.attrs()?;
    let float = |d| [DType::F32, DType::F16, DType::BF16].contains(&d);
    let (from, to) = (op.dtype(0), op.dtype(1));
    let whole = [DType::I8, DType::U8, DType::I32, DType::I64].contains(&from) && from == to;
    if !(whole || float(from) && float(to)) {
        let what = "supported: between f32, f16 and bf16, and i8, u8, i32, i64 to the same type";
        return Err(op.refuse(format!("{from} to {to}; {what}")));
    }
    Ok(Box::new(Copy))
}

impl Launch for Copy {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y) = (args.place(0)?, args.place(1)?);
        if y.is_empty() { Ok(()) } else { args.copy(&y, &x) }
    }
}

struct Add {
    alpha: f32,
}

pub(super) fn add(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Add { alpha } = op.attrs()?;
    op.floats(&[0, 1, 2])?;
    Ok(Box::new(Add { alpha: alpha as f32 }))
}

impl Launch for Add {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (a, b, y) = (args.place(0)?, args.place(1)?, args.place(2)?);
        if y.is_empty() {
            return Ok(());
        }
        let (a, b, y) = (args.tensor(&a), args.tensor(&b), args.tensor(&y));
        let alpha = Scalar::float(self.alpha);
        enqueue!(args.on, Add(&a, &b, &alpha, &y))
    }
}

struct Mul;

pub(super) fn mul(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Mul {} = op.attrs()?;
    op.floats(&[0, 1, 2])?;
    Ok(Box::new(Mul))
}

impl Launch for Mul {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (a, b, y) = (args.place(0)?, args.place(1)?, args.place(2)?);
        if y.is_empty() {
            return Ok(());
        }
        let (a, b, y) = (args.tensor(&a), args.tensor(&b), args.tensor(&y));
        enqueue!(args.on, Mul(&a, &b, &y))
    }
}

/// `approximate` of `GeluV2`: with the hyperbolic tangent.
const TANH: i64 = 1;
/// `approximate` of `GeluV2`: with the error function.
const ERF: i64 = 0;

pub(super) struct ActMul {
    act: Act,
    /// 0: none.
    limit: f32,
    width: i64,
}

/// Puts what is above a number to it.
fn cap(args: &Args<'_>, x: &Place, most: f32) -> Result<()> {
    let (most, mask) = (args.number(most)?, args.scratch(Kind::BOOL, &x.dims)?);
    args.less(&most, x, &mask)?;
    args.choose(&mask, [&most, x], x)
}

impl ActMul {
    pub(super) fn new(act: Act, limit: f64, width: i64) -> Self {
        Self { act, limit: limit as f32, width }
    }

    /// One operator does it all.
    fn fused(&self) -> bool {
        self.act == Act::Silu && self.limit == 0.0
    }

    /// The gate in f32, bounded, to its activation.
    fn activate(&self, args: &Args<'_>, gate: &Place, to: &Place) -> Result<()> {
        if self.act == Act::Silu {
            args.sigmoid(gate, to)?;
            return args.mul(gate, to, to);
        }
        let approximate = if self.act == Act::GeluTanh { TANH } else { ERF };
        let (gate, to) = (args.tensor(gate), args.tensor(to));
        enqueue!(args.on, GeluV2(&gate, approximate, &to))
    }

    /// Scratch bytes of [`Self::run`]: products are rounded once.
    pub(super) fn bytes(&self, rows: i64) -> u64 {
        if self.fused() {
            return 0;
        }
        let dims = [rows, self.width];
        3 * scratch_bytes(Kind::F32, &dims)
            + 3 * (scratch_bytes(Kind::BOOL, &dims) + scratch_bytes(Kind::F32, &[1]))
    }

    /// `y` of the gates and ups in `gu`.
    pub(super) fn run(&self, args: &Args<'_>, gu: &Place, y: &Place) -> Result<()> {
        if self.fused() {
            let (gu, y) = (args.tensor(gu), args.tensor(y));
            return enqueue!(args.on, SwiGlu(&gu, -1, &y));
        }
        let gate = args.cast(&gu.slice(1, 0, self.width), Kind::F32)?;
        let up = args.cast(&gu.slice(1, self.width, self.width), Kind::F32)?;
        if self.limit != 0.0 {
            cap(args, &gate, self.limit)?;
            cap(args, &up, self.limit)?;
            args.scale(&up, -1.0, &up)?;
            cap(args, &up, self.limit)?;
            args.scale(&up, -1.0, &up)?;
        }
        let product = args.scratch(Kind::F32, &gate.dims)?;
        self.activate(args, &gate, &product)?;
        args.mul(&product, &up, &gate)?;
        args.copy(y, &gate)
    }
}

pub(super) fn act_mul(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::ActMul { act, limit } = op.attrs()?;
    op.floats(&[0, 1])?;
    Ok(Box::new(ActMul::new(act, limit, op.dim(Sym::I))))
}

impl Launch for ActMul {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.bytes(shapes.first().map_or(0, |s| s.dims[0]))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (gu, y) = (args.place(0)?, args.place(1)?);
        if y.is_empty() { Ok(()) } else { self.run(args, &gu, &y) }
    }
}
