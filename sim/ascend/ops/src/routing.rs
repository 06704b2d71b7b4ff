//! Tokens in the order of their experts, and back.

use crate::dtype::{DType, FLOATS, INDICES};
use crate::index::checked;
use crate::launch::{Fault, Launch};
use crate::op::{Args, Op, Since, Work, flag, int64, ints, tensor};
use crate::quant::quantised_row;
use crate::refusal::{Refusal, ensure};
use crate::view::View;

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "MoeInitRoutingV2",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("expertIdx"),
            int64("activeNum"),
            int64("expertCapacity"),
            int64("expertNum"),
            int64("dropPadMode"),
            int64("expertTokensCountOrCumsumFlag"),
            flag("expertTokensBeforeCapacityFlag"),
            tensor("expandedXOut").out(),
            tensor("expandedRowIdxOut").out(),
            tensor("expertTokensCountOrCumsumOut").or_null().out(),
            tensor("expertTokensBeforeCapacityOut").or_null().out(),
        ],
        plan: init_v2,
    },
    Op {
        name: "MoeInitRoutingV3",
        since: Since::V8_5,
        params: &[
            tensor("x"),
            tensor("expertIdx"),
            tensor("scale").or_null(),
            tensor("offset").or_null(),
            int64("activeNum"),
            int64("expertCapacity"),
            int64("expertNum"),
            int64("dropPadMode"),
            int64("expertTokensNumType"),
            flag("expertTokensNumFlag"),
            int64("quantMode"),
            ints("activeExpertRange").or_null(),
            int64("rowIdxType"),
            tensor("expandedXOut").out(),
            tensor("expandedRowIdxOut").out(),
            tensor("expertTokensCountOrCumsumOut").out(),
            tensor("expandedScaleOut").out(),
        ],
        plan: init_v3,
    },
    Op {
        name: "MoeComputeExpertTokens",
        since: Since::V8_1,
        params: &[tensor("sortedExperts"), int64("numExperts"), tensor("out").out()],
        plan: expert_tokens,
    },
    Op {
        name: "MoeTokenPermute",
        since: Since::V8_1,
        params: &[
            tensor("tokens"),
            tensor("indices"),
            int64("numOutTokens"),
            flag("paddedMode"),
            tensor("permuteTokensOut").out(),
            tensor("sortedIndicesOut").out(),
        ],
        plan: permute,
    },
    Op {
        name: "MoeTokenUnpermute",
        since: Since::V8_1,
        params: &[
            tensor("permutedTokens"),
            tensor("sortedIndices"),
            tensor("probs").or_null(),
            flag("paddedMode"),
            ints("restoreShape").or_null(),
            tensor("out").out(),
        ],
        plan: unpermute,
    },
    Op {
        name: "MoeFinalizeRoutingV2",
        since: Since::V8_1,
        params: &[
            tensor("expandedX"),
            tensor("expandedRowIdx"),
            tensor("x1").or_null(),
            tensor("x2").or_null(),
            tensor("bias").or_null(),
            tensor("scales").or_null(),
            tensor("expertIdx").or_null(),
            int64("dropPadMode"),
            tensor("out").out(),
        ],
        plan: finalize,
    },
];

/// How counts of tokens are told.
#[derive(Clone, Copy, PartialEq)]
enum Counts {
    Cumulative,
    Plain,
    /// Pairs of an expert that has tokens, and their count.
    Pairs,
}

/// Copies of tokens, in the order of their experts.
struct Routing {
    x: View,
    experts: View,
    expert_count: usize,
    /// The experts whose tokens are expanded.
    range: [usize; 2],
    expanded: View,
    row_index: View,
    /// Rows tell where they come from, not where they go.
    scatter: bool,
    counts: Option<(View, Counts)>,
    quant: Option<(View, Option<View>)>,
}

impl Routing {
    fn of(a: &Args<'_>, xs: &[DType]) -> Result<Self, Refusal> {
        let (x, experts) = (a.tensor("x")?, a.tensor("expertIdx")?);
        x.expect_dtype(xs)?.expect_rank(2, 2)?;
        experts.expect_dtype(&[DType::I32])?.expect_rank(2, 2)?;
        let (tokens, k) = (x.dims[0], experts.dims[1]);
        experts.expect_dims(&[tokens, k])?;
        let mode = a.int("dropPadMode")?;
        ensure!(mode == 0, "dropPadMode: {mode}, expected 0 here (no token is dropped)");
        let count = a.int("expertNum")?;
        ensure!((1..=10_240).contains(&count), "expertNum: {count}, expected 1 to 10240");
        let (active, all) = (a.int("activeNum")?, tokens * k);
        ensure!(active >= -1, "activeNum: {active}, expected -1, 0 or a number of rows");
        let rows = if active > 0 { all.min(active as usize) } else { all };
        let (expanded, row_index) = (a.tensor("expandedXOut")?, a.tensor("expandedRowIdxOut")?);
        expanded.expect_dims(&[rows, x.last()])?;
        row_index.expect_dtype(&[DType::I32])?.expect_dims(&[all])?;
        let count = count as usize;
        Ok(Self {
            x,
            experts,
            expert_count: count,
            range: [0, count],
            expanded,
            row_index,
            scatter: false,
            counts: None,
            quant: None,
        })
    }

    fn work(self) -> Result<Work, Refusal> {
        let workspace = self.row_index.len() as u64 * 16;
        Ok(Work::new(move |launch| self.run(launch)).with_workspace(workspace))
    }

    fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let ids: Vec<i64> = launch.read(&self.experts)?;
        let ids: Vec<usize> = ids
            .iter()
            .map(|&id| checked(&self.experts, id, self.expert_count))
            .collect::<Result<_, _>>()?;
        let [low, high] = self.range;
        let mut order: Vec<usize> =
            (0..ids.len()).filter(|&i| (low..high).contains(&ids[i])).collect();
        order.sort_by_key(|&i| ids[i]);
        let k = self.experts.dims[1].max(1);
        for (row, &from) in order.iter().enumerate().take(self.expanded.dims[0]) {
            self.expand(launch, from / k, row, ids[from])?;
        }
        let mut index = vec![-1; ids.len()];
        for (row, &from) in order.iter().enumerate() {
            let (at, value) = if self.scatter { (row, from) } else { (from, row) };
            index[at] = value as i64;
        }
        launch.write(&self.row_index, &index)?;
        let Some((view, kind)) = &self.counts else {
            return Ok(());
        };
        let mut counts = vec![0i64; high - low];
        order.iter().for_each(|&i| counts[ids[i] - low] += 1);
        launch.write(view, &told(&counts, *kind, low, view.len()))
    }

    fn expand(
        &self,
        launch: &Launch<'_>,
        token: usize,
        row: usize,
        expert: usize,
    ) -> Result<(), Fault> {
        let mut values: Vec<f32> = launch.read(&self.x.select(0, token))?;
        let to = self.expanded.select(0, row);
        let Some((scales, smooth)) = &self.quant else {
            return launch.write(&to, &values);
        };
        if let Some(smooth) = smooth {
            let at = if smooth.dims[0] == 1 { 0 } else { expert - self.range[0] };
            let factors: Vec<f32> = launch.read(&smooth.select(0, at))?;
            values.iter_mut().zip(&factors).for_each(|(v, f)| *v *= f);
        }
        let (codes, scale) = quantised_row(&values, 127.0);
        launch.write(&to, &codes)?;
        launch.write(&scales.narrow(0, row, 1), &[scale])
    }
}

fn told(counts: &[i64], kind: Counts, low: usize, room: usize) -> Vec<i64> {
    match kind {
        Counts::Plain => counts.to_vec(),
        Counts::Cumulative => counts
            .iter()
            .scan(0, |sum, c| {
                *sum += c;
                Some(*sum)
            })
            .collect(),
        Counts::Pairs => {
            let some = counts.iter().enumerate().filter(|(_, c)| **c > 0);
            let mut pairs: Vec<i64> = some.flat_map(|(e, &c)| [(low + e) as i64, c]).collect();
            pairs.resize(room, 0);
            pairs
        }
    }
}

fn init_v2(a: &Args<'_>) -> Result<Work, Refusal> {
    let mut routing = Routing::of(a, FLOATS)?;
    routing.expanded.expect_dtype(&[routing.x.dtype])?;
    let capacity = "where no token is dropped";
    a.expect_null(&["expertTokensBeforeCapacityOut"], capacity)?;
    let before = a.flag("expertTokensBeforeCapacityFlag")?;
    ensure!(!before, "expertTokensBeforeCapacityFlag: true, expected false {capacity}");
    let kind = a.choice("expertTokensCountOrCumsumFlag", &[0, 1, 2])?;
    if kind != 0 {
        let view = a.tensor("expertTokensCountOrCumsumOut")?;
        // The counts of this version are of 32 bits.
        view.expect_dtype(&[DType::I32])?.expect_dims(&[routing.expert_count])?;
        routing.counts = Some((view, if kind == 1 { Counts::Cumulative } else { Counts::Plain }));
    }
    routing.work()
}

fn init_v3(a: &Args<'_>) -> Result<Work, Refusal> {
    let mut routing = Routing::of(a, FLOATS)?;
    let experts = routing.expert_count;
    if let Some(range) = a.ints("activeExpertRange")?.filter(|range| !range.is_empty()) {
        let fits =
            range.len() == 2 && 0 <= range[0] && range[0] < range[1] && range[1] <= experts as i64;
        ensure!(
            fits,
            "activeExpertRange: {range:?}, expected [low, high) within {experts} experts"
        );
        routing.range = [range[0] as usize, range[1] as usize];
    }
    let local = routing.range[1] - routing.range[0];
    routing.scatter = a.choice("rowIdxType", &[0, 1])? == 1;
    let kind = match a.choice("expertTokensNumType", &[0, 1, 2])? {
        0 => Counts::Cumulative,
        1 => Counts::Plain,
        _ => Counts::Pairs,
    };
    if a.flag("expertTokensNumFlag")? {
        let view = a.tensor("expertTokensCountOrCumsumOut")?;
        view.expect_dtype(&[DType::I64])?;
        view.expect_dims(&if kind == Counts::Pairs { vec![experts, 2] } else { vec![local] })?;
        routing.counts = Some((view, kind));
    }
    a.expect_null(&["offset"], "with quantMode -1 or 1")?;
    let smooth = a.optional("scale")?;
    if a.choice("quantMode", &[-1, 1])? == -1 {
        routing.expanded.expect_dtype(&[routing.x.dtype])?;
        a.expect_null(&["scale"], "with quantMode -1 here")?;
        return routing.work();
    }
    routing.expanded.expect_dtype(&[DType::I8])?;
    if let Some(smooth) = &smooth {
        let rows = if smooth.rank() == 2 && smooth.dims[0] == 1 { 1 } else { local };
        smooth.expect_dtype(&[DType::F32])?.expect_dims(&[rows, routing.x.last()])?;
    }
    let scales = a.tensor("expandedScaleOut")?;
    scales.expect_dtype(&[DType::F32])?.expect_dims(&routing.expanded.dims[..1])?;
    routing.quant = Some((scales, smooth));
    routing.work()
}

fn expert_tokens(a: &Args<'_>) -> Result<Work, Refusal> {
    let (sorted, out, count) = (a.tensor("sortedExperts")?, a.tensor("out")?, a.int("numExperts")?);
    sorted.expect_dtype(&[DType::I32])?.expect_rank(1, 1)?;
    ensure!((1..=2048).contains(&count), "numExperts: {count}, expected 1 to 2048");
    out.expect_dtype(&[DType::I32])?.expect_dims(&[count as usize])?;
    Ok(Work::new(move |launch| {
        let ids: Vec<i64> = launch.read(&sorted)?;
        if !ids.is_sorted() {
            return Err(Fault::exception("sortedExperts: falls, expected sorted experts"));
        }
        let ends: Vec<i64> =
            (0..count).map(|e| ids.partition_point(|id| *id <= e) as i64).collect();
        launch.write(&out, &ends)
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn permute(a: &Args<'_>) -> Result<Work, Refusal> {
    let (tokens, indices) = (a.tensor("tokens")?, a.tensor("indices")?);
    tokens.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
    indices.expect_dtype(INDICES)?.expect_rank(1, 2)?;
    ensure!(!a.flag("paddedMode")?, "paddedMode: true, expected false");
    let count = tokens.dims[0];
    let k = if indices.rank() == 2 { indices.dims[1] } else { 1 };
    ensure!(
        indices.dims[0] == count,
        "indices: {} rows, expected {count} as tokens",
        indices.dims[0]
    );
    ensure!((1..=512).contains(&k), "indices: {k} experts a token, expected 1 to 512");
    let (all, wanted) = ((count * k) as i64, a.int("numOutTokens")?);
    let rows = if wanted > 0 { wanted.min(all) } else { (all + wanted).max(0) } as usize;
    let (out, sorted) = (a.tensor("permuteTokensOut")?, a.tensor("sortedIndicesOut")?);
    out.expect_dtype(&[tokens.dtype])?.expect_dims(&[rows, tokens.last()])?;
    sorted.expect_dtype(&[DType::I32])?.expect_dims(&[count * k])?;
    Ok(Work::new(move |launch| {
        let ids: Vec<i64> = launch.read(&indices)?;
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&i| ids[i]);
        let mut places = vec![0i64; ids.len()];
        for (row, &from) in order.iter().enumerate() {
            places[from] = row as i64;
            if row < rows {
                let values: Vec<f32> = launch.read(&tokens.select(0, from / k))?;
                launch.write(&out.select(0, row), &values)?;
            }
        }
        launch.write(&sorted, &places)
    })
    .with_workspace(all as u64 * 16))
}

fn unpermute(a: &Args<'_>) -> Result<Work, Refusal> {
    let (rows, index, out) =
        (a.tensor("permutedTokens")?, a.tensor("sortedIndices")?, a.tensor("out")?);
    rows.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
    index.expect_dtype(&[DType::I32])?.expect_rank(1, 1)?;
    ensure!(!a.flag("paddedMode")?, "paddedMode: true, expected false");
    let probs = a.optional("probs")?;
    let k = match &probs {
        None => 1,
        Some(probs) => {
            probs.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
            ensure!(
                probs.len() == index.len(),
                "probs: shape {:?}, expected {} elements",
                probs.dims,
                index.len()
            );
            probs.last()
        }
    };
    ensure!((1..=512).contains(&k), "probs: {k} experts a token, expected 1 to 512");
    out.expect_dtype(&[rows.dtype])?.expect_dims(&[index.len() / k, rows.last()])?;
    Ok(Work::new(move |launch| {
        let places: Vec<i64> = launch.read(&index)?;
        let weights: Vec<f32> =
            probs.as_ref().map_or_else(|| Ok(vec![1.0; places.len()]), |p| launch.read(p))?;
        for token in 0..out.dims[0] {
            let mut sum = vec![0.0; rows.last()];
            for at in token * k..(token + 1) * k {
                let place = checked(&index, places[at], index.len())?;
                // Behind the rows are the tokens that the permutation dropped.
                if place < rows.dims[0] {
                    let row: Vec<f32> = launch.read(&rows.select(0, place))?;
                    sum.iter_mut().zip(&row).for_each(|(s, v)| *s += weights[at] * v);
                }
            }
            launch.write(&out.select(0, token), &sum)?;
        }
        Ok(())
    })
    .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

/// Weighted sums of the experts' rows.
struct Finalize {
    rows: View,
    index: View,
    residuals: Vec<View>,
    /// The experts' biases and the experts of each token.
    bias: Option<(View, View)>,
    scales: Option<View>,
    k: usize,
    by_token: bool,
    out: View,
}

fn finalize(a: &Args<'_>) -> Result<Work, Refusal> {
    let (rows, index, out) =
        (a.tensor("expandedX")?, a.tensor("expandedRowIdx")?, a.tensor("out")?);
    rows.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
    index.expect_dtype(&[DType::I32])?.expect_rank(1, 1)?;
    let mode = a.int("dropPadMode")?;
    ensure!(
        [0, 2].contains(&mode),
        "dropPadMode: {mode}, expected 0 or 2 here (no token is dropped)"
    );
    out.expect_dtype(&[rows.dtype])?.expect_rank(2, 2)?;
    let tokens = out.dims[0];
    out.expect_dims(&[tokens, rows.last()])?;
    let k = index.len().checked_div(tokens).unwrap_or(0);
    ensure!(
        k * tokens == index.len(),
        "expandedRowIdx: {} rows, expected a multiple of {tokens} tokens",
        index.len()
    );
    ensure!(
        rows.dims[0] == index.len(),
        "expandedX: {} rows, expected {} as expandedRowIdx",
        rows.dims[0],
        index.len()
    );
    let mut residuals = Vec::new();
    for name in ["x1", "x2"] {
        residuals.extend(a.optional(name)?);
    }
    for view in &residuals {
        view.expect_dtype(&[rows.dtype])?.expect_dims(&out.dims)?;
    }
    let scales = a.optional("scales")?;
    if let Some(scales) = &scales {
        scales.expect_dtype(&[rows.dtype, DType::F32])?.expect_dims(&[tokens, k])?;
    }
    ensure!(scales.is_some() || k <= 1, "scales: null for {k} experts a token, expected a tensor");
    let bias = match (a.optional("bias")?, a.optional("expertIdx")?) {
        (None, _) => None,
        (Some(_), None) => {
            return Err(Refusal::new(
                crate::code::NULL,
                "expertIdx: null with bias, expected a tensor",
            ));
        }
        (Some(bias), Some(experts)) => {
            bias.expect_dtype(&[rows.dtype])?.expect_rank(2, 2)?;
            bias.expect_dims(&[bias.dims[0], rows.last()])?;
            experts.expect_dtype(&[DType::I32])?.expect_dims(&[tokens, k])?;
            Some((bias, experts))
        }
    };
    let work = Finalize { rows, index, residuals, bias, scales, k, by_token: mode == 2, out };
    Ok(Work::new(move |launch| work.run(launch)).with_workspace(u64::from(a.soc.vector_cores) * 64))
}

impl Finalize {
    fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let places: Vec<i64> = launch.read(&self.index)?;
        let weights: Vec<f32> =
            self.scales.as_ref().map_or_else(|| Ok(vec![1.0; places.len()]), |s| launch.read(s))?;
        let tokens = self.out.dims[0];
        let experts: Option<Vec<i64>> =
            self.bias.as_ref().map(|(_, experts)| launch.read(experts)).transpose()?;
        for token in 0..tokens {
            let mut sum = vec![0.0; self.out.last()];
            for view in &self.residuals {
                let row: Vec<f32> = launch.read(&view.select(0, token))?;
                sum.iter_mut().zip(&row).for_each(|(s, v)| *s += v);
            }
            for choice in 0..self.k {
                let own = token * self.k + choice;
                let at = if self.by_token { own } else { choice * tokens + token };
                let place = checked(&self.index, places[at], self.rows.dims[0])?;
                let mut row: Vec<f32> = launch.read(&self.rows.select(0, place))?;
                if let (Some((bias, view)), Some(experts)) = (&self.bias, &experts) {
                    let expert = checked(view, experts[own], bias.dims[0])?;
                    let bias: Vec<f32> = launch.read(&bias.select(0, expert))?;
                    row.iter_mut().zip(&bias).for_each(|(r, b)| *r += b);
                }
                sum.iter_mut().zip(&row).for_each(|(s, v)| *s += weights[own] * v);
            }
            launch.write(&self.out.select(0, token), &sum)?;
        }
        Ok(())
    }
}
