//! Arithmetic of elements: two operands with broadcast and promotion, or one.

use crate::arg::Scalar;
use crate::dtype::{DType, FLOATS, NUMBERS};
use crate::launch::{Fault, Launch};
use crate::op::{Args, Op, Param, Since, Work, scalar, tensor};
use crate::refusal::{Refusal, ensure};
use crate::view::{View, broadcast};

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "Add",
        since: Since::V8_1,
        params: &[tensor("self"), tensor("other"), scalar("alpha"), tensor("out").out()],
        plan: |a| scaled(a, Formula::ADD),
    },
    Op {
        name: "Sub",
        since: Since::V8_1,
        params: &[tensor("self"), tensor("other"), scalar("alpha"), tensor("out").out()],
        plan: |a| scaled(a, Formula::SUB),
    },
    Op {
        name: "Adds",
        since: Since::V8_1,
        params: &[tensor("self"), scalar("other"), scalar("alpha"), tensor("out").out()],
        plan: |a| {
            let other = Operand::Scalar(a.scalar("other")?);
            binary(
                &a.tensor("self")?,
                other,
                a.tensor("out")?,
                Formula::ADD.scaled(a.scalar("alpha")?),
            )
        },
    },
    Op {
        name: "Mul",
        since: Since::V8_1,
        params: &[tensor("self"), tensor("other"), tensor("out").out()],
        plan: |a| {
            let other = Operand::Tensor(a.tensor("other")?);
            binary(&a.tensor("self")?, other, a.tensor("out")?, Formula::MUL)
        },
    },
    Op {
        name: "Div",
        since: Since::V8_1,
        params: &[tensor("self"), tensor("other"), tensor("out").out()],
        plan: |a| {
            let other = Operand::Tensor(a.tensor("other")?);
            binary(&a.tensor("self")?, other, a.tensor("out")?, Formula::DIV)
        },
    },
    Op {
        name: "Muls",
        since: Since::V8_1,
        params: &[tensor("self"), scalar("other"), tensor("out").out()],
        plan: |a| {
            let other = Operand::Scalar(a.scalar("other")?);
            binary(&a.tensor("self")?, other, a.tensor("out")?, Formula::MUL)
        },
    },
    Op {
        name: "InplaceAdd",
        since: Since::V8_1,
        params: &[tensor("selfRef").out(), tensor("other"), scalar("alpha")],
        plan: |a| {
            let (own, other) = (a.tensor("selfRef")?, Operand::Tensor(a.tensor("other")?));
            binary(&own.clone(), other, own, Formula::ADD.scaled(a.scalar("alpha")?))
        },
    },
    Op {
        name: "InplaceMul",
        since: Since::V8_1,
        params: &[tensor("selfRef").out(), tensor("other")],
        plan: |a| {
            let (own, other) = (a.tensor("selfRef")?, Operand::Tensor(a.tensor("other")?));
            binary(&own.clone(), other, own, Formula::MUL)
        },
    },
    Op {
        name: "InplaceMuls",
        since: Since::V8_1,
        params: &[tensor("selfRef").out(), scalar("other")],
        plan: |a| {
            let (own, other) = (a.tensor("selfRef")?, Operand::Scalar(a.scalar("other")?));
            binary(&own.clone(), other, own, Formula::MUL)
        },
    },
    unary("Exp", |a| map(a, f32::exp)),
    unary("Log", |a| map(a, f32::ln)),
    unary("Tanh", |a| map(a, f32::tanh)),
    unary("Cos", |a| map(a, f32::cos)),
    unary("Sin", |a| map(a, f32::sin)),
    unary("Rsqrt", |a| map(a, |x| 1.0 / x.sqrt())),
    unary("Sigmoid", |a| map(a, sigmoid)),
    unary("Neg", negate),
];

const UNARY: &[Param] = &[tensor("self"), tensor("out").out()];

const fn unary(name: &'static str, plan: fn(&Args<'_>) -> Result<Work, Refusal>) -> Op {
    Op { name, since: Since::V8_1, params: UNARY, plan }
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

enum Operand {
    Tensor(View),
    Scalar(Scalar),
}

/// A function of two elements in floats and in whole numbers; the second element comes scaled.
#[derive(Clone, Copy)]
struct Formula {
    float: fn(f32, f32) -> f32,
    /// None where whole numbers give floats.
    int: Option<fn(i64, i64) -> i64>,
    alpha: Scalar,
}

impl Formula {
    const ADD: Self = Self::new(|a, b| a + b, Some(i64::wrapping_add));
    const SUB: Self = Self::new(|a, b| a - b, Some(i64::wrapping_sub));
    const MUL: Self = Self::new(|a, b| a * b, Some(i64::wrapping_mul));
    const DIV: Self = Self::new(|a, b| a / b, None);

    const fn new(float: fn(f32, f32) -> f32, int: Option<fn(i64, i64) -> i64>) -> Self {
        Self { float, int, alpha: Scalar::Int(1) }
    }

    fn scaled(self, alpha: Scalar) -> Self {
        Self { alpha, ..self }
    }

    fn floats(&self, x: &[f32], y: &[f32]) -> Vec<f32> {
        let alpha = self.alpha.float() as f32;
        x.iter().zip(y).map(|(&x, &y)| (self.float)(x, alpha * y)).collect()
    }
}

fn scaled(a: &Args<'_>, formula: Formula) -> Result<Work, Refusal> {
    let other = Operand::Tensor(a.tensor("other")?);
    binary(&a.tensor("self")?, other, a.tensor("out")?, formula.scaled(a.scalar("alpha")?))
}

impl Operand {
    fn dtype(&self, beside: DType) -> DType {
        match self {
            Self::Tensor(view) => view.dtype,
            Self::Scalar(Scalar::Float(_)) if !beside.is_float() => DType::F32,
            Self::Scalar(_) => beside,
        }
    }

    fn floats(&self, launch: &Launch<'_>, len: usize) -> Result<Vec<f32>, Fault> {
        match self {
            Self::Tensor(view) => launch.read(view),
            Self::Scalar(value) => Ok(vec![value.float() as f32; len]),
        }
    }

    fn ints(&self, launch: &Launch<'_>, len: usize) -> Result<Vec<i64>, Fault> {
        match self {
            Self::Tensor(view) => launch.read(view),
            Self::Scalar(value) => Ok(vec![value.int(); len]),
        }
    }
}

/// Whether results of a dtype may be written as another.
pub(crate) fn expect_castable(from: DType, out: &View) -> Result<(), Refusal> {
    let fits = !from.is_float() || out.dtype.is_float();
    let to = out.dtype;
    ensure!(fits, "{}: dtype {to} for results of {from}, expected a float", out.name);
    Ok(())
}

fn binary(x: &View, mut y: Operand, out: View, formula: Formula) -> Result<Work, Refusal> {
    x.expect_dtype(NUMBERS)?;
    out.expect_dtype(NUMBERS)?;
    let mut dims = x.dims.clone();
    if let Operand::Tensor(view) = &y {
        view.expect_dtype(NUMBERS)?;
        dims = broadcast(x, view)?;
    }
    out.expect_dims(&dims)?;
    let x = x.expanded(&dims)?;
    if let Operand::Tensor(view) = &y {
        y = Operand::Tensor(view.expanded(&dims)?);
    }
    let mut promoted = x.dtype.promote(y.dtype(x.dtype));
    if formula.int.is_none() && !promoted.is_float() {
        promoted = DType::F32;
    }
    expect_castable(promoted, &out)?;
    Ok(Work::new(move |launch| match formula.int {
        Some(int) if !promoted.is_float() => {
            let (a, b) = (launch.read::<i64>(&x)?, y.ints(launch, x.len())?);
            let alpha = formula.alpha.int();
            let values: Vec<i64> =
                a.iter().zip(&b).map(|(&a, &b)| int(a, b.wrapping_mul(alpha))).collect();
            launch.write(&out, &values)
        }
        _ => launch.write(&out, &formula.floats(&launch.read(&x)?, &y.floats(launch, x.len())?)),
    }))
}

fn negate(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    x.expect_dtype(NUMBERS)?;
    out.expect_dims(&x.dims)?.expect_dtype(&[x.dtype])?;
    Ok(Work::new(move |launch| {
        if x.dtype.is_float() {
            let values: Vec<f32> = launch.read(&x)?.iter().map(|v: &f32| -v).collect();
            return launch.write(&out, &values);
        }
        let values: Vec<i64> = launch.read(&x)?.iter().map(|v: &i64| v.wrapping_neg()).collect();
        launch.write(&out, &values)
    }))
}

fn map(a: &Args<'_>, f: fn(f32) -> f32) -> Result<Work, Refusal> {
    map_to(a.tensor("self")?, a.tensor("out")?, f)
}

/// A function of each float, in f32.
pub(crate) fn map_to(
    x: View,
    out: View,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
) -> Result<Work, Refusal> {
    x.expect_dtype(FLOATS)?;
    out.expect_dims(&x.dims)?.expect_dtype(FLOATS)?;
    Ok(Work::new(move |launch| {
        let values: Vec<f32> = launch.read(&x)?.iter().map(|&v| f(v)).collect();
        launch.write(&out, &values)
    }))
}
