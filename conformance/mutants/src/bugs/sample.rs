//! SAMPLE.

use halyard_cpu_ref::sampling::{Rule, choose, philox4x32_10, uniform};
use halyard_sdk::{OpKind, Result};

use super::elementwise::packed;
use crate::{
    call::Call,
    mutant::{Mutant, bug},
};

const SAMPLE: OpKind = OpKind::SAMPLE;

/// A row's logits, its rule, and its number.
struct Row {
    logits: Vec<f64>,
    rule: Rule,
    seed: u64,
    offset: u64,
}

/// Runs, then draws again in another way.
fn redrawn(c: &Call<'_>, draw: fn(&Row) -> usize) -> Result<()> {
    let (logits, v) = (c.floats("logits"), c.width("logits"));
    let [temperature, top_p, min_p] = ["temperature", "top_p", "min_p"].map(|s| c.floats(s));
    let [top_k, seed, offset] = ["top_k", "seed", "offset"].map(|s| c.ints(s));
    c.then("ids", |b, _| {
        let rule =
            Rule { temperature: temperature[b], top_k: top_k[b], top_p: top_p[b], min_p: min_p[b] };
        let (seed, offset) = (seed[b].cast_unsigned(), offset[b].cast_unsigned());
        draw(&Row { logits: logits[b * v..][..v].to_vec(), rule, seed, offset }) as f64
    })
}

fn philox(row: &Row) -> [u32; 4] {
    let words = |x: u64| [x as u32, (x >> 32) as u32];
    let [low, high] = words(row.offset);
    philox4x32_10([low, high, 0, 0], words(row.seed))
}

fn fraction(word: u32) -> f64 {
    f64::from(word >> 8) / f64::from(1 << 24)
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("sample_min_p_ignored", SAMPLE, "min_p is accepted and not applied")
        .launch(|c| c.edit().map("min_p", |_, _| 0.0).run()),
    bug("sample_min_p_of_one", SAMPLE, "min_p is compared with the probability itself").launch(
        |c| {
            redrawn(c, |r| {
                let rule = Rule { top_k: 0, top_p: 1.0, min_p: 0.0, ..r.rule };
                // p_0 of the kept ids, which the right threshold is a share of.
                let t = if rule.temperature > 0.0 { rule.temperature } else { 1.0 };
                let most = r.logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = r.logits.iter().map(|l| ((l - most) / t).exp()).sum();
                let min_p = (r.rule.min_p * sum).min(1.0);
                choose(&r.logits, &Rule { min_p, ..r.rule }, uniform(r.seed, r.offset))
            })
        },
    ),
    bug("sample_top_k_one_more", SAMPLE, "one id more than top_k is kept")
        .launch(|c| c.edit().map_ints("top_k", |_, k| if k > 0 { k + 1 } else { k }).run()),
    bug("sample_top_k_ignored", SAMPLE, "top_k is accepted and not applied")
        .launch(|c| c.edit().map_ints("top_k", |_, _| 0).run()),
    bug("sample_top_p_ignored", SAMPLE, "top_p is accepted and not applied")
        .launch(|c| c.edit().map("top_p", |_, _| 1.0).run()),
    bug("sample_top_p_exclusive", SAMPLE, "the id that reaches top_p is dropped").launch(|c| {
        redrawn(c, |r| {
            let u = uniform(r.seed, r.offset);
            let first = choose(&r.logits, &Rule { top_k: 1, ..r.rule }, u);
            if r.rule.top_p >= 1.0 || r.rule.temperature <= 0.0 {
                return choose(&r.logits, &r.rule, u);
            }
            // The last of the kept is what the largest number draws; without it, if others are left.
            let last = choose(&r.logits, &Rule { min_p: 0.0, ..r.rule }, 0.999_999);
            let mut logits = r.logits.clone();
            if last != first {
                logits[last] = f64::NEG_INFINITY;
            }
            choose(&logits, &Rule { top_p: 1.0, min_p: 0.0, ..r.rule }, u)
        })
    }),
    bug("sample_top_p_before_top_k", SAMPLE, "top_p is of the probabilities before top_k").launch(
        |c| {
            redrawn(c, |r| {
                let u = uniform(r.seed, r.offset);
                let all = Rule { top_k: 0, ..r.rule };
                let last = choose(&r.logits, &Rule { min_p: 0.0, ..all }, 0.999_999);
                let kept = r.logits.iter().filter(|&&l| l >= r.logits[last]).count() as i64;
                let top_k = if r.rule.top_k > 0 { kept.min(r.rule.top_k) } else { kept };
                choose(&r.logits, &Rule { top_k, top_p: 1.0, ..r.rule }, u)
            })
        },
    ),
    bug("sample_temperature_multiplies", SAMPLE, "logits are multiplied by the temperature")
        .launch(|c| c.edit().map("temperature", |_, t| if t > 0.0 { 1.0 / t } else { t }).run()),
    bug("sample_temperature_0_is_1", SAMPLE, "temperature 0 draws")
        .launch(|c| c.edit().map("temperature", |_, t| if t > 0.0 { t } else { 1.0 }).run()),
    bug("sample_other_word", SAMPLE, "the second word of the generator is used")
        .launch(|c| redrawn(c, |r| choose(&r.logits, &r.rule, fraction(philox(r)[1])))),
    bug("sample_low_bits", SAMPLE, "the low 24 bits make the number")
        .launch(|c| redrawn(c, |r| choose(&r.logits, &r.rule, fraction(philox(r)[0] << 8)))),
    bug("sample_key_and_counter_swapped", SAMPLE, "seed and offset are in each other's place")
        .launch(|c| c.edit().swap("seed", "offset").run()),
    bug("sample_seed_of_32_bits", SAMPLE, "the upper half of the seed is ignored")
        .launch(|c| c.edit().map_ints("seed", |_, s| s & 0xffff_ffff).run()),
    bug("sample_offset_of_32_bits", SAMPLE, "the upper half of the offset is ignored")
        .launch(|c| c.edit().map_ints("offset", |_, s| s & 0xffff_ffff).run()),
    bug("sample_next_offset", SAMPLE, "the offset is counted up before the draw")
        .launch(|c| c.edit().map_ints("offset", |_, s| s.wrapping_add(1)).run()),
    bug("sample_seed_of_row_0", SAMPLE, "every row draws with the first one's seed and offset")
        .launch(|c| {
            let (seed, offset) = (c.ints("seed"), c.ints("offset"));
            c.edit().map_ints("seed", |_, _| seed[0]).map_ints("offset", |_, _| offset[0]).run()
        }),
    bug("sample_ascending", SAMPLE, "the draw walks the probabilities from the smallest").launch(
        |c| {
            redrawn(c, |r| {
                choose(&r.logits, &r.rule, (1.0 - uniform(r.seed, r.offset)).min(0.999_999_9))
            })
        },
    ),
    bug("sample_ties_to_higher", SAMPLE, "equal logits are sorted by descending id").launch(|c| {
        redrawn(c, |r| {
            let mirrored: Vec<f64> = r.logits.iter().rev().copied().collect();
            r.logits.len() - 1 - choose(&mirrored, &r.rule, uniform(r.seed, r.offset))
        })
    }),
    bug("sample_nan_drawn", SAMPLE, "NaN is the largest logit").launch(|c| {
        redrawn(c, |r| {
            let nan = r.logits.iter().position(|l| l.is_nan());
            nan.unwrap_or_else(|| choose(&r.logits, &r.rule, uniform(r.seed, r.offset)))
        })
    }),
    bug("sample_logprob_unscaled", SAMPLE, "the log-probability leaves the temperature out")
        .launch(|c| {
            if !c.has("logprob") {
                return c.run();
            }
            c.run()?;
            let (logits, ids, v) = (c.floats("logits"), c.ints("ids"), c.width("logits"));
            c.map("logprob", |b, _| {
                let row = &logits[b * v..][..v];
                let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = row.iter().map(|l| (l - most).exp()).sum();
                row[ids[b] as usize] - most - sum.ln()
            });
            Ok(())
        }),
    bug("sample_logprob_of_greedy", SAMPLE, "the log-probability is that of the likeliest id")
        .launch(|c| {
            c.run()?;
            if c.has("logprob") {
                let (logits, ids, v) = (c.floats("logits"), c.ints("ids"), c.width("logits"));
                let temperature = c.floats("temperature");
                c.map("logprob", |b, p| {
                    let row = &logits[b * v..][..v];
                    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let t = if temperature[b] > 0.0 { temperature[b] } else { 1.0 };
                    p + (most - row[ids[b] as usize]) / t
                });
            }
            Ok(())
        }),
    bug("sample_ignores_strides", SAMPLE, "rows are taken to follow each other")
        .launch(|c| c.edit().view("logits", packed).run()),
];
