//! Which experts a token goes to.

use crate::dtype::{DType, FLOATS};
use crate::elementwise::sigmoid;
use crate::op::{Args, Op, Since, Work, flag, float, int64, tensor};
use crate::refusal::{Refusal, ensure};
use crate::sample::{order_of, softmaxed};
use crate::view::View;

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "MoeGatingTopK",
        since: Since::V9_1,
        params: &[
            tensor("x"),
            tensor("bias").or_null(),
            int64("k"),
            int64("kGroup"),
            int64("groupCount"),
            int64("groupSelectMode"),
            int64("renorm"),
            int64("normType"),
            flag("outFlag"),
            float("routedScalingFactor"),
            float("eps"),
            tensor("yOut").out(),
            tensor("expertIdxOut").out(),
            tensor("outOut").out(),
        ],
        plan: grouped,
    },
    Op {
        name: "MoeGatingTopKSoftmax",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("finished").or_null(),
            int64("k"),
            tensor("yOut").out(),
            tensor("expertIdxOut").out(),
            tensor("rowIdxOut").out(),
        ],
        plan: softmax,
    },
    Op {
        name: "MoeGatingTopKSoftmaxV2",
        since: Since::V8_1,
        params: &[
            tensor("x"),
            tensor("finished").or_null(),
            int64("k"),
            int64("renorm"),
            flag("outputSoftmaxResultFlag"),
            tensor("yOut").out(),
            tensor("expertIdxOut").out(),
            tensor("softmaxResultOut").or_null().out(),
        ],
        plan: softmax,
    },
];

/// The choice of some groups of experts.
#[derive(Clone, Copy)]
struct Groups {
    count: usize,
    chosen: usize,
    /// A group counts as its two best, not its best.
    two: bool,
}

#[derive(Clone, Copy)]
struct Weights {
    sigmoid: bool,
    /// Divided by their sum.
    shared: bool,
    factor: f32,
    eps: f32,
}

fn check_choice(a: &Args<'_>, x: &View) -> Result<[View; 2], Refusal> {
    let k = a.int("k")?;
    let (experts, lead) = (x.last(), &x.dims[..x.rank() - 1]);
    ensure!((1..=experts as i64).contains(&k), "k: {k}, expected 1 to {experts} experts");
    let dims = [lead, &[k as usize]].concat();
    let (y, index) = (a.tensor("yOut")?, a.tensor("expertIdxOut")?);
    y.expect_dtype(&[x.dtype])?.expect_dims(&dims)?;
    index.expect_dtype(&[DType::I32])?.expect_dims(&dims)?;
    Ok([y, index])
}

fn groups(a: &Args<'_>, experts: usize) -> Result<Groups, Refusal> {
    let (count, chosen) = (a.int("groupCount")?, a.int("kGroup")?);
    ensure!(
        count > 0 && (experts as i64) % count == 0,
        "groupCount: {count}, expected a divisor of {experts} experts"
    );
    ensure!((1..=count).contains(&chosen), "kGroup: {chosen}, expected 1 to groupCount {count}");
    let (count, chosen) = (count as usize, chosen as usize);
    let two = a.choice("groupSelectMode", &[0, 1])? == 1;
    let (size, k) = (experts / count, a.int("k")?);
    ensure!(
        !two || size > 1,
        "groupSelectMode: 1 with groups of {size}, expected two experts a group"
    );
    ensure!(
        k as usize <= chosen * size,
        "k: {k}, expected at most the {} experts of kGroup {chosen} groups",
        chosen * size
    );
    Ok(Groups { count, chosen, two })
}

impl Groups {
    /// Hides all experts but those of the best groups.
    fn narrow(self, scores: &mut [f32]) {
        let size = scores.len() / self.count;
        let worth: Vec<f32> = scores
            .chunks_exact(size)
            .map(|group| {
                order_of(group, true)[..1 + usize::from(self.two)].iter().map(|&i| group[i]).sum()
            })
            .collect();
        for &group in &order_of(&worth, true)[self.chosen..] {
            scores[group * size..][..size].fill(f32::NEG_INFINITY);
        }
    }
}

fn grouped(a: &Args<'_>) -> Result<Work, Refusal> {
    let x = a.tensor("x")?;
    x.expect_dtype(FLOATS)?.expect_rank(2, 2)?;
    let experts = x.last();
    ensure!((1..=2048).contains(&experts), "x: {experts} experts, expected 1 to 2048");
    let [y, index] = check_choice(a, &x)?;
    let groups = groups(a, experts)?;
    let sigmoid = a.choice("normType", &[0, 1])? == 1;
    let shared = a.choice("renorm", &[0, 1])? == 1 || sigmoid;
    let bias = a.optional("bias")?;
    if let Some(bias) = &bias {
        bias.expect_dtype(&[x.dtype])?.expect_dims(&[experts])?;
    }
    let all = if a.flag("outFlag")? { Some(a.tensor("outOut")?) } else { None };
    if let Some(all) = &all {
        all.expect_dtype(&[DType::F32])?.expect_dims(&x.dims)?;
    }
    let (factor, eps) = (a.float("routedScalingFactor")? as f32, a.float("eps")? as f32);
    let weights = Weights { sigmoid, shared, factor, eps };
    let workspace = x.len() as u64 * 4;
    Ok(Work::new(move |launch| {
        let mut scores: Vec<f32> = launch.read(&x)?;
        let bias: Vec<f32> =
            bias.as_ref().map_or_else(|| Ok(vec![0.0; experts]), |b| launch.read(b))?;
        let (mut picked, mut ids) = (Vec::new(), Vec::new());
        for row in scores.chunks_exact_mut(experts) {
            weights.score(row);
            let mut selection: Vec<f32> = row.iter().zip(&bias).map(|(s, b)| s + b).collect();
            groups.narrow(&mut selection);
            let chosen = &order_of(&selection, true)[..y.last()];
            picked.extend(weights.of(row, chosen));
            ids.extend(chosen.iter().map(|&i| i as i64));
        }
        launch.write(&y, &picked)?;
        launch.write(&index, &ids)?;
        all.as_ref().map_or(Ok(()), |all| launch.write(all, &scores))
    })
    .with_workspace(workspace))
}

impl Weights {
    fn score(self, row: &mut [f32]) {
        if self.sigmoid {
            row.iter_mut().for_each(|v| *v = sigmoid(*v));
        } else {
            softmaxed(row);
        }
    }

    fn of(self, row: &[f32], chosen: &[usize]) -> Vec<f32> {
        let sum: f32 = chosen.iter().map(|&i| row[i]).sum();
        let divisor = if self.shared { sum + self.eps } else { 1.0 };
        chosen.iter().map(|&i| row[i] / divisor * self.factor).collect()
    }
}

fn softmax(a: &Args<'_>) -> Result<Work, Refusal> {
    let x = a.tensor("x")?;
    x.expect_dtype(FLOATS)?.expect_rank(2, 3)?;
    let (experts, k) = (x.last(), a.int("k")?);
    ensure!(k <= 1024, "k: {k}, expected at most 1024");
    let [y, index] = check_choice(a, &x)?;
    let (finished, rows) = (a.optional("finished")?, x.len() / experts.max(1));
    if let Some(finished) = &finished {
        finished.expect_dtype(&[DType::Bool])?.expect_dims(&x.dims[..x.rank() - 1])?;
    }
    let after = a.has("renorm") && a.choice("renorm", &[0, 1])? == 1;
    let row_index = if a.has("rowIdxOut") { Some(a.tensor("rowIdxOut")?) } else { None };
    if let Some(view) = &row_index {
        view.expect_dtype(&[DType::I32])?.expect_dims(&index.dims)?;
    }
    let all = if a.has("outputSoftmaxResultFlag") && a.flag("outputSoftmaxResultFlag")? {
        ensure!(!after, "outputSoftmaxResultFlag: true with renorm 1, expected false");
        let all = a.tensor("softmaxResultOut")?;
        all.expect_dtype(&[DType::F32])?.expect_dims(&x.dims)?;
        Some(all)
    } else {
        None
    };
    let (k, workspace) = (k as usize, x.len() as u64 * 4);
    Ok(Work::new(move |launch| {
        let mut scores: Vec<f32> = launch.read(&x)?;
        let done: Vec<i64> =
            finished.as_ref().map_or_else(|| Ok(vec![0; rows]), |f| launch.read(f))?;
        let (mut picked, mut ids) = (Vec::new(), Vec::new());
        for (row, done) in scores.chunks_exact_mut(experts).zip(done) {
            if !after {
                softmaxed(row);
            }
            let chosen = &order_of(row, true)[..k];
            let mut weights: Vec<f32> = chosen.iter().map(|&i| row[i]).collect();
            if after {
                softmaxed(&mut weights);
            }
            picked.extend(weights);
            ids.extend(chosen.iter().map(|&i| if done == 0 { i } else { experts } as i64));
        }
        launch.write(&y, &picked)?;
        launch.write(&index, &ids)?;
        if let Some(view) = &row_index {
            // Numbered column by column.
            let numbers: Vec<i64> = (0..rows * k).map(|i| (i % k * rows + i / k) as i64).collect();
            launch.write(view, &numbers)?;
        }
        all.as_ref().map_or(Ok(()), |all| launch.write(all, &scores))
    })
    .with_workspace(workspace))
}
