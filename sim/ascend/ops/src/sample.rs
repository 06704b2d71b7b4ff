//! Probabilities, order and draws.

use crate::dtype::{DType, FLOATS, INDICES};
use crate::index::checked;
use crate::op::{Args, Op, Param, Since, Work, flag, int64, tensor};
use crate::reduce::along;
use crate::refusal::{Refusal, ensure};
use crate::view::View;
use std::cmp::Ordering;

const SOFTMAX: &[Param] = &[tensor("self"), int64("dim"), tensor("out").out()];

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op { name: "Softmax", since: Since::V8_1, params: SOFTMAX, plan: |a| softmax(a, false) },
    Op { name: "LogSoftmax", since: Since::V8_1, params: SOFTMAX, plan: |a| softmax(a, true) },
    Op {
        name: "Topk",
        since: Since::V8_1,
        params: &[
            tensor("self"),
            int64("k"),
            int64("dim"),
            flag("largest"),
            flag("sorted"),
            tensor("valuesOut").out(),
            tensor("indicesOut").out(),
        ],
        plan: topk,
    },
    Op {
        name: "Sort",
        since: Since::V8_1,
        params: &[
            tensor("self"),
            flag("stable"),
            int64("dim"),
            flag("descending"),
            tensor("valuesOut").out(),
            tensor("indicesOut").out(),
        ],
        plan: sort,
    },
    Op {
        name: "ArgMax",
        since: Since::V8_1,
        params: &[tensor("self"), int64("dim"), flag("keepdim"), tensor("out").out()],
        plan: |a| largest(a, None, "out"),
    },
    Op {
        name: "MaxDim",
        since: Since::V8_1,
        params: &[
            tensor("self"),
            int64("dim"),
            flag("keepdim"),
            tensor("out").out(),
            tensor("indices").out(),
        ],
        plan: |a| largest(a, Some("out"), "indices"),
    },
    Op {
        name: "ApplyTopKTopP",
        since: Since::V9_1,
        params: &[tensor("logits"), tensor("p"), tensor("k"), tensor("out").out()],
        plan: top_k_top_p,
    },
    Op {
        name: "Multinomial",
        since: Since::V8_1,
        params: &[
            tensor("self"),
            int64("numsamples"),
            flag("replacement"),
            int64("seed"),
            int64("offset"),
            tensor("out").out(),
        ],
        plan: multinomial,
    },
];

/// A sum in pairs, as vector units reduce.
fn sum_of(values: &[f32]) -> f32 {
    match values {
        [] => 0.0,
        [one] => *one,
        _ => {
            let (first, second) = values.split_at(values.len() / 2);
            sum_of(first) + sum_of(second)
        }
    }
}

/// Probabilities of a row.
pub(crate) fn softmaxed(row: &mut [f32]) {
    let max = row.iter().fold(f32::NEG_INFINITY, |max, v| max.max(*v));
    row.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum = sum_of(row);
    row.iter_mut().for_each(|v| *v /= sum);
}

fn softmax(a: &Args<'_>, log: bool) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    x.expect_dtype(FLOATS)?;
    out.expect_dtype(FLOATS)?.expect_dims(&x.dims)?;
    let axis = a.axis("dim", x.rank())?;
    let (x, out) = (along(&x, axis), along(&out, axis));
    let workspace = x.len() as u64 * 4;
    Ok(Work::new(move |launch| {
        let mut values: Vec<f32> = launch.read(&x)?;
        for row in values.chunks_exact_mut(x.last().max(1)) {
            if log {
                let max = row.iter().fold(f32::NEG_INFINITY, |max, v| max.max(*v));
                let powers: Vec<f32> = row.iter().map(|v| (v - max).exp()).collect();
                let sum = sum_of(&powers).ln();
                row.iter_mut().for_each(|v| *v = *v - max - sum);
            } else {
                softmaxed(row);
            }
        }
        launch.write(&out, &values)
    })
    .with_workspace(workspace))
}

/// Larger first, NaN before all; equal ones keep their order.
fn descending(a: f32, b: f32) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// The indices of a row, by its values; of equal ones the first comes first.
pub(crate) fn order_of(row: &[f32], largest: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(
        |&a, &b| {
            if largest { descending(row[a], row[b]) } else { descending(row[b], row[a]) }
        },
    );
    order
}

/// Writes the first of each row in order, with their indices.
fn ordered(x: &View, [values, indices]: [View; 2], largest: bool) -> Work {
    let (x, workspace) = (x.clone(), x.len() as u64 * 8);
    let count = indices.last();
    Work::new(move |launch| {
        // Floats of 32 bits have the order of all dtypes but of wide integers, which are exact up to 2^24.
        let rows: Vec<f32> = launch.read(&x)?;
        let (mut picked, mut places) = (Vec::new(), Vec::new());
        for row in rows.chunks_exact(x.last().max(1)) {
            let order = order_of(row, largest);
            picked.extend(order[..count].iter().map(|&i| row[i]));
            places.extend(order[..count].iter().map(|&i| i as i64));
        }
        launch.write(&values, &picked)?;
        launch.write(&indices, &places)
    })
    .with_workspace(workspace)
}

const ORDERED: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::I8, DType::U8, DType::I16];

fn topk(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, k) = (a.tensor("self")?, a.int("k")?);
    x.expect_dtype(ORDERED)?.expect_rank(1, 8)?;
    let axis = a.axis("dim", x.rank())?;
    let width = x.dims[axis];
    ensure!((0..=width as i64).contains(&k), "k: {k}, expected 0 to {width} along axis {axis}");
    ensure!(a.flag("sorted")?, "sorted: false, expected true on an Atlas A2");
    let mut dims = x.dims.clone();
    dims[axis] = k as usize;
    let (values, indices) = (a.tensor("valuesOut")?, a.tensor("indicesOut")?);
    values.expect_dtype(&[x.dtype])?.expect_dims(&dims)?;
    indices.expect_dtype(&[DType::I64])?.expect_dims(&dims)?;
    Ok(ordered(&along(&x, axis), [along(&values, axis), along(&indices, axis)], a.flag("largest")?))
}

fn sort(a: &Args<'_>) -> Result<Work, Refusal> {
    let x = a.tensor("self")?;
    x.expect_dtype(ORDERED)?;
    let axis = a.axis("dim", x.rank())?;
    let (values, indices) = (a.tensor("valuesOut")?, a.tensor("indicesOut")?);
    values.expect_dtype(&[x.dtype])?.expect_dims(&x.dims)?;
    indices.expect_dtype(&[DType::I64])?.expect_dims(&x.dims)?;
    let down = a.flag("descending")?;
    Ok(ordered(&along(&x, axis), [along(&values, axis), along(&indices, axis)], down))
}

fn largest(a: &Args<'_>, values: Option<&str>, indices: &str) -> Result<Work, Refusal> {
    let x = a.tensor("self")?;
    x.expect_dtype(FLOATS)?.expect_rank(1, 8)?;
    let axis = a.axis("dim", x.rank())?;
    ensure!(x.dims[axis] > 0, "self: shape {:?}, expected elements along axis {axis}", x.dims);
    let mut dims = x.dims.clone();
    dims[axis] = 1;
    if !a.flag("keepdim")? {
        dims.remove(axis);
    }
    let indices = a.tensor(indices)?;
    indices.expect_dtype(INDICES)?.expect_dims(&dims)?;
    let values = values.map(|name| a.tensor(name)).transpose()?;
    if let Some(values) = &values {
        values.expect_dtype(&[x.dtype])?.expect_dims(&dims)?;
    }
    let (x, workspace) = (along(&x, axis), x.len() as u64 * 4);
    Ok(Work::new(move |launch| {
        let rows: Vec<f32> = launch.read(&x)?;
        let best: Vec<usize> = rows
            .chunks_exact(x.last())
            .map(|row| {
                (1..row.len())
                    .fold(0, |b, i| if descending(row[i], row[b]).is_lt() { i } else { b })
            })
            .collect();
        if let Some(values) = &values {
            let picked: Vec<f32> =
                rows.chunks_exact(x.last()).zip(&best).map(|(row, &i)| row[i]).collect();
            launch.write(values, &picked)?;
        }
        launch.write(&indices, &best.iter().map(|&i| i as i64).collect::<Vec<_>>())
    })
    .with_workspace(workspace))
}

fn top_k_top_p(a: &Args<'_>) -> Result<Work, Refusal> {
    let (logits, p, k, out) =
        (a.tensor("logits")?, a.tensor("p")?, a.tensor("k")?, a.tensor("out")?);
    logits.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
    p.expect_dtype(&[logits.dtype])?.expect_dims(&logits.dims[..1])?;
    k.expect_dtype(&[DType::I32])?.expect_dims(&logits.dims[..1])?;
    out.expect_dtype(&[logits.dtype])?.expect_dims(&logits.dims)?;
    let workspace = logits.len() as u64 * 8;
    Ok(Work::new(move |launch| {
        let mut rows: Vec<f32> = launch.read(&logits)?;
        let (ps, ks): (Vec<f32>, Vec<i64>) = (launch.read(&p)?, launch.read(&k)?);
        let each = rows.chunks_exact_mut(logits.last().max(1)).zip(ps.iter().zip(&ks));
        for (row, (&p, &number)) in each {
            keep(row, p, checked(&k, number, row.len() + 1)?.max(1));
        }
        launch.write(&out, &rows)
    })
    .with_workspace(workspace))
}

/// Hides what is below the k-th largest, then the least likely that make up `1 − p`; one is always kept.
fn keep(row: &mut [f32], p: f32, k: usize) {
    let order = order_of(row, true);
    let least = row[order[k - 1]];
    row.iter_mut().filter(|v| **v < least).for_each(|v| *v = f32::NEG_INFINITY);
    let mut likely = row.to_vec();
    softmaxed(&mut likely);
    let mut below = 0.0;
    for &i in order[1..].iter().rev() {
        below += likely[i];
        if below <= 1.0 - p {
            row[i] = f32::NEG_INFINITY;
        }
    }
}

fn multinomial(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out, count) = (a.tensor("self")?, a.tensor("out")?, a.int("numsamples")?);
    x.expect_dtype(FLOATS)?.expect_rank(1, 2)?;
    let (width, again) = (x.last(), a.flag("replacement")?);
    ensure!(
        count > 0 && (again || count <= width as i64),
        "numsamples: {count}, expected at least 1, and without replacement at most {width}"
    );
    let count = count as usize;
    out.expect_dtype(&[DType::I64])?.expect_dims(&[&x.dims[..x.rank() - 1], &[count]].concat())?;
    let (seed, offset) = (a.int("seed")? as u64, a.int("offset")? as u64);
    let workspace = x.len() as u64 * 4;
    Ok(Work::new(move |launch| {
        let mut rows: Vec<f32> = launch.read(&x)?;
        let mut picked = Vec::new();
        for (number, row) in rows.chunks_exact_mut(width.max(1)).enumerate() {
            for draw in 0..count {
                let place = mixed(seed, offset, (number * count + draw) as u64);
                let chosen = drawn(row, place);
                if !again {
                    row[chosen] = 0.0;
                }
                picked.push(chosen as i64);
            }
        }
        launch.write(&out, &picked)
    })
    .with_workspace(workspace))
}

/// The index at which a share of the sum is reached; of a row of zeros the first.
fn drawn(row: &[f32], place: f64) -> usize {
    let target = place * row.iter().map(|v| f64::from(*v)).sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (index, &value) in row.iter().enumerate().filter(|(_, v)| **v > 0.0) {
        sum += f64::from(value);
        last = index;
        if sum > target {
            break;
        }
    }
    last
}

/// A number from 0 to below 1 of a seed, an offset and a position. The real generator draws others.
#[expect(clippy::cast_precision_loss, reason = "53 bits are a float's")]
fn mixed(seed: u64, offset: u64, position: u64) -> f64 {
    let mut state = seed ^ offset.rotate_left(32) ^ position.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for _ in 0..3 {
        state ^= state >> 30;
        state = state.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        state ^= state >> 27;
        state = state.wrapping_add(0x94D0_49BB_1331_11EB);
    }
    (state >> 11) as f64 / (1u64 << 53) as f64
}
