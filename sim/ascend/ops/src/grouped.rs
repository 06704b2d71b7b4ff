//! Products of groups of rows, each with a matrix of its own.

use crate::dtype::{DType, FLOATS};
use crate::gemm::{Extent, int_rows_by_rows, rows_by_rows};
use crate::index::checked;
use crate::launch::{Fault, Launch};
use crate::nz::{Weight, unpacked};
use crate::op::{Args, Op, Param, Since, Work, int64, ints, list, tensor};
use crate::quant::write_quantised;
use crate::quant_matmul::{Antiquant, add_to_rows};
use crate::refusal::{Refusal, code, ensure};
use crate::view::View;

/// The parameters of the second and third version, which differ in where the groups are.
macro_rules! older {
    ($group_list:expr) => {
        &[
            list("x"),
            list("weight"),
            list("bias").or_null(),
            list("scale").or_null(),
            list("offset").or_null(),
            list("antiquantScale").or_null(),
            list("antiquantOffset").or_null(),
            $group_list.or_null(),
            int64("splitItem"),
            int64("groupType"),
            list("y").out(),
        ]
    };
}
/// The parameters from the fourth version on, with what was added before the results.
macro_rules! newer {
    ([$($tuning:expr),*]) => {
        &[
            list("x"),
            list("weight"),
            list("bias").or_null(),
            list("scale").or_null(),
            list("offset").or_null(),
            list("antiquantScale").or_null(),
            list("antiquantOffset").or_null(),
            list("perTokenScale").or_null(),
            tensor("groupList").or_null(),
            list("activationInput").or_null(),
            list("activationQuantScale").or_null(),
            list("activationQuantOffset").or_null(),
            int64("splitItem"),
            int64("groupType"),
            int64("groupListType"),
            int64("actType"),
            $($tuning,)*
            list("out").out(),
            list("activationFeatureOut").or_null().out(),
            list("dynQuantScaleOut").or_null().out(),
        ]
    };
}

const V2: &[Param] = older!(ints("groupList"));
const V3: &[Param] = older!(tensor("groupList"));
const V4: &[Param] = newer!([]);
const V5: &[Param] = newer!([ints("tuningConfig").or_null()]);
const WEIGHT_NZ: &[Param] = newer!([ints("tuningConfig").or_null(), int64("quantGroupSize")]);

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op { name: "GroupedMatmulV2", since: Since::V8_1, params: V2, plan },
    Op { name: "GroupedMatmulV3", since: Since::V8_1, params: V3, plan },
    Op { name: "GroupedMatmulV4", since: Since::V8_1, params: V4, plan },
    Op { name: "GroupedMatmulV5", since: Since::V8_5, params: V5, plan },
    Op {
        name: "GroupedMatmulWeightNz",
        since: Since::V8_5,
        params: WEIGHT_NZ,
        plan: |a| {
            let group = a.int("quantGroupSize")?;
            ensure!(group == 0, "quantGroupSize: {group}, expected 0 here");
            let nz = a.list("weight")?.iter().all(|w| w.nz);
            ensure!(nz, "weight: format ND, expected FRACTAL_NZ");
            plan(a)
        },
    },
    Op {
        name: "GroupedMatmulSwigluQuant",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("weight"),
            tensor("bias").or_null(),
            tensor("offset").or_null(),
            tensor("weightScale"),
            tensor("xScale"),
            tensor("groupList"),
            tensor("output").out(),
            tensor("outputScale").out(),
            tensor("outputOffset").or_null().out(),
        ],
        plan: swiglu_quant,
    },
];

const MOST_GROUPS: usize = 1024;
const MOST_IN_LIST: usize = 128;
const WIDEST: usize = 65_535;

/// How many rows each group has.
enum Groups {
    /// Ends, on the host.
    Host(Vec<i64>),
    Cumulative(View),
    Counts(View),
    /// Pairs of a group and its count.
    Pairs(View),
}

impl Groups {
    fn of(a: &Args<'_>, experts: usize, rows: usize) -> Result<Self, Refusal> {
        if a.kind("groupList") == Some(crate::Kind::IntArray) {
            let ends = a.ints("groupList")?.unwrap_or_default();
            ensure!(ends.len() == experts, "groupList: {} entries, expected {experts}", ends.len());
            let fits = ends.is_sorted() && ends.iter().all(|&e| (0..=rows as i64).contains(&e));
            ensure!(fits, "groupList: {ends:?}, expected cumulative counts up to {rows} rows");
            return Ok(Self::Host(ends.to_vec()));
        }
        let Some(view) = a.optional("groupList")? else {
            return Err(Refusal::new(
                code::NULL,
                "groupList: null with groupType 0, expected a tensor",
            ));
        };
        view.expect_dtype(&[DType::I64])?;
        let kind = if a.has("groupListType") { a.choice("groupListType", &[0, 1, 2])? } else { 0 };
        if kind == 2 {
            view.expect_dims(&[experts, 2])?;
            return Ok(Self::Pairs(view));
        }
        view.expect_dims(&[experts])?;
        Ok(if kind == 0 { Self::Cumulative(view) } else { Self::Counts(view) })
    }

    /// The group, first row and count of rows of each group.
    fn spans(&self, launch: &Launch<'_>, rows: usize) -> Result<Vec<[usize; 3]>, Fault> {
        let (view, counts) = match self {
            Self::Host(ends) => (None, differences(ends)),
            Self::Cumulative(view) => (Some(view), differences(&launch.read::<i64>(view)?)),
            Self::Counts(view) => {
                let counts: Vec<i64> = launch.read(view)?;
                (Some(view), (0..).zip(counts).collect())
            }
            Self::Pairs(view) => {
                let pairs: Vec<i64> = launch.read(view)?;
                (Some(view), pairs.chunks_exact(2).map(|p| (p[0], p[1])).collect())
            }
        };
        let groups = counts.len();
        let mut start = 0;
        let mut spans = Vec::new();
        for (group, count) in counts {
            let (group, count) = match view {
                Some(view) => {
                    (checked(view, group, groups)?, checked(view, count, rows - start + 1)?)
                }
                None => (group as usize, count as usize),
            };
            spans.push([group, start, count]);
            start += count;
        }
        Ok(spans)
    }
}

fn differences(ends: &[i64]) -> Vec<(i64, i64)> {
    let starts = std::iter::once(&0).chain(ends);
    (0..).zip(ends.iter().zip(starts).map(|(end, start)| end - start)).collect()
}

/// The matrices of the groups, in one tensor `[E, K, N]` or one tensor each.
struct Weights {
    views: Vec<Weight>,
    /// All are in one.
    stacked: bool,
    count: usize,
}

impl Weights {
    fn of(views: &[View]) -> Result<Self, Refusal> {
        ensure!(
            !views.is_empty(),
            "weight: an empty list, expected one tensor [E, K, N], or one for each group"
        );
        let views: Vec<View> = views.iter().cloned().map(unpacked).collect();
        let stacked = views.len() == 1 && views[0].rank() == 3;
        let rank = if stacked { 3 } else { 2 };
        let count = if stacked { views[0].dims[0] } else { views.len() };
        let most = if stacked { MOST_GROUPS } else { MOST_IN_LIST };
        ensure!((1..=most).contains(&count), "weight: {count} groups, expected 1 to {most}");
        for view in &views {
            view.expect_rank(rank, rank)?.expect_dtype(&[views[0].dtype])?;
            let same = view.dims[rank - 2..] == views[0].dims[rank - 2..];
            ensure!(
                same,
                "{}: shape {:?}, expected as the first, {:?}",
                view.name,
                view.dims,
                views[0].dims
            );
        }
        let views = views.into_iter().map(Weight::of).collect::<Result<_, _>>()?;
        Ok(Self { views, stacked, count })
    }

    fn shape(&self) -> (usize, usize) {
        self.views[0].shape()
    }

    fn dtype(&self) -> DType {
        self.views[0].view().dtype
    }

    fn rows<T: crate::launch::Number>(
        &self,
        launch: &Launch<'_>,
        group: usize,
    ) -> Result<Vec<T>, Fault> {
        if self.stacked {
            self.views[0].rows(launch, &[group])
        } else {
            self.views[group].rows(launch, &[])
        }
    }
}

/// What a group's product is made of, besides floats.
enum Scheme {
    Floats,
    /// Scales of columns, `[E, N]`, and of rows.
    Int8 {
        scale: View,
        token: Option<View>,
    },
    /// `[E, G, N]`
    Codes {
        scale: View,
        offset: Option<View>,
        group: usize,
    },
}

struct Grouped {
    x: View,
    weights: Weights,
    bias: Option<View>,
    scheme: Scheme,
    groups: Groups,
    out: View,
}

/// The only tensor of a list, stacked over groups; none of an empty list.
fn single(a: &Args<'_>, name: &str) -> Result<Option<View>, Refusal> {
    if !a.has(name) {
        return Ok(None);
    }
    let views = a.list(name)?;
    ensure!(views.len() <= 1, "{name}: {} tensors, expected one for all groups here", views.len());
    ensure!(views.iter().all(|v| !v.nz), "{name}: format FRACTAL_NZ, expected ND");
    Ok(views.first().cloned())
}

fn plan(a: &Args<'_>) -> Result<Work, Refusal> {
    let split = a.choice("splitItem", &[0, 1, 2, 3])?;
    ensure!(
        [2, 3].contains(&split),
        "splitItem: {split}, expected 2 or 3 here (one tensor of results)"
    );
    let kind = a.int("groupType")?;
    ensure!(kind == 0, "groupType: {kind}, expected 0 here (groups of rows)");
    if a.has("actType") {
        let act = a.int("actType")?;
        ensure!(act == 0, "actType: {act}, expected 0 here (no activation)");
    }
    let unused = ["offset", "activationInput", "activationQuantScale", "activationQuantOffset"];
    let late = ["activationFeatureOut", "dynQuantScaleOut"];
    let given: Vec<&str> = unused.iter().chain(&late).copied().filter(|name| a.has(name)).collect();
    a.expect_null(&given, "here")?;
    let required = |view: Option<View>, name: &str| {
        view.ok_or_else(|| {
            Refusal::new(code::INVALID, format!("{name}: an empty list, expected one tensor"))
        })
    };
    let x = required(single(a, "x")?, "x")?;
    let out_name = if a.has("out") { "out" } else { "y" };
    let out = required(single(a, out_name)?, out_name)?;
    x.expect_rank(2, 2)?.expect_contiguous()?;
    let weights = Weights::of(a.list("weight")?)?;
    let (k, n) = weights.shape();
    ensure!(x.last() == k, "weight: {k} rows a group, expected {} as x has columns", x.last());
    let fits = [k, n].iter().all(|&side| side <= WIDEST);
    ensure!(fits, "weight: {k} by {n}, expected at most {WIDEST}");
    out.expect_dims(&[x.dims[0], n])?;
    let scheme = scheme(a, &x, &weights, &out)?;
    let bias = single(a, "bias")?;
    if let Some(bias) = &bias {
        let dtype = match (&scheme, x.dtype) {
            (Scheme::Int8 { .. }, _) => DType::I32,
            (_, DType::BF16) => DType::F32,
            (_, other) => other,
        };
        bias.expect_dtype(&[dtype])?.expect_dims(&[weights.count, n])?;
    }
    let groups = Groups::of(a, weights.count, x.dims[0])?;
    let work = Grouped { x, weights, bias, scheme, groups, out };
    let workspace = u64::from(a.soc.cube_cores) * 4096;
    Ok(Work::new(move |launch| work.run(launch)).with_workspace(workspace))
}

fn scheme(a: &Args<'_>, x: &View, weights: &Weights, out: &View) -> Result<Scheme, Refusal> {
    let ((k, n), experts) = (weights.shape(), weights.count);
    let (scale, token) = (single(a, "scale")?, single(a, "perTokenScale")?);
    let (antiquant, offset) = (single(a, "antiquantScale")?, single(a, "antiquantOffset")?);
    let nothing = |names: &[&str], why: &str| {
        let names: Vec<&str> = names.iter().copied().filter(|name| a.has(name)).collect();
        a.expect_null(&names, why)
    };
    match (x.dtype, weights.dtype()) {
        (DType::I8, DType::I8) => {
            nothing(&["antiquantScale", "antiquantOffset"], "with x of INT8")?;
            let scale =
                scale.ok_or_else(|| Refusal::new(code::NULL, "scale: null with x of INT8"))?;
            out.expect_dtype(&[DType::BF16, DType::F16])?;
            let wanted = if out.dtype == DType::BF16 { DType::BF16 } else { DType::F32 };
            scale.expect_dtype(&[wanted])?.expect_dims(&[experts, n])?;
            if let Some(token) = &token {
                token.expect_dtype(&[DType::F32])?.expect_dims(&x.dims[..1])?;
            }
            Ok(Scheme::Int8 { scale, token })
        }
        (DType::F16 | DType::BF16, DType::I8 | DType::I4) => {
            nothing(&["scale", "perTokenScale"], "with x of a float")?;
            out.expect_dtype(&[x.dtype])?;
            let missing =
                || Refusal::new(code::NULL, "antiquantScale: null with weights of whole numbers");
            let mut scale = antiquant.ok_or_else(missing)?;
            scale.expect_dtype(&[x.dtype])?.expect_rank(2, 3)?;
            if let Some(offset) = &offset {
                offset.expect_dtype(&[x.dtype])?.expect_dims(&scale.dims)?;
            }
            let groups = if scale.rank() == 3 { scale.dims[1] } else { 1 };
            ensure!(
                groups > 0 && k % groups == 0,
                "antiquantScale: {groups} groups, expected a divisor of {k} rows"
            );
            scale.expect_dims(&if scale.rank() == 3 {
                vec![experts, groups, n]
            } else {
                vec![experts, n]
            })?;
            let stack = |view: &View| {
                let mut view = view.clone();
                if view.rank() == 2 {
                    view.dims.insert(1, 1);
                    view.strides.insert(1, 0);
                }
                view
            };
            let offset = offset.as_ref().map(stack);
            scale = stack(&scale);
            Ok(Scheme::Codes { scale, offset, group: k / groups })
        }
        _ => {
            x.expect_dtype(FLOATS)?;
            let (dtype, wanted) = (weights.dtype(), x.dtype);
            ensure!(
                dtype == wanted,
                "weight: dtype {dtype} with x of {wanted}, expected {wanted}, INT8 or INT4"
            );
            nothing(
                &["scale", "perTokenScale", "antiquantScale", "antiquantOffset"],
                "with weights of a float",
            )?;
            out.expect_dtype(&[wanted])?;
            Ok(Scheme::Floats)
        }
    }
}

impl Grouped {
    fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        for [group, start, count] in self.groups.spans(launch, self.x.dims[0])? {
            if count == 0 {
                continue;
            }
            let values = self.product(launch, group, [start, count])?;
            launch.write(&self.out.narrow(0, start, count), &values)?;
        }
        Ok(())
    }

    fn product(
        &self,
        launch: &Launch<'_>,
        group: usize,
        [start, count]: [usize; 2],
    ) -> Result<Vec<f32>, Fault> {
        let (k, n) = self.weights.shape();
        let size = Extent { m: count, n, k };
        let x = self.x.narrow(0, start, count);
        let bias: Option<Vec<f32>> =
            self.bias.as_ref().map(|bias| launch.read(&bias.select(0, group))).transpose()?;
        if let Scheme::Int8 { scale, token } = &self.scheme {
            let sums = int_rows_by_rows(
                &launch.read::<i32>(&x)?,
                &self.weights.rows(launch, group)?,
                size,
            );
            #[expect(clippy::cast_precision_loss, reason = "what dequantising does")]
            let mut out: Vec<f32> = sums.iter().map(|&v| v as f32).collect();
            if let Some(bias) = &bias {
                add_to_rows(&mut out, bias);
            }
            let scales: Vec<f32> = launch.read(&scale.select(0, group))?;
            let tokens: Option<Vec<f32>> =
                token.as_ref().map(|t| launch.read(&t.narrow(0, start, count))).transpose()?;
            for (at, value) in out.iter_mut().enumerate() {
                *value *= scales[at % n] * tokens.as_ref().map_or(1.0, |t| t[at / n]);
            }
            return Ok(out);
        }
        let mut rows: Vec<f32> = self.weights.rows(launch, group)?;
        if let Scheme::Codes { scale, offset, group: size } = &self.scheme {
            let (scale, offset) =
                (scale.select(0, group), offset.as_ref().map(|o| o.select(0, group)));
            Antiquant { scale, offset, group: *size }.apply(launch, &mut rows, k)?;
        }
        let mut out = rows_by_rows(&launch.read::<f32>(&x)?, &rows, size);
        if let Some(bias) = &bias {
            add_to_rows(&mut out, bias);
        }
        Ok(out)
    }
}

fn swiglu_quant(a: &Args<'_>) -> Result<Work, Refusal> {
    a.expect_null(&["bias", "offset", "outputOffset"], "here")?;
    let (x, weight) = (a.tensor("x")?, a.weight("weight")?);
    x.expect_dtype(&[DType::I8])?.expect_rank(2, 2)?;
    weight.expect_dtype(&[DType::I8])?.expect_rank(3, 3)?;
    let weights = Weights::of(&[weight])?;
    let ((k, n), m) = (weights.shape(), x.dims[0]);
    ensure!(x.last() == k, "weight: {k} rows a group, expected {} as x has columns", x.last());
    ensure!(
        n.is_multiple_of(2) && n <= WIDEST,
        "weight: {n} columns, expected an even number up to {WIDEST}"
    );
    let (scale, token) = (a.tensor("weightScale")?, a.tensor("xScale")?);
    scale.expect_dtype(&[DType::F32, DType::BF16, DType::F16])?.expect_dims(&[weights.count, n])?;
    token.expect_dtype(&[DType::F32])?.expect_dims(&[m])?;
    let list = a.tensor("groupList")?;
    list.expect_dtype(&[DType::I64])?.expect_dims(&[weights.count])?;
    let (out, out_scale) = (a.tensor("output")?, a.tensor("outputScale")?);
    out.expect_dtype(&[DType::I8])?.expect_dims(&[m, n / 2])?;
    out_scale.expect_dtype(&[DType::F32])?.expect_dims(&[m])?;
    let scheme = Scheme::Int8 { scale, token: Some(token) };
    let grouped = Grouped { x, weights, bias: None, scheme, groups: Groups::Cumulative(list), out };
    let workspace = (m * n * 4) as u64;
    Ok(Work::new(move |launch| {
        for [group, start, count] in grouped.groups.spans(launch, m)? {
            let values = grouped.product(launch, group, [start, count])?;
            let activated = crate::activation::swiglu_rows(&values, n);
            let (rows, scales) =
                (grouped.out.narrow(0, start, count), out_scale.narrow(0, start, count));
            write_quantised(launch, &activated, &rows, &scales)?;
        }
        Ok(())
    })
    .with_workspace(workspace))
}
