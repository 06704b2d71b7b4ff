//! MOE_ROUTER.

use halyard_sdk::{OpKind, abi::AttrKey};

use super::elementwise::packed;
use crate::{
    call::Call,
    mutant::{Mutant, bug},
};

const ROUTER: OpKind = OpKind::MOE_ROUTER;

/// The scores of every row.
fn scores(c: &Call<'_>) -> Vec<f64> {
    let (logits, experts) = (c.floats("logits"), c.width("logits").max(1));
    let sigmoid = c.int(AttrKey::SCORE) != 0;
    let row = |row: &[f64]| -> Vec<f64> {
        if sigmoid {
            return row.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect();
        }
        let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|l| (l - most).exp()).sum();
        row.iter().map(|l| (l - most).exp() / sum).collect()
    };
    logits.chunks(experts).flat_map(row).collect()
}

/// Reverses the choices of each row.
fn reversed(values: &mut [f64], top: usize) {
    values.chunks_mut(top.max(1)).for_each(<[f64]>::reverse);
}

/// Experts of dropped groups compete with a score of 0 instead of not at all.
fn dropped_groups_are_zero(c: &Call<'_>) -> halyard_sdk::Result<()> {
    c.run()?;
    let (groups, kept) = (c.int(AttrKey::N_GROUP) as usize, c.int(AttrKey::TOPK_GROUP) as usize);
    if groups < 2 || !c.has("bias") {
        return Ok(());
    }
    let (scores, bias) = (scores(c), c.floats("bias"));
    let (experts, top) = (bias.len(), c.width("ids"));
    let size = experts / groups;
    let best = if c.int(AttrKey::GROUP_SCORE) != 0 { 2 } else { 1 };
    let mut ids = Vec::new();
    for row in scores.chunks(experts) {
        let choice: Vec<f64> = row.iter().zip(&bias).map(|(s, b)| s + b).collect();
        let group = |g: usize| -> f64 {
            let mut members = choice[g * size..][..size].to_vec();
            members.sort_by(|a, b| b.total_cmp(a));
            members[..best].iter().sum()
        };
        let order = descending(&(0..groups).map(group).collect::<Vec<_>>());
        let kept = |e: usize| order[..kept].contains(&(e / size));
        let masked: Vec<f64> =
            (0..experts).map(|e| if kept(e) { choice[e] } else { 0.0 }).collect();
        ids.extend(descending(&masked).into_iter().take(top).map(|e| e as f64));
    }
    c.write("ids", &ids);
    Ok(())
}

fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[j].total_cmp(&values[i]).then(i.cmp(&j)));
    order
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("router_norm_ignored", ROUTER, "weights are not divided by their sum")
        .desc(|d| d.set(AttrKey::NORM, |_| 0)),
    bug("router_always_norms", ROUTER, "weights are always divided by their sum")
        .desc(|d| d.set(AttrKey::NORM, |_| 1)),
    bug("router_scale_dropped", ROUTER, "SCALE counts as 1")
        .desc(|d| d.set_float(AttrKey::SCALE, |_| 1.0)),
    bug("router_scale_before_norm", ROUTER, "SCALE multiplies before the division by the sum")
        .launch(|c| {
            let (norm, scale) = (c.int(AttrKey::NORM) != 0, c.float(AttrKey::SCALE));
            c.then("weight", |_, w| if norm { w / scale } else { w })
        }),
    bug("router_bias_in_weights", ROUTER, "weights are of the scores with bias").launch(|c| {
        c.run()?;
        if c.has("bias") {
            let (bias, ids) = (c.floats("bias"), c.ints("ids"));
            c.map("weight", |i, w| w + bias[ids[i] as usize]);
        }
        Ok(())
    }),
    bug("router_bias_ignored", ROUTER, "the bias does not choose")
        .launch(|c| c.edit().without("bias").run()),
    bug("router_ties_to_higher", ROUTER, "equal scores go to the higher index").launch(|c| {
        let (logits, experts) = (c.floats("logits"), c.width("logits"));
        let mirror = |i: usize| i / experts * experts + experts - 1 - i % experts;
        if c.has("bias") {
            return c.run();
        }
        c.edit().map("logits", |i, _| logits[mirror(i)]).run()?;
        c.map("ids", |_, e| experts as f64 - 1.0 - e);
        Ok(())
    }),
    bug("router_ascending", ROUTER, "the choices come worst first").launch(|c| {
        c.run()?;
        let top = c.width("ids");
        c.change("ids", |v| reversed(v, top));
        c.change("weight", |v| reversed(v, top));
        Ok(())
    }),
    bug("router_softmax_of_chosen", ROUTER, "the softmax is over the chosen experts only").launch(
        |c| {
            let (softmax, top) = (c.int(AttrKey::SCORE) == 0, c.width("weight").max(1));
            c.run()?;
            if softmax {
                let w = c.floats("weight");
                let scale = c.float(AttrKey::SCALE);
                let sum = |i: usize| w[i / top * top..][..top].iter().sum::<f64>();
                c.map("weight", |i, v| v * scale / sum(i));
            }
            Ok(())
        },
    ),
    bug("router_always_softmax", ROUTER, "SCORE is ignored").desc(|d| d.set(AttrKey::SCORE, |_| 0)),
    bug("router_overflows", ROUTER, "the largest logit is not taken off before the exponential")
        .launch(|c| {
            let (logits, experts, top) = (c.floats("logits"), c.width("logits"), c.width("weight"));
            let softmax = c.int(AttrKey::SCORE) == 0;
            let over = |row: usize| logits[row * experts..][..experts].iter().any(|&l| l > 88.7);
            c.then("weight", |i, w| if softmax && over(i / top) { f64::NAN } else { w })
        }),
    bug("router_groups_ignored", ROUTER, "all groups are kept").desc(|d| {
        let groups = d.attrs.iter().find(|a| a.key == AttrKey::N_GROUP).map_or(1, |a| a.bits);
        d.set(AttrKey::TOPK_GROUP, |_| groups);
    }),
    bug("router_group_by_best", ROUTER, "a group counts by its best instead of its best two")
        .desc(|d| d.set(AttrKey::GROUP_SCORE, |_| 0)),
    bug("router_group_one_fewer", ROUTER, "one group fewer is kept").desc(|d| {
        d.set(AttrKey::TOPK_GROUP, |n| if n > 1 { n - 1 } else { n });
    }),
    bug(
        "router_dropped_groups_are_zero",
        ROUTER,
        "experts of dropped groups compete with a score of 0",
    )
    .launch(dropped_groups_are_zero),
    bug("router_ignores_strides", ROUTER, "logits are taken to be packed")
        .launch(|c| c.edit().view("logits", packed).run()),
    bug("router_last_expert_missed", ROUTER, "experts after the last whole 8 are not looked at")
        .launch(|c| {
            let experts = c.width("logits");
            let missed = |e: usize| experts > 8 && e >= experts / 8 * 8;
            c.edit().map("logits", |i, l| if missed(i % experts) { -80.0 } else { l }).run()
        }),
];
