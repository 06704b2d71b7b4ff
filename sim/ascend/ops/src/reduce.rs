//! Sums along axes.

use crate::dtype::{FLOATS, NUMBERS};
use crate::op::{Args, Op, Param, Since, Work, axis_of, dtype, flag, int64, ints, tensor};
use crate::refusal::{Refusal, ensure};
use crate::view::View;

const SUM: &[Param] =
    &[tensor("self"), ints("dims"), flag("keepDims"), dtype("dtype"), tensor("out").out()];
const MEAN: &[Param] =
    &[tensor("self"), ints("dim"), flag("keepDim"), dtype("dtype"), tensor("out").out()];

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "ReduceSum",
        since: Since::V8_1,
        params: SUM,
        plan: |a| reduce(a, ["dims", "keepDims"], false),
    },
    Op {
        name: "Mean",
        since: Since::V8_1,
        params: MEAN,
        plan: |a| reduce(a, ["dim", "keepDim"], true),
    },
    Op {
        name: "Cumsum",
        since: Since::V8_1,
        params: &[tensor("self"), int64("dim"), dtype("dtype"), tensor("out").out()],
        plan: cumsum,
    },
];

/// The view with an axis moved behind the others, so that each of its rows lies along it; a number is one row.
pub(crate) fn along(view: &View, axis: usize) -> View {
    if view.rank() == 0 {
        return view.reshaped(&[1]);
    }
    let mut axes: Vec<usize> = (0..view.rank()).filter(|&a| a != axis).collect();
    axes.push(axis);
    view.permuted(&axes)
}

fn reduce(a: &Args<'_>, [dims, keep]: [&str; 2], mean: bool) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    x.expect_dtype(if mean { FLOATS } else { NUMBERS })?;
    out.expect_dtype(&[a.dtype("dtype")?])?.expect_dtype(if mean { FLOATS } else { NUMBERS })?;
    ensure!(
        !x.dtype.is_float() || out.dtype.is_float(),
        "out: dtype {} for a sum of {}, expected a float",
        out.dtype,
        x.dtype
    );
    // A number has an axis to name.
    let mut reduced = vec![false; x.rank().max(1)];
    let given = a.ints(dims)?.unwrap_or_default();
    for &dim in given {
        let axis = axis_of(dims, dim, x.rank())?;
        ensure!(!reduced[axis], "{dims}: {given:?}, expected each axis once");
        reduced[axis] = true;
    }
    if given.is_empty() {
        reduced.fill(true);
    }
    let (gone, kept): (Vec<usize>, Vec<usize>) = (0..x.rank()).partition(|&axis| reduced[axis]);
    let expected: Vec<usize> = if a.flag(keep)? {
        (0..x.rank()).map(|axis| if reduced[axis] { 1 } else { x.dims[axis] }).collect()
    } else {
        kept.iter().map(|&axis| x.dims[axis]).collect()
    };
    out.expect_dims(&expected)?;
    let count: usize = gone.iter().map(|&axis| x.dims[axis]).product();
    let rows = x.permuted(&[kept, gone].concat());
    #[expect(clippy::cast_precision_loss, reason = "what a mean divides by")]
    let divisor = if mean { count as f32 } else { 1.0 };
    Ok(Work::new(move |launch| {
        if rows.len() == 0 {
            return launch.write(&out, &vec![if mean { f32::NAN } else { 0.0 }; out.len()]);
        }
        if x.dtype.is_float() {
            let values: Vec<f32> = launch.read(&rows)?;
            let sums: Vec<f32> =
                values.chunks(count).map(|row| row.iter().sum::<f32>() / divisor).collect();
            return launch.write(&out, &sums);
        }
        let values: Vec<i64> = launch.read(&rows)?;
        let sums: Vec<i64> = values.chunks(count).map(|row| row.iter().sum()).collect();
        launch.write(&out, &sums)
    }))
}

fn cumsum(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out) = (a.tensor("self")?, a.tensor("out")?);
    x.expect_dtype(NUMBERS)?;
    out.expect_dtype(&[a.dtype("dtype")?])?.expect_dtype(NUMBERS)?.expect_dims(&x.dims)?;
    let axis = a.axis("dim", x.rank())?;
    let (x, out) = (along(&x, axis), along(&out, axis));
    Ok(Work::new(move |launch| {
        if out.dtype.is_float() {
            let mut values: Vec<f32> = launch.read(&x)?;
            running(&mut values, x.last(), |sum, v| sum + v);
            return launch.write(&out, &values);
        }
        let mut values: Vec<i64> = launch.read(&x)?;
        running(&mut values, x.last(), |sum, v| sum.wrapping_add(v));
        launch.write(&out, &values)
    }))
}

fn running<T: Copy>(values: &mut [T], len: usize, add: impl Fn(T, T) -> T) {
    for row in values.chunks_mut(len.max(1)) {
        for i in 1..row.len() {
            row[i] = add(row[i - 1], row[i]);
        }
    }
}
