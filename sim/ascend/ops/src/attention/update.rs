//! Merges results of attention over parts of the keys.

use crate::dtype::{DType, FLOATS};
use crate::launch::{Fault, Launch};
use crate::op::{Args, Op, Since, Work, int64, list, tensor};
use crate::refusal::{Refusal, ensure};
use crate::view::View;

pub(super) const OP: Op = Op {
    name: "AttentionUpdate",
    since: Since::V9_1,
    params: &[
        list("lse"),
        list("localOut"),
        int64("updateType"),
        tensor("out").out(),
        tensor("lseOut").or_null().out(),
    ],
    plan,
};

fn plan(a: &Args<'_>) -> Result<Work, Refusal> {
    let (lses, parts) = (a.list("lse")?.to_vec(), a.list("localOut")?.to_vec());
    let with_lse = a.choice("updateType", &[0, 1])? == 1;
    let (out, lse_out) = (a.tensor("out")?, a.optional("lseOut")?);
    ensure!(!lses.is_empty() && lses.len() <= 16, "lse: {} tensors, expected 1 to 16", lses.len());
    ensure!(
        parts.len() == lses.len(),
        "localOut: {} tensors, expected {} as lse",
        parts.len(),
        lses.len()
    );
    out.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
    for (lse, part) in lses.iter().zip(&parts) {
        lse.expect_dtype(&[DType::F32])?.expect_dims(&out.dims[..1])?;
        part.expect_dtype(&[out.dtype])?.expect_dims(&out.dims)?;
        ensure!(!lse.nz && !part.nz, "{}: format FRACTAL_NZ, expected ND", part.name);
    }
    let lse_out = if with_lse {
        let Some(view) = lse_out else {
            return Err(Refusal::new(
                crate::code::NULL,
                "lseOut: null, expected a tensor with updateType 1",
            ));
        };
        view.expect_dtype(&[DType::F32])?.expect_dims(&out.dims[..1])?;
        Some(view)
    } else {
        None
    };
    let workspace = u64::from(a.soc.vector_cores) * 64;
    Ok(Work::new(move |launch| run(launch, [&lses, &parts], &out, lse_out.as_ref()))
        .with_workspace(workspace))
}

/// Rows weighted by the exponentials of their logarithms; infinity marks a row that saw nothing.
fn run(
    launch: &Launch<'_>,
    [lses, parts]: [&[View]; 2],
    out: &View,
    lse_out: Option<&View>,
) -> Result<(), Fault> {
    let width = out.last();
    let mut logs: Vec<Vec<f32>> = lses.iter().map(|v| launch.read(v)).collect::<Result<_, _>>()?;
    logs.iter_mut().flatten().filter(|v| **v == f32::INFINITY).for_each(|v| *v = f32::NEG_INFINITY);
    let values: Vec<Vec<f32>> = parts.iter().map(|v| launch.read(v)).collect::<Result<_, _>>()?;
    let (mut merged, mut sums) = (vec![0.0; out.len()], Vec::new());
    for row in 0..out.dims[0] {
        let max = logs.iter().fold(f32::NEG_INFINITY, |max, l| max.max(l[row]));
        if max == f32::NEG_INFINITY {
            sums.push(f32::INFINITY);
            continue;
        }
        let sum: f32 = logs.iter().map(|l| (l[row] - max).exp()).sum();
        sums.push(max + sum.ln());
        for (log, value) in logs.iter().zip(&values) {
            let weight = (log[row] - max).exp() / sum;
            if weight > 0.0 {
                let from = &value[row * width..][..width];
                merged[row * width..][..width]
                    .iter_mut()
                    .zip(from)
                    .for_each(|(m, v)| *m += weight * v);
            }
        }
    }
    launch.write(out, &merged)?;
    lse_out.map_or(Ok(()), |view| launch.write(view, &sums))
}
