//! Norms, on their own and after a residual is added.

use crate::dtype::{DType, FLOATS};
use crate::launch::{Fault, Launch, Number};
use crate::op::{Args, Op, Since, Work, float, ints, tensor};
use crate::refusal::{Refusal, ensure};
use crate::view::View;

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "RmsNorm",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("gamma"),
            float("epsilon"),
            tensor("yOut").out(),
            tensor("rstdOut").out(),
        ],
        plan: rms_norm,
    },
    Op {
        name: "AddRmsNorm",
        since: Since::V8_1,
        params: &[
            tensor("x1"),
            tensor("x2"),
            tensor("gamma"),
            float("epsilon"),
            tensor("yOut").out(),
            tensor("rstdOut").out(),
            tensor("xOut").out(),
        ],
        plan: add_rms_norm,
    },
    Op {
        name: "LayerNorm",
        since: Since::V8_1,
        params: &[
            tensor("self"),
            ints("normalizedShape"),
            tensor("weight").or_null(),
            tensor("bias").or_null(),
            float("eps"),
            tensor("out").out(),
            tensor("meanOut").or_null().out(),
            tensor("rstdOut").or_null().out(),
        ],
        plan: layer_norm,
    },
];

/// Rows, each divided by its root mean square and scaled; and the reciprocals.
#[expect(clippy::cast_precision_loss, reason = "what a mean divides by")]
pub(crate) fn normed(x: &[f32], gamma: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    let width = gamma.len();
    let rstd: Vec<f32> = x
        .chunks_exact(width.max(1))
        .map(|row| 1.0 / (row.iter().map(|v| v * v).sum::<f32>() / width as f32 + epsilon).sqrt())
        .collect();
    let rows = x.chunks_exact(width.max(1)).zip(&rstd);
    (rows.flat_map(|(row, r)| row.iter().zip(gamma).map(move |(v, g)| v * r * g)).collect(), rstd)
}

/// Checks `gamma`, which has the last dims of `x`; gives the dims of `rstd`.
fn check_gamma(x: &View, gamma: &View) -> Result<Vec<usize>, Refusal> {
    x.expect_dtype(FLOATS)?.expect_rank(1, 8)?;
    let dtypes = [x.dtype, DType::F32];
    gamma.expect_dtype(&dtypes[..if x.dtype == DType::F32 { 1 } else { 2 }])?;
    let lead = x.rank().checked_sub(gamma.rank());
    let fits = lead.is_some_and(|lead| gamma.rank() > 0 && x.dims[lead..] == gamma.dims);
    ensure!(
        fits,
        "gamma: shape {:?}, expected the last dims of {} with shape {:?}",
        gamma.dims,
        x.name,
        x.dims
    );
    ensure!(gamma.len() > 0, "gamma: shape {:?}, expected at least one element", gamma.dims);
    let lead = x.rank() - gamma.rank();
    Ok([&x.dims[..lead], &vec![1; gamma.rank()]].concat())
}

fn rms_norm(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, gamma, epsilon) = (a.tensor("x")?, a.tensor("gamma")?, a.float("epsilon")? as f32);
    let (y, rstd) = (a.tensor("yOut")?, a.tensor("rstdOut")?);
    let dims = check_gamma(&x, &gamma)?;
    y.expect_dims(&x.dims)?.expect_dtype(&[x.dtype])?;
    rstd.expect_dims(&dims)?.expect_dtype(&[DType::F32])?;
    Ok(Work::new(move |launch| {
        let (values, factors) = normed(&launch.read(&x)?, &launch.read(&gamma)?, epsilon);
        launch.write(&y, &values)?;
        launch.write(&rstd, &factors)
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

/// A residual: the sum that is normed, as it is stored.
pub(crate) struct Residual {
    x1: View,
    x2: View,
    gamma: View,
    epsilon: f32,
    sum: View,
    /// The dims of the norms' factors.
    pub(crate) rows: Vec<usize>,
}

impl Residual {
    pub(crate) fn of(a: &Args<'_>) -> Result<Self, Refusal> {
        let (x1, x2, gamma) = (a.tensor("x1")?, a.tensor("x2")?, a.tensor("gamma")?);
        let sum = a.tensor("xOut")?;
        let rows = check_gamma(&x1, &gamma)?;
        for other in [&x2, &sum] {
            other.expect_dims(&x1.dims)?.expect_dtype(&[x1.dtype])?;
        }
        Ok(Self { x1, x2, gamma, epsilon: a.float("epsilon")? as f32, sum, rows })
    }

    pub(crate) fn input(&self) -> &View {
        &self.x1
    }

    pub(crate) fn width(&self) -> usize {
        self.gamma.len()
    }

    /// Writes the sum; gives the norm of what was stored, and the factors.
    pub(crate) fn run(&self, launch: &Launch<'_>) -> Result<(Vec<f32>, Vec<f32>), Fault> {
        let (a, b): (Vec<f32>, Vec<f32>) = (launch.read(&self.x1)?, launch.read(&self.x2)?);
        let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let stored = f32::decode(self.sum.dtype, &f32::encode(&sum, self.sum.dtype));
        let normed = normed(&stored, &launch.read(&self.gamma)?, self.epsilon);
        launch.write(&self.sum, &stored)?;
        Ok(normed)
    }
}

fn add_rms_norm(a: &Args<'_>) -> Result<Work, Refusal> {
    let residual = Residual::of(a)?;
    let (y, rstd) = (a.tensor("yOut")?, a.tensor("rstdOut")?);
    y.expect_dims(&residual.input().dims)?.expect_dtype(&[residual.input().dtype])?;
    rstd.expect_dims(&residual.rows)?.expect_dtype(&[DType::F32])?;
    Ok(Work::new(move |launch| {
        let (values, factors) = residual.run(launch)?;
        launch.write(&y, &values)?;
        launch.write(&rstd, &factors)
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn layer_norm(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out, eps) = (a.tensor("self")?, a.tensor("out")?, a.float("eps")? as f32);
    x.expect_dtype(FLOATS)?;
    out.expect_dims(&x.dims)?.expect_dtype(&[x.dtype])?;
    let shape = a.ints("normalizedShape")?.unwrap_or_default();
    let lead = x.rank().checked_sub(shape.len()).filter(|_| !shape.is_empty());
    let fits = lead.filter(|&lead| x.dims[lead..].iter().zip(shape).all(|(&d, &s)| d as i64 == s));
    let Some(lead) = fits else {
        let text =
            format!("normalizedShape: {shape:?}, expected the last dims of self, {:?}", x.dims);
        return Err(Refusal::new(crate::code::INVALID, text));
    };
    let (affine, width) =
        ([a.optional("weight")?, a.optional("bias")?], x.dims[lead..].iter().product::<usize>());
    for part in affine.iter().flatten() {
        part.expect_dims(&x.dims[lead..])?.expect_dtype(&[x.dtype, DType::F32])?;
    }
    let rows = [&x.dims[..lead], &vec![1; shape.len()]].concat();
    let statistics = [a.optional("meanOut")?, a.optional("rstdOut")?];
    for part in statistics.iter().flatten() {
        part.expect_dims(&rows)?.expect_dtype(&[x.dtype, DType::F32])?;
    }
    Ok(Work::new(move |launch| {
        let read = |part: &Option<View>, fill: f32| {
            part.as_ref().map_or_else(|| Ok(vec![fill; width]), |view| launch.read(view))
        };
        let (gain, bias) = (read(&affine[0], 1.0)?, read(&affine[1], 0.0)?);
        let mut values: Vec<f32> = launch.read(&x)?;
        let (mut means, mut rstds) = (Vec::new(), Vec::new());
        for row in values.chunks_mut(width.max(1)) {
            let (mean, rstd) = moments(row, eps);
            let scaled = row.iter_mut().zip(gain.iter().zip(&bias));
            scaled.for_each(|(v, (g, b))| *v = (*v - mean) * rstd * g + b);
            means.push(mean);
            rstds.push(rstd);
        }
        launch.write(&out, &values)?;
        for (part, numbers) in statistics.iter().zip([means, rstds]) {
            part.iter().try_for_each(|view| launch.write(view, &numbers))?;
        }
        Ok(())
    }))
}

/// Mean and reciprocal of the standard deviation.
#[expect(clippy::cast_precision_loss, reason = "what a mean divides by")]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = row.iter().sum::<f32>() / count;
    let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / count;
    (mean, 1.0 / (variance + eps).sqrt())
}
