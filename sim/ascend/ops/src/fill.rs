//! Values from scalars, masks and positions.

use crate::arg::Scalar;
use crate::dtype::{ALL, DType, NUMBERS};
use crate::elementwise::expect_castable;
use crate::launch::{Fault, Launch, Number};
use crate::op::{Args, Op, Since, Work, int64, scalar, tensor};
use crate::refusal::{Refusal, ensure};
use crate::view::{View, broadcast};

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "InplaceZero",
        since: Since::V8_1,
        params: &[tensor("selfRef").out()],
        plan: |a| filled(a.tensor("selfRef")?, Scalar::Int(0)),
    },
    Op {
        name: "InplaceFillScalar",
        since: Since::V8_1,
        params: &[tensor("selfRef").out(), scalar("value")],
        plan: |a| filled(a.tensor("selfRef")?, a.scalar("value")?),
    },
    Op {
        name: "Arange",
        since: Since::V8_1,
        params: &[scalar("start"), scalar("end"), scalar("step"), tensor("out").out()],
        plan: arange,
    },
    Op {
        name: "SWhere",
        since: Since::V8_1,
        params: &[tensor("condition"), tensor("self"), tensor("other"), tensor("out").out()],
        plan: select,
    },
    Op {
        name: "InplaceMaskedFillScalar",
        since: Since::V8_1,
        params: &[tensor("selfRef").out(), tensor("mask"), scalar("value")],
        plan: masked_fill,
    },
    Op {
        name: "Triu",
        since: Since::V8_1,
        params: &[tensor("self"), int64("diagonal"), tensor("out").out()],
        plan: triu,
    },
];

fn write_scalars(
    launch: &Launch<'_>,
    out: &View,
    value: impl Fn(usize) -> Scalar,
) -> Result<(), Fault> {
    if out.dtype.is_float() {
        let values: Vec<f32> = (0..out.len()).map(|i| value(i).float() as f32).collect();
        return launch.write(out, &values);
    }
    let values: Vec<i64> = (0..out.len()).map(|i| value(i).int()).collect();
    launch.write(out, &values)
}

fn filled(out: View, value: Scalar) -> Result<Work, Refusal> {
    out.expect_dtype(ALL)?;
    Ok(Work::new(move |launch| write_scalars(launch, &out, |_| value)))
}

fn arange(a: &Args<'_>) -> Result<Work, Refusal> {
    let (start, end, step) = (a.scalar("start")?, a.scalar("end")?, a.scalar("step")?);
    let out = a.tensor("out")?;
    out.expect_dtype(NUMBERS)?;
    let (first, width) = (start.float(), step.float());
    ensure!(width != 0.0 && width.is_finite(), "step: {width}, expected a number other than 0");
    let count = ((end.float() - first) / width).ceil();
    ensure!(
        (0.0..1e15).contains(&count),
        "step: {width} never leads from {first} to {}",
        end.float()
    );
    out.expect_dims(&[count as usize])?;
    let whole = [start, end, step].iter().all(|s| matches!(s, Scalar::Int(_)));
    #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^52")]
    Ok(Work::new(move |launch| {
        write_scalars(launch, &out, |i| {
            if whole {
                Scalar::Int(start.int() + i as i64 * step.int())
            } else {
                Scalar::Float(first + i as f64 * width)
            }
        })
    }))
}

fn choose<T: Copy>(condition: &[i64], yes: &[T], no: &[T]) -> Vec<T> {
    let pairs = condition.iter().zip(yes.iter().zip(no));
    pairs.map(|(&c, (&y, &n))| if c != 0 { y } else { n }).collect()
}

/// The elements of an operand of which those are taken whose mask is so; what is in it does not matter if there are none.
fn taken<T: Number>(
    launch: &Launch<'_>,
    from: &View,
    mask: &[i64],
    so: bool,
) -> Result<Vec<T>, Fault> {
    if mask.iter().any(|&m| (m != 0) == so) {
        launch.read(from)
    } else {
        Ok(vec![T::default(); mask.len()])
    }
}

fn selected<T: Number>(
    launch: &Launch<'_>,
    mask: &[i64],
    (x, y, out): (&View, &View, &View),
) -> Result<(), Fault> {
    let (yes, no) = (taken::<T>(launch, x, mask, true)?, taken::<T>(launch, y, mask, false)?);
    launch.write(out, &choose(mask, &yes, &no))
}

fn select(a: &Args<'_>) -> Result<Work, Refusal> {
    let (condition, x, y) = (a.tensor("condition")?, a.tensor("self")?, a.tensor("other")?);
    let out = a.tensor("out")?;
    condition.expect_dtype(&[DType::Bool, DType::U8])?;
    x.expect_dtype(ALL)?;
    y.expect_dtype(ALL)?;
    let mut all = x.clone();
    all.dims = broadcast(&x, &y)?;
    let dims = broadcast(&condition, &all)?;
    let promoted = x.dtype.promote(y.dtype);
    expect_castable(promoted, &out)?;
    out.expect_dims(&dims)?.expect_dtype(&[promoted])?;
    let (condition, x, y) = (condition.expanded(&dims)?, x.expanded(&dims)?, y.expanded(&dims)?);
    Ok(Work::new(move |launch| {
        let mask: Vec<i64> = launch.read(&condition)?;
        if promoted.is_float() {
            selected::<f32>(launch, &mask, (&x, &y, &out))
        } else {
            selected::<i64>(launch, &mask, (&x, &y, &out))
        }
    }))
}

fn masked_fill(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, mask, value) = (a.tensor("selfRef")?, a.tensor("mask")?, a.scalar("value")?);
    x.expect_dtype(ALL)?;
    mask.expect_dtype(&[DType::Bool])?;
    let mask = mask.expanded(&x.dims)?;
    Ok(Work::new(move |launch| {
        let hidden: Vec<i64> = launch.read(&mask)?;
        if x.dtype.is_float() {
            let fill = vec![value.float() as f32; x.len()];
            return launch.write(&x, &choose::<f32>(&hidden, &fill, &launch.read(&x)?));
        }
        let fill = vec![value.int(); x.len()];
        launch.write(&x, &choose::<i64>(&hidden, &fill, &launch.read(&x)?))
    }))
}

fn triu(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, out, diagonal) = (a.tensor("self")?, a.tensor("out")?, a.int("diagonal")?);
    x.expect_dtype(ALL)?.expect_rank(2, 8)?;
    out.expect_dims(&x.dims)?.expect_dtype(&[x.dtype])?;
    let (rows, columns) = (x.dims[x.rank() - 2], x.last());
    let kept = move |i: usize| (i % columns) as i64 - (i / columns % rows) as i64 >= diagonal;
    Ok(Work::new(move |launch| {
        if x.dtype.is_float() {
            let mut values: Vec<f32> = launch.read(&x)?;
            values.iter_mut().enumerate().filter(|(i, _)| !kept(*i)).for_each(|(_, v)| *v = 0.0);
            return launch.write(&out, &values);
        }
        let mut values: Vec<i64> = launch.read(&x)?;
        values.iter_mut().enumerate().filter(|(i, _)| !kept(*i)).for_each(|(_, v)| *v = 0);
        launch.write(&out, &values)
    }))
}
