//! Activation functions.

use crate::dtype::FLOATS;
use crate::elementwise::{map_to, sigmoid};
use crate::op::{Args, Op, Since, Work, int64, tensor};
use crate::reduce::along;
use crate::refusal::{Refusal, ensure};

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "SwiGlu",
        since: Since::V8_1,
        params: &[tensor("x"), int64("dim"), tensor("out").out()],
        plan: swiglu,
    },
    Op {
        name: "Silu",
        since: Since::V8_1,
        params: &[tensor("self"), tensor("out").out()],
        plan: |a| map_to(a.tensor("self")?, a.tensor("out")?, silu),
    },
    Op {
        name: "GeluV2",
        since: Since::V8_1,
        params: &[tensor("x"), int64("approximate"), tensor("y").out()],
        plan: |a| {
            let tanh = a.choice("approximate", &[0, 1])? == 1;
            map_to(a.tensor("x")?, a.tensor("y")?, if tanh { gelu_tanh } else { gelu_erf })
        },
    },
];

pub(crate) fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

/// `silu(first half) · second half` of rows.
pub(crate) fn swiglu_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let half = width / 2;
    let pairs = rows.chunks_exact(width.max(1)).map(|row| row.split_at(half));
    pairs.flat_map(|(gate, up)| gate.iter().zip(up).map(|(g, u)| silu(*g) * u)).collect()
}

pub(crate) fn gelu_tanh(x: f32) -> f32 {
    let inner = std::f32::consts::FRAC_2_PI.sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

pub(crate) fn gelu_erf(x: f32) -> f32 {
    let wide = f64::from(x);
    (0.5 * wide * (1.0 + erf(wide / std::f64::consts::SQRT_2))) as f32
}

/// The error function: its Maclaurin series near 0, a continued fraction of its complement further out.
fn erf(x: f64) -> f64 {
    let (size, square) = (x.abs(), x * x);
    let value = if size < 2.5 {
        let (mut term, mut sum) = (size, size);
        for n in 1..60 {
            let n = f64::from(n);
            term *= -square / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let tail = (1..60).rev().fold(size, |below, n| size + f64::from(n) / 2.0 / below);
        1.0 - (-square).exp() / tail / std::f64::consts::PI.sqrt()
    };
    value.copysign(x)
}

fn swiglu(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("x")?, a.tensor("out")?);
    x.expect_dtype(FLOATS)?.expect_rank(1, 8)?;
    let axis = a.axis("dim", x.rank())?;
    let width = x.dims[axis];
    ensure!(width.is_multiple_of(2), "x: {width} along axis {axis}, expected an even number");
    let mut dims = x.dims.clone();
    dims[axis] /= 2;
    out.expect_dims(&dims)?.expect_dtype(&[x.dtype])?;
    let (x, out) = (along(&x, axis), along(&out, axis));
    Ok(Work::new(move |launch| {
        let values: Vec<f32> = launch.read(&x)?;
        launch.write(&out, &swiglu_rows(&values, width))
    }))
}
