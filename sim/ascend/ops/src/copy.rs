//! Copies with conversion, and views made real.

use crate::dtype::{ALL, DType};
use crate::launch::{Fault, Launch};
use crate::op::{Args, Op, Since, Work, axis_of, dtype, int64, ints, list, tensor};
use crate::refusal::{Refusal, ensure};
use crate::view::{View, contiguous_strides};

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "Cast",
        since: Since::V8_1,
        params: &[tensor("self"), dtype("dtype"), tensor("out").out()],
        plan: cast,
    },
    Op {
        name: "InplaceCopy",
        since: Since::V8_1,
        params: &[tensor("selfRef").out(), tensor("src")],
        plan: inplace_copy,
    },
    Op {
        name: "Permute",
        since: Since::V8_1,
        params: &[tensor("self"), ints("dims"), tensor("out").out()],
        plan: permute,
    },
    Op {
        name: "Cat",
        since: Since::V8_1,
        params: &[list("tensors"), int64("dim"), tensor("out").out()],
        plan: cat,
    },
    Op {
        name: "Slice",
        since: Since::V8_1,
        params: &[
            tensor("self"),
            int64("dim"),
            int64("start"),
            int64("end"),
            int64("step"),
            tensor("out").out(),
        ],
        plan: slice,
    },
    Op {
        name: "Expand",
        since: Since::V8_1,
        params: &[tensor("self"), ints("size"), tensor("out").out()],
        plan: expand,
    },
    Op {
        name: "Repeat",
        since: Since::V8_1,
        params: &[tensor("self"), ints("repeats"), tensor("out").out()],
        plan: repeat,
    },
];

/// Copies elements between views of the same dims, converting them. What is only moved need not have been written: an operator
/// that takes whole rows to cut them later reads nothing that matters.
pub(crate) fn transfer(launch: &Launch<'_>, from: &View, to: &View) -> Result<(), Fault> {
    if launch.moved(from, to)? {
        return Ok(());
    }
    if from.dtype.is_float() {
        return launch.write::<f32>(to, &launch.read(from)?);
    }
    launch.write::<i64>(to, &launch.read(from)?)
}

fn copying(from: View, to: View) -> Result<Work, Refusal> {
    Ok(Work::new(move |launch| transfer(launch, &from, &to)))
}

fn cast(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    x.expect_dtype(ALL)?;
    out.expect_dtype(ALL)?.expect_dtype(&[a.dtype("dtype")?])?.expect_dims(&x.dims)?;
    copying(x, out)
}

fn inplace_copy(a: &Args<'_>) -> Result<Work, Refusal> {
    let (out, src) = (a.tensor("selfRef")?, a.tensor("src")?);
    src.expect_dtype(ALL)?;
    out.expect_dtype(ALL)?;
    copying(src.expanded(&out.dims)?, out)
}

fn whole(name: &str, values: &[i64]) -> Result<Vec<usize>, Refusal> {
    let fits = values.iter().all(|v| *v >= 0);
    ensure!(fits, "{name}: {values:?}, expected none below 0");
    Ok(values.iter().map(|&v| v as usize).collect())
}

fn permute(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    let dims = a.ints("dims")?.unwrap_or_default();
    let axes: Vec<usize> =
        dims.iter().map(|&d| axis_of("dims", d, x.rank())).collect::<Result<_, _>>()?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    let all: Vec<usize> = (0..x.rank()).collect();
    ensure!(sorted == all, "dims: {dims:?}, expected each axis of shape {:?} once", x.dims);
    let from = x.permuted(&axes);
    out.expect_dtype(&[x.dtype])?.expect_dims(&from.dims)?.expect_contiguous()?;
    copying(from, out)
}

fn cat(a: &Args<'_>) -> Result<Work, Refusal> {
    let (parts, out) = (a.list("tensors")?, a.tensor("out")?);
    ensure!(!parts.is_empty(), "tensors: an empty list, expected at least one");
    let axis = a.axis("dim", out.rank())?;
    let mut at = 0;
    let mut pairs = Vec::new();
    for part in parts.iter().filter(|p| p.dims != [0]) {
        ensure!(!part.nz, "{}: format FRACTAL_NZ, expected ND", part.name);
        part.expect_dtype(&[out.dtype])?.expect_rank(out.rank(), out.rank())?;
        let mut dims = out.dims.clone();
        dims[axis] = part.dims[axis];
        part.expect_dims(&dims)?;
        let end = at + part.dims[axis];
        let (total, name) = (out.dims[axis], &out.name);
        ensure!(end <= total, "{name}: {total} along axis {axis}, the tensors have {end} or more");
        pairs.push((part.clone(), out.narrow(axis, at, part.dims[axis])));
        at = end;
    }
    let total = out.dims.get(axis).copied().unwrap_or(1);
    ensure!(at == total, "{}: {total} along axis {axis}, the tensors have {at}", out.name);
    Ok(Work::new(move |launch| {
        // All is read before anything is written: parts may be views of the result.
        let values: Vec<Vec<i64>> =
            pairs.iter().map(|(from, _)| launch.read(&raw(from))).collect::<Result<_, _>>()?;
        pairs.iter().zip(&values).try_for_each(|((_, to), part)| launch.write(&raw(to), part))
    }))
}

/// The view with floats as the whole numbers of their bits.
fn raw(view: &View) -> View {
    let mut view = view.clone();
    view.dtype = match view.dtype {
        DType::F32 => DType::I32,
        DType::F16 | DType::BF16 => DType::I16,
        other => other,
    };
    view
}

fn slice(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    x.expect_rank(1, 8)?;
    let axis = a.axis("dim", x.rank())?;
    let (len, step) = (x.dims[axis] as i64, a.int("step")?);
    ensure!(step > 0, "step: {step}, expected at least 1");
    let clamped = |v: i64| if v < 0 { v + len } else { v }.clamp(0, len);
    let (start, end) = (clamped(a.int("start")?), clamped(a.int("end")?));
    let count = (end - start).max(0).div_euclid(step) + i64::from((end - start).max(0) % step > 0);
    let mut from = x.narrow(axis, start as usize, count as usize);
    if count > 1 {
        from.strides[axis] *= step as usize;
    }
    out.expect_dtype(&[x.dtype])?.expect_dims(&from.dims)?;
    copying(from, out)
}

fn expand(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    let size = a.ints("size")?.unwrap_or_default();
    let lead = size.len().checked_sub(x.rank());
    let rank = x.rank();
    let Some(lead) = lead else {
        let text = format!("size: {size:?}, expected at least {rank} numbers");
        return Err(Refusal::new(crate::code::INVALID, text));
    };
    let kept: Vec<i64> = size
        .iter()
        .enumerate()
        .map(|(i, &d)| if d == -1 && i >= lead { x.dims[i - lead] as i64 } else { d })
        .collect();
    let from = x.expanded(&whole("size", &kept)?)?;
    out.expect_dtype(&[x.dtype])?.expect_dims(&from.dims)?;
    copying(from, out)
}

fn repeat(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    let repeats = whole("repeats", a.ints("repeats")?.unwrap_or_default())?;
    let lead = repeats.len().checked_sub(x.rank());
    let Some(lead) = lead else {
        let text = format!("repeats: {repeats:?}, expected at least {} numbers", x.rank());
        return Err(Refusal::new(crate::code::INVALID, text));
    };
    let own = [vec![1; lead], x.dims.clone()].concat();
    let dims: Vec<usize> = own.iter().zip(&repeats).map(|(d, r)| d * r).collect();
    out.expect_dtype(&[x.dtype])?.expect_dims(&dims)?;
    let out_strides = contiguous_strides(&dims);
    Ok(Work::new(move |launch| {
        let values: Vec<i64> = launch.read(&raw(&x))?;
        let own_strides = contiguous_strides(&own);
        let source = |at: usize| -> usize {
            (0..dims.len()).map(|i| at / out_strides[i] % dims[i] % own[i] * own_strides[i]).sum()
        };
        let tiled: Vec<i64> = (0..out.len()).map(|at| values[source(at)]).collect();
        launch.write(&raw(&out), &tiled)
    }))
}
