//! Whole numbers with scales, from floats.

use crate::activation::swiglu_rows;
use crate::dtype::{DType, FLOATS, HALVES};
use crate::launch::{Fault, Launch};
use crate::norm::Residual;
use crate::op::{Args, Op, Since, Work, axis_of, flag, float, int64, tensor, text};
use crate::refusal::{Refusal, code, ensure};
use crate::view::View;

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "DynamicQuant",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("smoothScales").or_null(),
            tensor("yOut").out(),
            tensor("scaleOut").out(),
        ],
        plan: dynamic,
    },
    Op {
        name: "DynamicQuantV2",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("smoothScales").or_null(),
            tensor("groupIndex").or_null(),
            int64("dstType"),
            tensor("yOut").out(),
            tensor("scaleOut").out(),
            tensor("offsetOut").or_null().out(),
        ],
        plan: dynamic,
    },
    Op {
        name: "TransQuantParamV2",
        since: Since::V8_1,
        params: &[tensor("scale"), tensor("offset").or_null(), tensor("out").out()],
        plan: trans_quant_param,
    },
    Op {
        name: "AddRmsNormQuant",
        since: Since::V8_1,
        params: &[
            tensor("x1"),
            tensor("x2"),
            tensor("gamma"),
            tensor("scales1"),
            tensor("scales2").or_null(),
            tensor("zeroPoints1").or_null(),
            tensor("zeroPoints2").or_null(),
            int64("axis"),
            float("epsilon"),
            flag("divMode"),
            tensor("y1Out").out(),
            tensor("y2Out").or_null().out(),
            tensor("xOut").out(),
        ],
        plan: norm_static,
    },
    Op {
        name: "AddRmsNormDynamicQuant",
        since: Since::V8_1,
        params: &[
            tensor("x1"),
            tensor("x2"),
            tensor("gamma"),
            tensor("smoothScale1").or_null(),
            tensor("smoothScale2").or_null(),
            float("epsilon"),
            tensor("y1Out").out(),
            tensor("y2Out").or_null().out(),
            tensor("xOut").out(),
            tensor("scale1Out").out(),
            tensor("scale2Out").or_null().out(),
        ],
        plan: norm_dynamic,
    },
    Op {
        name: "DequantSwigluQuant",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("weightScale").or_null(),
            tensor("activationScale").or_null(),
            tensor("bias").or_null(),
            tensor("quantScale").or_null(),
            tensor("quantOffset").or_null(),
            tensor("groupIndex").or_null(),
            flag("activateLeft"),
            text("quantMode").or_null(),
            tensor("yOut").out(),
            tensor("scaleOut").out(),
        ],
        plan: dequant_swiglu,
    },
];

/// Codes of a row from `−limit` to `limit`, and what they are multiplied by.
pub(crate) fn quantised_row(row: &[f32], limit: f32) -> (Vec<f32>, f32) {
    let most = row.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let scale = most / limit;
    if scale == 0.0 {
        return (vec![0.0; row.len()], 0.0);
    }
    let code = |v: &f32| (v / scale).round_ties_even().clamp(-limit - 1.0, limit);
    (row.iter().map(code).collect(), scale)
}

/// The largest code of a dtype.
fn limit(dtype: DType) -> f32 {
    if dtype == DType::I4 { 7.0 } else { 127.0 }
}

fn dynamic(a: &Args<'_>) -> Result<Work, Refusal> {
    let (x, smooth) = (a.tensor("x")?, a.optional("smoothScales")?);
    let (y, scale) = (a.tensor("yOut")?, a.tensor("scaleOut")?);
    x.expect_dtype(HALVES)?.expect_rank(2, 8)?;
    y.expect_dtype(&[DType::I8, DType::I4])?.expect_dims(&x.dims)?;
    if a.has("dstType") {
        a.expect_null(&["groupIndex"], "here")?;
        let wanted = if y.dtype == DType::I8 { 2 } else { 29 };
        a.choice("dstType", &[wanted])?;
    }
    let lead = &x.dims[..x.rank() - 1];
    scale.expect_dtype(&[DType::F32])?.expect_dims(lead)?;
    let offset = if a.has("offsetOut") { a.optional("offsetOut")? } else { None };
    if let Some(offset) = &offset {
        offset.expect_dtype(&[DType::F32])?.expect_dims(lead)?;
    }
    if let Some(smooth) = &smooth {
        smooth.expect_dtype(&[x.dtype])?.expect_dims(&[x.last()])?;
    }
    let workspace = u64::from(a.soc.vector_cores) * 64;
    Ok(Work::new(move |launch| {
        let rows = smoothed(launch, &x, smooth.as_ref())?;
        let limit = limit(y.dtype);
        let (mut codes, mut scales, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows.chunks_exact(x.last().max(1)) {
            if offset.is_some() {
                let (row, scale, zero) = asymmetric_row(row, limit);
                codes.extend(row);
                scales.push(scale);
                offsets.push(zero);
            } else {
                let (row, scale) = quantised_row(row, limit);
                codes.extend(row);
                scales.push(scale);
            }
        }
        launch.write(&y, &codes)?;
        launch.write(&scale, &scales)?;
        offset.as_ref().map_or(Ok(()), |view| launch.write(view, &offsets))
    })
    .with_workspace(workspace))
}

/// Codes over the whole range, what they are multiplied by once the offset is taken off, and the offset.
fn asymmetric_row(row: &[f32], limit: f32) -> (Vec<f32>, f32, f32) {
    let most = row.iter().fold(f32::NEG_INFINITY, |most, v| most.max(*v));
    let least = row.iter().fold(f32::INFINITY, |least, v| least.min(*v));
    let scale = (most - least) / (2.0 * limit + 1.0);
    if scale == 0.0 {
        return (vec![0.0; row.len()], 0.0, 0.0);
    }
    let offset = limit - most / scale;
    let code = |v: &f32| (v / scale + offset).round_ties_even().clamp(-limit - 1.0, limit);
    (row.iter().map(code).collect(), scale, offset)
}

fn smoothed(launch: &Launch<'_>, x: &View, smooth: Option<&View>) -> Result<Vec<f32>, Fault> {
    let mut rows: Vec<f32> = launch.read(x)?;
    if let Some(smooth) = smooth {
        scale_rows(&mut rows, &launch.read::<f32>(smooth)?);
    }
    Ok(rows)
}

fn scale_rows(rows: &mut [f32], factors: &[f32]) {
    for row in rows.chunks_exact_mut(factors.len().max(1)) {
        row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
    }
}

/// Scales with 19 bits in the low half of 64, and the offset's nine bits from bit 37 on.
fn trans_quant_param(a: &Args<'_>) -> Result<Work, Refusal> {
    let (scale, offset, out) = (a.tensor("scale")?, a.optional("offset")?, a.tensor("out")?);
    scale.expect_dtype(&[DType::F32])?.expect_rank(1, 2)?;
    if let Some(offset) = &offset {
        offset.expect_dtype(&[DType::F32])?.expect_rank(1, 2)?;
    }
    let count = scale.len().max(offset.as_ref().map_or(0, View::len));
    let fits = |view: &View| view.len() == 1 || view.len() == count;
    ensure!(
        fits(&scale) && offset.as_ref().is_none_or(fits),
        "offset: a number of elements other than 1 and {count}"
    );
    out.expect_dtype(&[DType::U64, DType::I64])?;
    ensure!(out.len() == count, "out: shape {:?}, expected {count} elements", out.dims);
    Ok(Work::new(move |launch| {
        let scales: Vec<f32> = launch.read(&scale)?;
        let offsets: Vec<f32> =
            offset.as_ref().map_or_else(|| Ok(vec![0.0]), |o| launch.read(o))?;
        let packed: Vec<i64> = (0..count)
            .map(|i| {
                let zero = offsets[i % offsets.len()].round_ties_even().clamp(-256.0, 255.0) as i64;
                pack_scale(scales[i % scales.len()]) | (zero & 0x1FF) << 37
            })
            .collect();
        launch.write(&out, &packed)
    }))
}

/// A scale as the matrix unit takes it: the low 13 bits are cut off, bit 46 is set.
fn pack_scale(scale: f32) -> i64 {
    i64::from(scale.to_bits() & !0x1FFF) | 1 << 46
}

/// The scale and offset of a packed parameter.
pub(crate) fn unpack_scale(packed: i64) -> (f32, f32) {
    let scale = f32::from_bits(packed as u32 & !0x1FFF);
    let zero = ((packed >> 37) & 0x1FF) as i32;
    #[expect(clippy::cast_precision_loss, reason = "nine bits")]
    (scale, (if zero > 255 { zero - 512 } else { zero }) as f32)
}

fn norm_static(a: &Args<'_>) -> Result<Work, Refusal> {
    let residual = Residual::of(a)?;
    let x = residual.input().clone();
    x.expect_dtype(HALVES)?;
    let axis = axis_of("axis", a.int("axis")?, x.rank())?;
    ensure!(axis == x.rank() - 1, "axis: {axis}, expected the last");
    let divide = a.flag("divMode")?;
    let mut parts = Vec::new();
    for (scale, zero, out) in
        [("scales1", "zeroPoints1", "y1Out"), ("scales2", "zeroPoints2", "y2Out")]
    {
        let (Some(scale), zero) = (a.optional(scale)?, a.optional(zero)?) else {
            a.expect_null(&[zero], "without its scales")?;
            continue;
        };
        let out = a.tensor(out)?;
        scale.expect_dtype(&[x.dtype, DType::F32])?;
        ensure!(
            scale.len() == residual.width(),
            "{}: shape {:?}, expected as gamma",
            scale.name,
            scale.dims
        );
        if let Some(zero) = &zero {
            zero.expect_dtype(&[DType::I32, x.dtype, DType::F32])?.expect_dims(&scale.dims)?;
        }
        out.expect_dtype(&[DType::I8])?.expect_dims(&x.dims)?;
        parts.push((scale, zero, out));
    }
    Ok(Work::new(move |launch| {
        let (normed, _) = residual.run(launch)?;
        for (scale, zero, out) in &parts {
            let scales: Vec<f32> = launch.read(scale)?;
            let zeros: Vec<f32> =
                zero.as_ref().map_or_else(|| Ok(vec![0.0; scales.len()]), |z| launch.read(z))?;
            let width = scales.len();
            let code = |(i, v): (usize, &f32)| {
                let scaled = if divide { v / scales[i % width] } else { v * scales[i % width] };
                (scaled + zeros[i % width]).round_ties_even().clamp(-128.0, 127.0)
            };
            launch.write(out, &normed.iter().enumerate().map(code).collect::<Vec<f32>>())?;
        }
        Ok(())
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn norm_dynamic(a: &Args<'_>) -> Result<Work, Refusal> {
    let residual = Residual::of(a)?;
    let x = residual.input().clone();
    x.expect_dtype(HALVES)?;
    let mut parts = Vec::new();
    for (number, (smooth, out, scale)) in
        [("smoothScale1", "y1Out", "scale1Out"), ("smoothScale2", "y2Out", "scale2Out")]
            .into_iter()
            .enumerate()
    {
        let smooth = a.optional(smooth)?;
        if number == 1 && smooth.is_none() {
            continue;
        }
        let (out, scale) = (a.tensor(out)?, a.tensor(scale)?);
        if let Some(smooth) = &smooth {
            smooth.expect_dtype(&[x.dtype])?;
            ensure!(
                smooth.len() == residual.width(),
                "{}: shape {:?}, expected as gamma",
                smooth.name,
                smooth.dims
            );
        }
        out.expect_dtype(&[DType::I8])?.expect_dims(&x.dims)?;
        scale.expect_dtype(&[DType::F32])?.expect_dims(&x.dims[..x.rank() - 1])?;
        parts.push((smooth, out, scale));
    }
    Ok(Work::new(move |launch| {
        let (normed, _) = residual.run(launch)?;
        for (smooth, out, scale) in &parts {
            let mut rows = normed.clone();
            if let Some(smooth) = smooth {
                scale_rows(&mut rows, &launch.read::<f32>(smooth)?);
            }
            write_quantised(launch, &rows, out, scale)?;
        }
        Ok(())
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

/// Writes rows as int8 with a scale each.
pub(crate) fn write_quantised(
    launch: &Launch<'_>,
    rows: &[f32],
    out: &View,
    scale: &View,
) -> Result<(), Fault> {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in rows.chunks_exact(out.last().max(1)) {
        let (row, factor) = quantised_row(row, limit(out.dtype));
        codes.extend(row);
        scales.push(factor);
    }
    launch.write(out, &codes)?;
    launch.write(scale, &scales)
}

/// Whole numbers of a product, their scales, and the activation between two products.
struct Dequant {
    x: View,
    weight_scale: Option<View>,
    activation_scale: Option<View>,
    bias: Option<View>,
    smooth: Option<View>,
    group: Option<View>,
    left: bool,
    y: View,
    scale: View,
}

fn dequant_swiglu(a: &Args<'_>) -> Result<Work, Refusal> {
    let x = a.tensor("x")?;
    x.expect_dtype(&[DType::I32, DType::F16, DType::BF16])?.expect_rank(2, 8)?;
    let (width, lead) = (x.last(), x.dims[..x.rank() - 1].to_vec());
    ensure!(width.is_multiple_of(2), "x: {width} along the last axis, expected an even number");
    let mode = a.text("quantMode")?;
    ensure!(mode == "dynamic", "quantMode: {mode:?}, expected \"dynamic\" here");
    a.expect_null(&["quantOffset"], "with quantMode \"dynamic\"")?;
    let group = a.optional("groupIndex")?;
    let groups = match &group {
        None => 1,
        Some(group) => {
            group.expect_dtype(&[DType::I64])?.expect_rank(1, 1)?;
            x.expect_rank(2, 2)?;
            group.len()
        }
    };
    let (weight_scale, activation_scale) =
        (a.optional("weightScale")?, a.optional("activationScale")?);
    let bias = a.optional("bias")?;
    if x.dtype == DType::I32 {
        let Some(scale) = &weight_scale else {
            return Err(Refusal::new(
                code::NULL,
                "weightScale: null with x of INT32, expected a tensor",
            ));
        };
        scale.expect_dtype(&[DType::F32])?;
        let fits = scale.last() == width && scale.len() == groups * width;
        ensure!(fits, "weightScale: shape {:?}, expected {groups} rows of {width}", scale.dims);
    } else {
        a.expect_null(&["weightScale", "activationScale", "bias"], "with x of a float")?;
    }
    if let Some(scale) = &activation_scale {
        scale.expect_dtype(&[DType::F32])?;
        let rows: usize = lead.iter().product();
        ensure!(
            scale.len() == rows,
            "activationScale: shape {:?}, expected {rows} elements",
            scale.dims
        );
    }
    if let Some(bias) = &bias {
        bias.expect_dtype(&[DType::I32, DType::F32, DType::F16, DType::BF16])?;
        ensure!(
            bias.len() == groups * width,
            "bias: shape {:?}, expected {groups} rows of {width}",
            bias.dims
        );
    }
    let smooth = a.optional("quantScale")?;
    if let Some(smooth) = &smooth {
        smooth.expect_dtype(FLOATS)?;
        let fits = smooth.len() == groups * width / 2;
        ensure!(
            fits,
            "quantScale: shape {:?}, expected {groups} rows of {}",
            smooth.dims,
            width / 2
        );
    }
    let (y, scale) = (a.tensor("yOut")?, a.tensor("scaleOut")?);
    y.expect_dtype(&[DType::I8])?.expect_dims(&[&lead[..], &[width / 2]].concat())?;
    scale.expect_dtype(&[DType::F32])?.expect_dims(&lead)?;
    let left = a.flag("activateLeft")?;
    let work = Dequant { x, weight_scale, activation_scale, bias, smooth, group, left, y, scale };
    Ok(Work::new(move |launch| work.run(launch)).with_workspace(u64::from(a.soc.vector_cores) * 64))
}

impl Dequant {
    fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let width = self.x.last();
        let rows = self.x.len() / width.max(1);
        // The whole numbers need more than a float's bits before they are scaled.
        let values: Vec<i64> =
            if self.x.dtype == DType::I32 { launch.read(&self.x)? } else { Vec::new() };
        let mut floats: Vec<f32> =
            if values.is_empty() { launch.read(&self.x)? } else { Vec::new() };
        let optional = |view: &Option<View>| -> Result<Option<Vec<f32>>, Fault> {
            view.as_ref().map(|v| launch.read(v)).transpose()
        };
        let (weights, tokens) = (optional(&self.weight_scale)?, optional(&self.activation_scale)?);
        let (bias, smooth) = (optional(&self.bias)?, optional(&self.smooth)?);
        let groups = self.groups(launch, rows)?;
        if let Some(weights) = &weights {
            let whole = self.bias.as_ref().is_some_and(|b| b.dtype == DType::I32);
            floats = (0..rows * width)
                .map(|at| {
                    let (row, place) = (at / width, groups[at / width] * width + at % width);
                    let bias = bias.as_ref().map_or(0.0, |b| b[place]);
                    let token = tokens.as_ref().map_or(1.0, |t| t[row]);
                    #[expect(clippy::cast_precision_loss, reason = "what dequantising does")]
                    let sum =
                        if whole { (values[at] + bias as i64) as f32 } else { values[at] as f32 };
                    sum * weights[place] * token + if whole { 0.0 } else { bias }
                })
                .collect();
        }
        if !self.left {
            floats.chunks_exact_mut(width.max(1)).for_each(|row| row.rotate_left(width / 2));
        }
        let mut activated = swiglu_rows(&floats, width);
        if let Some(smooth) = &smooth {
            let half = width / 2;
            let each = activated.iter_mut().enumerate();
            each.for_each(|(at, v)| *v *= smooth[groups[at / half] * half + at % half]);
        }
        write_quantised(launch, &activated, &self.y, &self.scale)
    }

    /// The group of each row, of counts of rows.
    fn groups(&self, launch: &Launch<'_>, rows: usize) -> Result<Vec<usize>, Fault> {
        let Some(view) = &self.group else {
            return Ok(vec![0; rows]);
        };
        let counts: Vec<i64> = launch.read(view)?;
        let mut groups = Vec::new();
        for (group, &count) in counts.iter().enumerate() {
            let count = crate::index::checked(view, count, rows - groups.len() + 1)?;
            groups.extend(vec![group; count]);
        }
        groups.resize(rows, counts.len().saturating_sub(1));
        Ok(groups)
    }
}
