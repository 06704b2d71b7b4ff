//! Reads and writes at indices that lie in device memory.

use crate::copy::transfer;
use crate::dtype::{ALL, DType, INDICES};
use crate::launch::{Fault, Launch};
use crate::op::{Args, Op, Param, Since, Work, int64, tensor};
use crate::reduce::along;
use crate::refusal::{Refusal, ensure};
use crate::view::View;

const SELECT: &[Param] = &[tensor("self"), int64("dim"), tensor("index"), tensor("out").out()];

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "Embedding",
        since: Since::V8_1,
        params: &[tensor("weight"), tensor("indices"), tensor("out").out()],
        plan: |a| {
            let (weight, indices) = (a.tensor("weight")?, a.tensor("indices")?);
            weight.expect_rank(2, 2)?;
            select(weight, 0, indices, a.tensor("out")?)
        },
    },
    Op {
        name: "IndexSelect",
        since: Since::V8_1,
        params: SELECT,
        plan: |a| {
            let mut index = a.tensor("index")?;
            index.expect_rank(0, 1)?;
            if index.rank() == 0 {
                index = index.reshaped(&[1]);
            }
            let x = a.tensor("self")?;
            select(x.clone(), a.axis("dim", x.rank())?, index, a.tensor("out")?)
        },
    },
    Op {
        name: "GatherV2",
        since: Since::V8_1,
        params: SELECT,
        plan: |a| {
            let x = a.tensor("self")?;
            select(x.clone(), a.axis("dim", x.rank())?, a.tensor("index")?, a.tensor("out")?)
        },
    },
    Op { name: "Gather", since: Since::V8_1, params: SELECT, plan: gather },
    Op {
        name: "ScatterNdUpdate",
        since: Since::V8_1,
        params: &[tensor("varRef").out(), tensor("indices"), tensor("updates")],
        plan: scatter_nd_update,
    },
    Op {
        name: "InplaceIndexCopy",
        since: Since::V8_1,
        params: &[tensor("selfRef").out(), int64("dim"), tensor("index"), tensor("source")],
        plan: index_copy,
    },
    Op {
        name: "InplaceScatterUpdate",
        since: Since::V8_1,
        params: &[tensor("data").out(), tensor("indices"), tensor("updates"), int64("axis")],
        plan: scatter_update,
    },
];

/// An index of device memory, below a bound.
pub(crate) fn checked(view: &View, index: i64, bound: usize) -> Result<usize, Fault> {
    let fits = usize::try_from(index).ok().filter(|&i| i < bound);
    fits.ok_or_else(|| {
        Fault::exception(format!("{}: {index}, expected from 0 to below {bound}", view.name))
    })
}

/// `out[.., i.., ..] = x[.., index[i..], ..]` along an axis.
fn select(x: View, axis: usize, index: View, out: View) -> Result<Work, Refusal> {
    x.expect_dtype(ALL)?.expect_rank(1, 8)?;
    index.expect_dtype(INDICES)?;
    let dims = [&x.dims[..axis], &index.dims, &x.dims[axis + 1..]].concat();
    out.expect_dims(&dims)?.expect_dtype(&[x.dtype])?;
    Ok(Work::new(move |launch| {
        let indices: Vec<i64> = launch.read(&index)?;
        for (number, &value) in indices.iter().enumerate() {
            let from = x.select(axis, checked(&index, value, x.dims[axis])?);
            transfer(launch, &from, &at_index(&out, axis, &index.dims, number))?;
        }
        Ok(())
    }))
}

/// The view without the axes from one on, at the index that a row-major number is in their dims.
fn at_index(view: &View, axis: usize, dims: &[usize], number: usize) -> View {
    let mut rest = number;
    let mut index = vec![0; dims.len()];
    for (place, &dim) in index.iter_mut().zip(dims).rev() {
        *place = rest % dim;
        rest /= dim;
    }
    index.iter().fold(view.clone(), |view, &i| view.select(axis, i))
}

fn gather(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, index, out) = (a.tensor("self")?, a.tensor("index")?, a.tensor("out")?);
    x.expect_dtype(ALL)?.expect_rank(1, 8)?;
    index.expect_dtype(INDICES)?.expect_rank(x.rank(), x.rank())?;
    let axis = a.axis("dim", x.rank())?;
    for other in (0..x.rank()).filter(|&other| other != axis) {
        ensure!(
            index.dims[other] <= x.dims[other],
            "index: shape {:?}, expected at most shape {:?} of self but along axis {axis}",
            index.dims,
            x.dims
        );
    }
    out.expect_dims(&index.dims)?.expect_dtype(&[x.dtype])?;
    Ok(Work::new(move |launch| {
        let mut cut = x.clone();
        (0..x.rank())
            .filter(|&other| other != axis)
            .for_each(|other| cut.dims[other] = index.dims[other]);
        // The axis last: a row of the source for each row of indices.
        let (source, rows) = (along(&cut, axis), along(&index, axis));
        let order: Vec<i64> = launch.read(&rows)?;
        let to = along(&out, axis);
        let places: Vec<usize> = order
            .iter()
            .enumerate()
            .map(|(at, &i)| {
                Ok(at / rows.last() * source.last() + checked(&index, i, source.last())?)
            })
            .collect::<Result<_, Fault>>()?;
        if x.dtype.is_float() {
            let values: Vec<f32> = launch.read(&source)?;
            return launch.write(&to, &places.iter().map(|&p| values[p]).collect::<Vec<_>>());
        }
        let values: Vec<i64> = launch.read(&source)?;
        launch.write(&to, &places.iter().map(|&p| values[p]).collect::<Vec<_>>())
    }))
}

fn scatter_nd_update(a: &Args<'_>) -> Result<Work, Refusal> {
    let (data, indices, updates) =
        (a.tensor("varRef")?, a.tensor("indices")?, a.tensor("updates")?);
    data.expect_dtype(ALL)?.expect_rank(1, 8)?;
    indices.expect_dtype(INDICES)?.expect_rank(1, 8)?;
    let depth = indices.last();
    ensure!(
        (1..=data.rank()).contains(&depth),
        "indices: {depth} along the last axis, expected 1 to {} for varRef of shape {:?}",
        data.rank(),
        data.dims
    );
    let lead = &indices.dims[..indices.rank() - 1];
    updates.expect_dtype(&[data.dtype])?.expect_dims(&[lead, &data.dims[depth..]].concat())?;
    let lead = lead.to_vec();
    Ok(Work::new(move |launch| {
        let rows: Vec<i64> = launch.read(&indices)?;
        for (number, row) in rows.chunks_exact(depth).enumerate() {
            let mut to = data.clone();
            for &index in row {
                to = to.select(0, checked(&indices, index, to.dims[0])?);
            }
            transfer(launch, &at_index(&updates, 0, &lead, number), &to)?;
        }
        Ok(())
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn index_copy(a: &Args<'_>) -> Result<Work, Refusal> {
    let (data, index, source) = (a.tensor("selfRef")?, a.tensor("index")?, a.tensor("source")?);
    data.expect_dtype(ALL)?.expect_rank(1, 8)?;
    index.expect_dtype(INDICES)?.expect_rank(1, 1)?;
    let axis = a.axis("dim", data.rank())?;
    let mut dims = data.dims.clone();
    dims[axis] = index.len();
    source.expect_dtype(&[data.dtype])?.expect_dims(&dims)?;
    Ok(Work::new(move |launch| {
        let indices: Vec<i64> = launch.read(&index)?;
        for (number, &value) in indices.iter().enumerate() {
            let to = data.select(axis, checked(&index, value, data.dims[axis])?);
            transfer(launch, &source.select(axis, number), &to)?;
        }
        Ok(())
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

/// Writes, for each batch, a run of positions from its index on.
fn scatter_update(a: &Args<'_>) -> Result<Work, Refusal> {
    let (data, indices, updates) = (a.tensor("data")?, a.tensor("indices")?, a.tensor("updates")?);
    data.expect_dtype(&[DType::F16, DType::BF16, DType::F32, DType::I8, DType::I32])?
        .expect_rank(3, 8)?;
    indices.expect_dtype(INDICES)?.expect_rank(1, 1)?;
    updates.expect_dtype(&[data.dtype])?.expect_rank(data.rank(), data.rank())?;
    let axis = a.axis("axis", data.rank())?;
    ensure!(axis > 0, "axis: {axis}, expected none of the batch");
    let mut dims = data.dims.clone();
    dims[axis] = updates.dims[axis];
    updates.expect_dims(&dims)?;
    indices.expect_dims(&[data.dims[0]])?;
    Ok(Work::new(move |launch| write_runs(launch, [&data, &indices, &updates], axis)))
}

fn write_runs(
    launch: &Launch<'_>,
    [data, indices, updates]: [&View; 3],
    axis: usize,
) -> Result<(), Fault> {
    let run = updates.dims[axis];
    let starts: Vec<i64> = launch.read(indices)?;
    for (batch, &start) in starts.iter().enumerate() {
        let bound = (data.dims[axis] + 1).saturating_sub(run);
        let to = data.select(0, batch).narrow(axis - 1, checked(indices, start, bound)?, run);
        transfer(launch, &updates.select(0, batch), &to)?;
    }
    Ok(())
}
