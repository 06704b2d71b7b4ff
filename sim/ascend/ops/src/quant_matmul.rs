//! Products with quantised matrices.

use crate::dtype::{DType, HALVES};
use crate::gemm::{Extent, int_rows_by_rows, rows_by_rows};
use crate::launch::{Fault, Launch};
use crate::nz::{Weight, unpacked};
use crate::op::{Args, Op, Param, Since, Work, flag, int32, int64, tensor};
use crate::quant::unpack_scale;
use crate::refusal::{Refusal, code, ensure};
use crate::view::View;

const WEIGHT_ONLY: &[Param] = &[
    tensor("x"),
    tensor("weight"),
    tensor("antiquantScale"),
    tensor("antiquantOffset").or_null(),
    tensor("quantScale").or_null(),
    tensor("quantOffset").or_null(),
    tensor("bias").or_null(),
    int32("antiquantGroupSize"),
    tensor("y").out(),
];
const WEIGHT_ONLY_V3: &[Param] = &[
    tensor("x"),
    tensor("weight"),
    tensor("antiquantScale"),
    tensor("antiquantOffset").or_null(),
    tensor("quantScale").or_null(),
    tensor("quantOffset").or_null(),
    tensor("bias").or_null(),
    int32("antiquantGroupSize"),
    int32("innerPrecise"),
    tensor("y").out(),
];
const BOTH: &[Param] = &[
    tensor("x1"),
    tensor("x2"),
    tensor("x1Scale").or_null(),
    tensor("x2Scale"),
    tensor("yScale").or_null(),
    tensor("x1Offset").or_null(),
    tensor("x2Offset").or_null(),
    tensor("yOffset").or_null(),
    tensor("bias").or_null(),
    flag("transposeX1"),
    flag("transposeX2"),
    int64("groupSize"),
    tensor("out").out(),
];

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "WeightQuantBatchMatmulV2",
        since: Since::V8_1,
        params: WEIGHT_ONLY,
        plan: weight_only,
    },
    Op {
        name: "WeightQuantBatchMatmulV3",
        since: Since::V8_1,
        params: WEIGHT_ONLY_V3,
        plan: weight_only,
    },
    Op {
        name: "QuantMatmulV4",
        since: Since::V8_1,
        params: &[
            tensor("x1"),
            tensor("x2"),
            tensor("scale"),
            tensor("offset").or_null(),
            tensor("pertokenScale").or_null(),
            tensor("bias").or_null(),
            flag("transposeX1"),
            flag("transposeX2"),
            tensor("out").out(),
        ],
        plan: |a| {
            let scales = Scales {
                channel: a.tensor("scale")?,
                token: a.optional("pertokenScale")?,
                offset: a.optional("offset")?,
            };
            both(a, scales)
        },
    },
    Op {
        name: "QuantMatmulV5",
        since: Since::V9_1,
        params: BOTH,
        plan: |a| {
            a.tensor("x2")?;
            newer(a)
        },
    },
    Op {
        name: "QuantMatmulWeightNz",
        since: Since::V8_1,
        params: BOTH,
        plan: |a| {
            ensure!(a.weight("x2")?.nz, "x2: format ND, expected FRACTAL_NZ");
            newer(a)
        },
    },
];

const WIDEST: usize = 65_535;

/// Scales and offsets of a quantised weight: `[G, N]` for groups of rows.
pub(crate) struct Antiquant {
    pub(crate) scale: View,
    pub(crate) offset: Option<View>,
    /// Rows of a group.
    pub(crate) group: usize,
}

impl Antiquant {
    /// Of `K` rows and `N` columns; the scale is of the whole, of a channel, or of a group of a channel.
    fn of(
        scale: &View,
        offset: Option<View>,
        [k, n]: [usize; 2],
        group: usize,
    ) -> Result<Self, Refusal> {
        let groups = if group == 0 { 1 } else { k.div_ceil(group) };
        let whole = group == 0 && scale.dims == [1];
        let flat = group == 0 && scale.dims == [n];
        ensure!(
            whole || flat || scale.dims == [groups, n],
            "{}: shape {:?}, expected {}[{groups}, {n}]",
            scale.name,
            scale.dims,
            if group == 0 { format!("[1], [{n}] or ") } else { String::new() }
        );
        if let Some(offset) = &offset {
            offset.expect_dtype(&[scale.dtype])?.expect_dims(&scale.dims)?;
        }
        let dims = [groups, n];
        let offset = offset.map(|view| view.expanded(&dims)).transpose()?;
        Ok(Self {
            scale: scale.expanded(&dims)?,
            offset,
            group: if group == 0 { k } else { group },
        })
    }

    /// Brings `N` rows of `K` codes to `(code + offset) · scale`.
    pub(crate) fn apply(
        &self,
        launch: &Launch<'_>,
        rows: &mut [f32],
        k: usize,
    ) -> Result<(), Fault> {
        let scales: Vec<f32> = launch.read(&self.scale)?;
        let offsets: Option<Vec<f32>> = self.offset.as_ref().map(|o| launch.read(o)).transpose()?;
        let n = self.scale.dims[1];
        for (column, row) in rows.chunks_exact_mut(k.max(1)).enumerate() {
            for (group, part) in row.chunks_mut(self.group.max(1)).enumerate() {
                let at = group * n + column;
                let (scale, offset) = (scales[at], offsets.as_ref().map_or(0.0, |o| o[at]));
                part.iter_mut().for_each(|v| *v = (*v + offset) * scale);
            }
        }
        Ok(())
    }
}

/// Checks what FRACTAL_NZ takes of weights in whole numbers.
fn check_nz(weight: &Weight, per_channel: bool, group: usize) -> Result<(), Refusal> {
    let view = weight.view();
    if !view.nz {
        return Ok(());
    }
    let (_, n) = weight.shape();
    let name = &view.name;
    if view.dtype == DType::I8 || weight.is_transposed() {
        ensure!(
            per_channel,
            "{name}: FRACTAL_NZ of {} with this antiquantScale, expected one a channel",
            view.dtype
        );
        return Ok(());
    }
    let fits = [64, 128].contains(&group) && n.is_multiple_of(64);
    ensure!(
        fits,
        "{name}: FRACTAL_NZ of INT4 with groups of {group} and {n} columns, expected 64 or 128 and a multiple of 64"
    );
    Ok(())
}

fn weight_only(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, y, view) = (a.tensor("x")?, a.tensor("y")?, unpacked(a.weight("weight")?));
    x.expect_dtype(HALVES)?.expect_rank(2, 2)?;
    view.expect_dtype(&[DType::I8, DType::I4])?.expect_rank(2, 2)?;
    let weight = Weight::of(view)?;
    let (k, n) = weight.shape();
    ensure!(
        x.last() == k,
        "weight: shape {:?}, expected {k} = {} rows as x has",
        weight.view().dims,
        x.last()
    );
    ensure!(
        (1..=WIDEST).contains(&k) && (1..=WIDEST).contains(&n),
        "weight: {k} by {n}, expected 1 to {WIDEST} each"
    );
    let group = a.int("antiquantGroupSize")?;
    ensure!(
        group == 0 || (group % 32 == 0 && (32..k as i64).contains(&group)),
        "antiquantGroupSize: {group}, expected 0 or a multiple of 32 from 32 to {}",
        k as i64 - 1
    );
    a.expect_null(&["quantScale", "quantOffset"], "with y of a float")?;
    if a.has("innerPrecise") {
        a.choice("innerPrecise", &[0, 1])?;
    }
    let scale = a.tensor("antiquantScale")?;
    scale.expect_dtype(&[x.dtype])?;
    check_nz(&weight, group == 0 && scale.len() == n, group as usize)?;
    let antiquant = Antiquant::of(&scale, a.optional("antiquantOffset")?, [k, n], group as usize)?;
    let bias = a.optional("bias")?;
    if let Some(bias) = &bias {
        let dtype = if x.dtype == DType::BF16 { DType::F32 } else { DType::F16 };
        bias.expect_dtype(&[dtype])?;
        ensure!(
            bias.dims == [n] || bias.dims == [1, n],
            "bias: shape {:?}, expected [{n}] or [1, {n}]",
            bias.dims
        );
    }
    let m = x.dims[0];
    y.expect_dtype(&[x.dtype])?.expect_dims(&[m, n])?;
    let workspace = u64::from(a.soc.cube_cores) * 4096;
    Ok(Work::new(move |launch| {
        let mut rows: Vec<f32> = weight.rows(launch, &[])?;
        antiquant.apply(launch, &mut rows, k)?;
        let mut out = rows_by_rows(&launch.read::<f32>(&x)?, &rows, Extent { m, n, k });
        if let Some(bias) = &bias {
            add_to_rows(&mut out, &launch.read::<f32>(bias)?);
        }
        launch.write(&y, &out)
    })
    .with_workspace(workspace))
}

pub(crate) fn add_to_rows(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
    }
}

/// What a product of whole numbers is multiplied by.
struct Scales {
    /// One, or one a column; packed to 64 bits where it is static.
    channel: View,
    token: Option<View>,
    /// Of a result of INT8.
    offset: Option<View>,
}

impl Scales {
    fn packed(&self) -> bool {
        matches!(self.channel.dtype, DType::U64 | DType::I64)
    }

    fn check(&self, out: &View, [m, n]: [usize; 2]) -> Result<(), Refusal> {
        let channel = &self.channel;
        channel.expect_dtype(&[DType::U64, DType::I64, DType::BF16, DType::F32])?;
        ensure!(
            [1, n].contains(&channel.len()) && channel.rank() <= 2,
            "{}: shape {:?}, expected [1] or [{n}]",
            channel.name,
            channel.dims
        );
        if let Some(token) = &self.token {
            token.expect_dtype(&[DType::F32])?.expect_dims(&[m])?;
        }
        out.expect_dtype(&[DType::BF16, DType::F16, DType::I8])?;
        let (scale, token) = (channel.dtype, self.token.is_some());
        let fits = match out.dtype {
            DType::BF16 => !self.packed(),
            DType::F16 => (scale == DType::F32 && token) || (self.packed() && !token),
            _ => self.packed() && !token,
        };
        ensure!(
            code::TILING; fits,
            "{}: dtype {} with a scale of {scale} {} scales of tokens: expected BFLOAT16 with a scale of BFLOAT16 or \
             FLOAT, FLOAT16 with FLOAT and scales of tokens or UINT64 without, INT8 with UINT64 without",
            out.name,
            out.dtype,
            if token { "and" } else { "without" }
        );
        if let Some(offset) = &self.offset {
            offset.expect_dtype(&[DType::F32])?;
            let fits = out.dtype == DType::I8 && [1, n].contains(&offset.len());
            ensure!(
                fits,
                "{}: given with {} of {}, expected null",
                offset.name,
                out.name,
                out.dtype
            );
        }
        Ok(())
    }

    /// The factor of each column, and what is added to it.
    fn columns(&self, launch: &Launch<'_>, n: usize) -> Result<(Vec<f32>, Vec<f32>), Fault> {
        let (mut scales, mut zeros) = if self.packed() {
            let packed: Vec<i64> = launch.read(&self.channel)?;
            packed.iter().map(|&p| unpack_scale(p)).unzip()
        } else {
            let scales: Vec<f32> = launch.read(&self.channel)?;
            let zeros = vec![0.0; scales.len()];
            (scales, zeros)
        };
        if let Some(offset) = &self.offset {
            zeros = launch.read(offset)?;
        }
        for values in [&mut scales, &mut zeros] {
            if values.len() == 1 {
                values.resize(n, values[0]);
            }
        }
        Ok((scales, zeros))
    }
}

fn newer(a: &Args<'_>) -> Result<Work, Refusal> {
    a.expect_null(&["yScale", "x1Offset", "x2Offset", "yOffset"], "with INT8 on an Atlas A2")?;
    let group = a.int("groupSize")?;
    ensure!(group == 0, "groupSize: {group}, expected 0 with INT8 on an Atlas A2");
    let scales =
        Scales { channel: a.tensor("x2Scale")?, token: a.optional("x1Scale")?, offset: None };
    both(a, scales)
}

/// A product of two matrices of whole numbers.
struct Both {
    x: View,
    w: Weight,
    scales: Scales,
    bias: Option<View>,
    out: View,
    size: Extent,
}

fn both(a: &Args<'_>, scales: Scales) -> Result<Work, Refusal> {
    let (mut x, mut w) = (unpacked(a.tensor("x1")?), unpacked(a.weight("x2")?));
    for view in [&x, &w] {
        view.expect_dtype(&[DType::I8, DType::I4])?.expect_rank(2, 2)?;
    }
    w.expect_dtype(&[x.dtype])?;
    let floats = scales.channel.dtype.is_float() && x.dtype == DType::I8;
    ensure!(
        floats || [x.last(), w.last()].iter().all(|&last| last <= WIDEST),
        "x1, x2: {} and {} along the last axes, expected at most {WIDEST}",
        x.last(),
        w.last()
    );
    if a.flag("transposeX1")? {
        x = x.transposed();
    }
    if a.flag("transposeX2")? {
        w = w.transposed();
    }
    let (m, k) = (x.dims[0], x.last());
    let weight = Weight::of(w)?;
    let (rows, n) = weight.shape();
    ensure!(rows == k, "x2: {rows} rows, expected {k} as x1 has columns");
    let out = a.tensor("out")?;
    out.expect_dims(&[m, n])?;
    scales.check(&out, [m, n])?;
    let bias = a.optional("bias")?;
    if let Some(bias) = &bias {
        let float =
            if scales.token.is_none() && out.dtype != DType::BF16 { DType::I32 } else { out.dtype };
        bias.expect_dtype(&[
            DType::I32,
            float,
            if float == DType::I32 { float } else { DType::F32 },
        ])?;
        bias.expect_dims(&[n])?;
    }
    let work = Both { x, w: weight, scales, bias, out, size: Extent { m, n, k } };
    let workspace = u64::from(a.soc.cube_cores) * 4096;
    Ok(Work::new(move |launch| work.run(launch)).with_workspace(workspace))
}

impl Both {
    fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let (x, w): (Vec<i32>, Vec<i32>) = (launch.read(&self.x)?, self.w.rows(launch, &[])?);
        let mut sums = int_rows_by_rows(&x, &w, self.size);
        let n = self.size.n;
        let whole = self.bias.as_ref().filter(|b| b.dtype == DType::I32);
        if let Some(bias) = whole {
            let bias: Vec<i32> = launch.read(bias)?;
            let rows = sums.chunks_exact_mut(n.max(1));
            rows.for_each(|row| {
                row.iter_mut().zip(&bias).for_each(|(s, b)| *s = s.wrapping_add(*b));
            });
        }
        let (scales, zeros) = self.scales.columns(launch, n)?;
        let tokens: Option<Vec<f32>> =
            self.scales.token.as_ref().map(|token| launch.read(token)).transpose()?;
        #[expect(clippy::cast_precision_loss, reason = "what dequantising does")]
        let mut out: Vec<f32> = sums
            .iter()
            .enumerate()
            .map(|(at, &sum)| {
                let token = tokens.as_ref().map_or(1.0, |t| t[at / n]);
                sum as f32 * scales[at % n] * token + zeros[at % n]
            })
            .collect();
        if let (Some(bias), None) = (&self.bias, whole) {
            add_to_rows(&mut out, &launch.read::<f32>(bias)?);
        }
        if self.out.dtype == DType::I8 {
            out.iter_mut().for_each(|v| *v = v.round_ties_even().clamp(-128.0, 127.0));
        }
        launch.write(&self.out, &out)
    }
}
