//! Weights brought to the form that matrix units read.

use crate::dtype::DType;
use crate::index::checked;
use crate::launch::{Fault, Launch, Number};
use crate::nz::{storage_dims, unpacked, write_nz};
use crate::op::{Args, Op, Since, Work, tensor};
use crate::refusal::{Refusal, ensure};
use crate::view::View;

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "TransMatmulWeight",
        since: Since::V8_1,
        params: &[tensor("mmWeightRef").out()],
        plan: trans_weight,
    },
    Op {
        name: "NpuFormatCast",
        since: Since::V9_1,
        params: &[tensor("srcTensor"), tensor("dstTensor").out()],
        plan: cast,
    },
    Op {
        name: "ConvertWeightToINT4Pack",
        since: Since::V8_1,
        params: &[tensor("weight"), tensor("weightInt4Pack").out()],
        plan: pack,
    },
];

/// Elements that a matrix `[…, R, C]` takes as FRACTAL_NZ: what `CalculateMatmulWeightSizeV2` gives.
///
/// # Errors
/// 161002 for a dtype other than FLOAT16, BFLOAT16 and INT8, or fewer than two dims.
pub fn matmul_weight_elements(dims: &[i64], dtype: i32) -> Result<u64, Refusal> {
    let storage = cast_storage_dims(dims, dtype)?;
    Ok(storage.iter().map(|&d| d as u64).product())
}

/// The storage of a matrix `[…, R, C]` as FRACTAL_NZ: what `NpuFormatCastCalculateSizeAndFormat` gives.
///
/// # Errors
/// 161002 for a dtype other than FLOAT16, BFLOAT16 and INT8, or fewer than two dims.
pub fn cast_storage_dims(dims: &[i64], dtype: i32) -> Result<Vec<i64>, Refusal> {
    let known = DType::of(dtype).filter(|d| matches!(d, DType::F16 | DType::BF16 | DType::I8));
    let Some(known) = known else {
        let text = format!("dtype: aclDataType {dtype}, expected FLOAT16, BFLOAT16 or INT8");
        return Err(Refusal::new(crate::code::INVALID, text));
    };
    let fits = dims.len() >= 2 && dims.iter().all(|&d| d >= 0);
    ensure!(fits, "shape: {dims:?}, expected at least two dims, none below 0");
    let (batch, matrix) = dims.split_at(dims.len() - 2);
    let storage = storage_dims(known, matrix[0] as usize, matrix[1] as usize);
    Ok(batch.iter().copied().chain(storage.iter().map(|&d| d as i64)).collect())
}

/// Writes row-major matrices, one a batch, as FRACTAL_NZ.
fn write_batches<T: Number>(launch: &Launch<'_>, to: &View, values: &[T]) -> Result<(), Fault> {
    let rank = to.rank();
    let (rows, columns) = (to.dims[rank - 2], to.dims[rank - 1]);
    let matrices = values.chunks_exact((rows * columns).max(1));
    matrices
        .enumerate()
        .try_for_each(|(batch, matrix)| write_nz(launch, to, matrix, columns, batch))
}

fn recast(launch: &Launch<'_>, from: &View, to: &View) -> Result<(), Fault> {
    if from.dtype.is_float() {
        return write_batches::<f32>(launch, to, &launch.read(from)?);
    }
    write_batches::<i64>(launch, to, &launch.read(from)?)
}

/// Rewrites a weight in place; the buffer must have room for full fractals.
fn trans_weight(a: &Args<'_>) -> Result<Work, Refusal> {
    let weight = a.tensor("mmWeightRef")?;
    weight.expect_dtype(&[DType::F16, DType::BF16, DType::I8])?.expect_rank(2, 6)?;
    weight.expect_contiguous()?;
    ensure!(weight.offset == 0, "mmWeightRef: offset {}, expected 0", weight.offset);
    let workspace = weight.bytes();
    Ok(Work::new(move |launch| recast(launch, &weight, &weight)).with_workspace(workspace))
}

fn expect_storage(view: &View) -> Result<(), Refusal> {
    let (batch, matrix) = view.dims.split_at(view.rank() - 2);
    let expected = [batch, &storage_dims(view.dtype, matrix[0], matrix[1])].concat();
    ensure!(
        view.storage == expected && view.offset == 0,
        "{}: FRACTAL_NZ storage shape {:?} with offset {}, expected {expected:?} and 0",
        view.name,
        view.storage,
        view.offset
    );
    Ok(())
}

fn cast(a: &Args<'_>) -> Result<Work, Refusal> {
    let (from, to) = (a.tensor("srcTensor")?, a.weight("dstTensor")?);
    to.expect_dtype(&[from.dtype])?.expect_dims(&from.dims)?;
    let (from, to) = (unpacked(from), unpacked(to));
    from.expect_dtype(&[DType::F16, DType::BF16, DType::I8, DType::I4])?.expect_rank(2, 6)?;
    ensure!(to.nz, "dstTensor: format ND, expected FRACTAL_NZ");
    to.expect_contiguous()?;
    expect_storage(&to)?;
    Ok(Work::new(move |launch| recast(launch, &from, &to))
        .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn pack(a: &Args<'_>) -> Result<Work, Refusal> {
    let (from, packed) = (a.tensor("weight")?, a.weight("weightInt4Pack")?);
    from.expect_dtype(&[DType::I32])?.expect_rank(2, 3)?.expect_contiguous()?;
    packed.expect_dtype(&[DType::I32, DType::I4])?.expect_contiguous()?;
    let each = if packed.dtype == DType::I32 { 8 } else { 2 };
    let last = from.last();
    ensure!(
        last.is_multiple_of(each),
        "weight: {last} along the last axis, expected a multiple of {each}"
    );
    let to = unpacked(packed);
    to.expect_dims(&from.dims)?;
    if to.nz {
        expect_storage(&to)?;
    }
    Ok(Work::new(move |launch| {
        let codes: Vec<i64> = launch.read(&from)?;
        codes.iter().try_for_each(|&code| checked(&from, code + 8, 16).map(drop))?;
        if to.nz { write_batches(launch, &to, &codes) } else { launch.write(&to, &codes) }
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}
