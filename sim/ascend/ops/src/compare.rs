//! Comparisons of elements, and their bits: two operands with broadcast.

use crate::dtype::{DType, NUMBERS};
use crate::op::{Args, Op, Param, Since, Work, tensor};
use crate::refusal::Refusal;
use crate::view::{View, broadcast};
use std::cmp::Ordering;

const BINARY: &[Param] = &[tensor("self"), tensor("other"), tensor("out").out()];

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    binary("LtTensor", |a| compare(a, |x, y| x < y, |x, y| x < y)),
    binary("LeTensor", |a| compare(a, |x, y| x <= y, |x, y| x <= y)),
    binary("EqTensor", |a| {
        compare(a, |x, y| x.partial_cmp(y).is_some_and(Ordering::is_eq), |x, y| x == y)
    }),
    binary("BitwiseAndTensor", |a| bits(a, |x, y| x & y)),
    binary("BitwiseXorTensor", |a| bits(a, |x, y| x ^ y)),
];

const fn binary(name: &'static str, plan: fn(&Args<'_>) -> Result<Work, Refusal>) -> Op {
    Op { name, since: Since::V8_1, params: BINARY, plan }
}

/// Both operands with the dims of the result, and the dtype that they are brought to.
fn operands(a: &Args<'_>, dtypes: &[DType]) -> Result<([View; 2], View, DType), Refusal> {
    let (x, y, out) = (a.tensor("self")?, a.tensor("other")?, a.tensor("out")?);
    x.expect_dtype(dtypes)?;
    y.expect_dtype(dtypes)?;
    let dims = broadcast(&x, &y)?;
    out.expect_dims(&dims)?;
    let promoted = x.dtype.promote(y.dtype);
    Ok(([x.expanded(&dims)?, y.expanded(&dims)?], out, promoted))
}

fn compare(
    a: &Args<'_>,
    floats: fn(&f32, &f32) -> bool,
    whole: fn(&i64, &i64) -> bool,
) -> Result<Work, Refusal> {
    let ([x, y], out, promoted) = operands(a, NUMBERS)?;
    out.expect_dtype(&[DType::Bool])?;
    Ok(Work::new(move |launch| {
        let truth: Vec<i64> = if promoted.is_float() {
            let (x, y): (Vec<f32>, Vec<f32>) = (launch.read(&x)?, launch.read(&y)?);
            x.iter().zip(&y).map(|(x, y)| floats(x, y).into()).collect()
        } else {
            let (x, y): (Vec<i64>, Vec<i64>) = (launch.read(&x)?, launch.read(&y)?);
            x.iter().zip(&y).map(|(x, y)| whole(x, y).into()).collect()
        };
        launch.write(&out, &truth)
    }))
}

const WHOLE: &[DType] = &[DType::I8, DType::U8, DType::I16, DType::I32, DType::I64, DType::Bool];

fn bits(a: &Args<'_>, f: fn(i64, i64) -> i64) -> Result<Work, Refusal> {
    let ([x, y], out, promoted) = operands(a, WHOLE)?;
    out.expect_dtype(&[promoted])?;
    Ok(Work::new(move |launch| {
        let (x, y): (Vec<i64>, Vec<i64>) = (launch.read(&x)?, launch.read(&y)?);
        let values: Vec<i64> = x.iter().zip(&y).map(|(&x, &y)| f(x, y)).collect();
        launch.write(&out, &values)
    }))
}
