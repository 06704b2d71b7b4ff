//! Products of dense matrices.

use crate::dtype::{DType, FLOATS, HALVES};
use crate::gemm::{Extent, rows_by_rows};
use crate::launch::{Fault, Launch};
use crate::nz::Weight;
use crate::op::{Args, Op, Param, Since, Work, int8, int32, ints, tensor};
use crate::refusal::{Refusal, code, ensure};
use crate::view::{View, broadcast_dims};
use std::ops::RangeInclusive;

const PARAMS: &[Param] =
    &[tensor("self"), tensor("mat2"), tensor("out").out(), int8("cubeMathType")];

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op { name: "Mm", since: Since::V8_1, params: PARAMS, plan: |a| plan(a, 2..=2, false) },
    Op { name: "Matmul", since: Since::V8_1, params: PARAMS, plan: |a| plan(a, 1..=6, false) },
    Op { name: "BatchMatMul", since: Since::V8_1, params: PARAMS, plan: |a| plan(a, 3..=3, false) },
    Op {
        name: "TransposeBatchMatMul",
        since: Since::V9_1,
        params: &[
            tensor("x1"),
            tensor("x2"),
            tensor("bias").or_null(),
            tensor("scale").or_null(),
            ints("permX1"),
            ints("permX2"),
            ints("permY"),
            int8("cubeMathType"),
            int32("batchSplitFactor"),
            tensor("out").out(),
        ],
        plan: transposed,
    },
    Op {
        name: "MatmulWeightNz",
        since: Since::V8_5,
        params: PARAMS,
        plan: |a| plan(a, 2..=2, true),
    },
];

/// What a float of 32 bits keeps in the cube unit.
#[derive(Clone, Copy, PartialEq)]
enum Precision {
    Full,
    /// Ten bits of the fraction.
    Hf32,
    Half,
}

fn precision(a: &Args<'_>, dtypes: &[DType]) -> Result<Precision, Refusal> {
    let cube = a.choice("cubeMathType", &[0, 1, 2, 3, 4])?;
    let bf16 = dtypes.contains(&DType::BF16);
    ensure!(
        cube != 2 || !bf16,
        "cubeMathType: 2 (use FLOAT16) with BFLOAT16, expected 0, 1, 3 or 4"
    );
    Ok(match cube {
        1 | 3 => Precision::Hf32,
        2 => Precision::Half,
        _ => Precision::Full,
    })
}

/// Rounds floats to what the cube unit multiplies.
fn rounded(mut values: Vec<f32>, precision: Precision) -> Vec<f32> {
    match precision {
        Precision::Full => {}
        Precision::Half => {
            values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
        Precision::Hf32 => values.iter_mut().filter(|v| v.is_finite()).for_each(|v| *v = hf32(*v)),
    }
    values
}

/// A float with 10 bits of fraction, ties to even.
fn hf32(value: f32) -> f32 {
    const LOW: u32 = (1 << 13) - 1;
    let bits = value.to_bits();
    f32::from_bits((bits + (LOW >> 1) + ((bits >> 13) & 1)) & !LOW)
}

/// The product's matrices with the batch dims of both.
struct Product {
    x: View,
    w: Weight,
    out: View,
    batch: Vec<usize>,
    size: Extent,
    precision: Precision,
}

fn check_dtypes(x: &View, w: &View, out: &View) -> Result<(), Refusal> {
    x.expect_dtype(FLOATS)?;
    w.expect_dtype(FLOATS)?;
    ensure!(
        (x.dtype == DType::BF16) == (w.dtype == DType::BF16),
        "mat2: dtype {} with self of {}, expected no mix with BFLOAT16",
        w.dtype,
        x.dtype
    );
    out.expect_dtype(&[x.dtype.promote(w.dtype)])?;
    Ok(())
}

fn plan(a: &Args<'_>, ranks: RangeInclusive<usize>, nz: bool) -> Result<Work, Refusal> {
    let (mut x, mut w, mut out) = (a.tensor("self")?, a.weight("mat2")?, a.tensor("out")?);
    check_dtypes(&x, &w, &out)?;
    for view in [&x, &w] {
        view.expect_rank(*ranks.start(), *ranks.end())?;
    }
    ensure!(!nz || w.nz, "mat2: format ND, expected FRACTAL_NZ");
    ensure!(!w.nz || w.rank() == 2, "mat2: {} dims of FRACTAL_NZ, expected 2", w.rank());
    ensure!(!w.nz || w.dtype.bits() == 16, "mat2: FRACTAL_NZ of {}, expected 16 bits", w.dtype);
    let precision = precision(a, &[x.dtype, w.dtype])?;
    let (vector_x, vector_w) = (x.rank() == 1, w.rank() == 1);
    x = if vector_x { with_axis(&x, 0) } else { x };
    w = if vector_w { with_axis(&w, 1) } else { w };
    let expected = product_dims(&x, &w)?;
    let mut told = expected.clone();
    if vector_w {
        told.pop();
    }
    if vector_x {
        told.remove(told.len() - if vector_w { 1 } else { 2 });
    }
    out.expect_dims(&told)?;
    if vector_x {
        out = with_axis(&out, told.len() - usize::from(!vector_w));
    }
    out = if vector_w { with_axis(&out, expected.len() - 1) } else { out };
    let (batch, [m, n]) =
        (expected[..expected.len() - 2].to_vec(), [x.dims[x.rank() - 2], w.last()]);
    let size = Extent { m, n, k: x.last() };
    let x = x.expanded(&[&batch[..], &[m, size.k]].concat())?;
    if !w.nz {
        w = w.expanded(&[&batch[..], &[size.k, n]].concat())?;
    }
    let product = Product { x, w: Weight::of(w)?, out, batch, size, precision };
    let workspace = u64::from(a.soc.cube_cores) * 2048;
    Ok(Work::new(move |launch| product.run(launch)).with_workspace(workspace))
}

/// `[M, B, N] = [M or B, B or M, K] · [B, K, N]`, for latent attention's products of each head.
fn transposed(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, w, out) = (a.tensor("x1")?, a.tensor("x2")?, a.tensor("out")?);
    check_dtypes(&x, &w, &out)?;
    x.expect_dtype(HALVES)?.expect_rank(3, 3)?;
    w.expect_rank(3, 3)?;
    a.expect_null(&["bias", "scale"], "here")?;
    let perm = |name: &str| a.ints(name).map(Option::unwrap_or_default);
    let (first, second, result) = (perm("permX1")?, perm("permX2")?, perm("permY")?);
    let turned = first == [1, 0, 2];
    ensure!(turned || first == [0, 1, 2], "permX1: {first:?}, expected [1, 0, 2] or [0, 1, 2]");
    ensure!(second == [0, 1, 2], "permX2: {second:?}, expected [0, 1, 2]");
    ensure!(result == [1, 0, 2], "permY: {result:?}, expected [1, 0, 2]");
    let split = a.int("batchSplitFactor")?;
    ensure!(split == 1, "batchSplitFactor: {split}, expected 1 here");
    let x = if turned { x.permuted(&[1, 0, 2]) } else { x };
    let (batch, m, k, n) = (x.dims[0], x.dims[1], x.dims[2], w.dims[2]);
    w.expect_dims(&[batch, k, n])?;
    out.expect_dims(&[m, batch, n])?;
    let precision = precision(a, &[x.dtype])?;
    let (out, size) = (out.permuted(&[1, 0, 2]), Extent { m, n, k });
    let product = Product { x, w: Weight::of(w)?, out, batch: vec![batch], size, precision };
    let workspace = u64::from(a.soc.cube_cores) * 2048;
    Ok(Work::new(move |launch| product.run(launch)).with_workspace(workspace))
}

/// The view with one more axis of one element.
fn with_axis(view: &View, axis: usize) -> View {
    let mut view = view.clone();
    view.dims.insert(axis, 1);
    view.strides.insert(axis, 0);
    view
}

fn product_dims(x: &View, w: &View) -> Result<Vec<usize>, Refusal> {
    let (rx, rw) = (x.rank(), w.rank());
    let k = x.last();
    ensure!(
        w.dims[rw - 2] == k,
        "mat2: shape {:?}, expected {k} rows for self of shape {:?}",
        w.dims,
        x.dims
    );
    let batch = broadcast_dims(&x.dims[..rx - 2], &w.dims[..rw - 2]);
    let Some(batch) = batch else {
        let text =
            format!("mat2: shape {:?} does not broadcast with shape {:?} of self", w.dims, x.dims);
        return Err(Refusal::new(code::INVALID, text));
    };
    Ok([&batch[..], &[x.dims[rx - 2], w.last()]].concat())
}

impl Product {
    fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let shared =
            self.w.view().nz || self.w.view().strides[..self.batch.len()].iter().all(|&s| s == 0);
        let mut rows = Vec::new();
        for (number, index) in indices(&self.batch).into_iter().enumerate() {
            if number == 0 || !shared {
                let at: &[usize] = if self.w.view().nz { &[] } else { &index };
                rows = rounded(self.w.rows(launch, at)?, self.precision);
            }
            let select =
                |view: &View| index.iter().fold(view.clone(), |view, &i| view.select(0, i));
            let x = rounded(launch.read(&select(&self.x))?, self.precision);
            launch.write(&select(&self.out), &rows_by_rows(&x, &rows, self.size))?;
        }
        Ok(())
    }
}

/// Every index of dims, row-major; one empty index of no dims.
fn indices(dims: &[usize]) -> Vec<Vec<usize>> {
    dims.iter().fold(vec![Vec::new()], |all, &dim| {
        all.iter().flat_map(|head| (0..dim).map(move |i| [&head[..], &[i]].concat())).collect()
    })
}
