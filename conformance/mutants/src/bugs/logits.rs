//! ARGMAX, TOPK, LOGPROBS, LOGITS_PROCESS.

use halyard_sdk::{DType, OpKind};

use super::elementwise::{packed, through};
use crate::mutant::{Mutant, bug};

const ARGMAX: OpKind = OpKind::ARGMAX;
const TOPK: OpKind = OpKind::TOPK;
const LOGPROBS: OpKind = OpKind::LOGPROBS;
const PROCESS: OpKind = OpKind::LOGITS_PROCESS;

/// Where the largest element is, as `better(candidate, so far)` says.
fn best(row: &[f64], better: fn(f64, f64) -> bool) -> f64 {
    let mut at = 0;
    for (i, &v) in row.iter().enumerate().skip(1) {
        if better(v, row[at]) {
            at = i;
        }
    }
    at as f64
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("argmax_ties_to_last", ARGMAX, ">= where > is meant").launch(|c| {
        let (logits, v) = (c.floats("logits"), c.width("logits"));
        c.then("ids", |b, id| {
            let row = &logits[b * v..][..v];
            let most = row[id as usize];
            let equal = |&l: &f64| l.partial_cmp(&most).is_some_and(std::cmp::Ordering::is_eq);
            row.iter().rposition(equal).map_or(id, |last| last as f64)
        })
    }),
    bug("argmax_nan_wins", ARGMAX, "NaN counts as the largest").launch(|c| {
        let (logits, v) = (c.floats("logits"), c.width("logits"));
        c.then("ids", |b, id| {
            let nan = logits[b * v..][..v].iter().position(|l| l.is_nan());
            nan.map_or(id, |at| at as f64)
        })
    }),
    bug("argmax_first_nan_stays", ARGMAX, "nothing is larger than a NaN at the start").launch(
        |c| {
            let (logits, v) = (c.floats("logits"), c.width("logits"));
            c.then("ids", |b, _| best(&logits[b * v..][..v], |a, b| a > b))
        },
    ),
    bug("argmax_of_nothing_is_negative", ARGMAX, "a row of -inf gives -1").launch(|c| {
        let (logits, v) = (c.floats("logits"), c.width("logits"));
        let none = |b: usize| logits[b * v..][..v].iter().all(|l| l.is_nan() || *l < f64::MIN);
        c.then("ids", |b, id| if none(b) { -1.0 } else { id })
    }),
    bug("argmax_tail_missed", ARGMAX, "ids after the last whole 8 are not looked at").launch(|c| {
        let v = c.width("logits");
        let missed = |i: usize| v > 8 && i % v >= v / 8 * 8;
        c.edit().map("logits", |i, l| if missed(i) { f64::NEG_INFINITY } else { l }).run()
    }),
    bug("argmax_in_bf16", ARGMAX, "f32 logits are compared as bf16")
        .launch(|c| c.edit().map("logits", |_, l| through(DType::BF16, l)).run()),
    bug("argmax_ignores_strides", ARGMAX, "rows are taken to follow each other")
        .launch(|c| c.edit().view("logits", packed).run()),
    bug("topk_ties_to_higher", TOPK, "equal logits come by descending id").launch(|c| {
        let (logits, v) = (c.floats("logits"), c.width("logits"));
        let mirror = |i: usize| i / v * v + v - 1 - i % v;
        c.edit().map("logits", |i, _| logits[mirror(i)]).run()?;
        c.map("ids", |_, id| v as f64 - 1.0 - id);
        Ok(())
    }),
    bug("topk_unsorted", TOPK, "the best come in order of id").launch(|c| {
        c.run()?;
        let (ids, values, top) = (c.ints("ids"), c.floats("values"), c.width("ids").max(1));
        let order: Vec<usize> = (0..ids.len() / top)
            .flat_map(|row| {
                let mut places: Vec<usize> = (row * top..(row + 1) * top).collect();
                places.sort_by_key(|&i| ids[i]);
                places
            })
            .collect();
        c.map("ids", |i, _| ids[order[i]] as f64);
        c.map("values", |i, _| values[order[i]]);
        Ok(())
    }),
    bug("topk_last_is_next", TOPK, "the last of several is one place too far").launch(|c| {
        let top = c.width("ids");
        c.then("ids", |i, id| if top > 1 && i % top == top - 1 { id + 1.0 } else { id })
    }),
    bug("topk_values_of_argmax", TOPK, "every value is the row's largest").launch(|c| {
        c.run()?;
        let (values, top) = (c.floats("values"), c.width("values").max(1));
        c.map("values", |i, _| values[i / top * top]);
        Ok(())
    }),
    bug("topk_by_magnitude", TOPK, "large negative logits come first")
        .launch(|c| c.edit().map("logits", |_, l| l.abs()).run()),
    bug("logprobs_overflow", LOGPROBS, "the largest logit is not taken off before the exponential")
        .launch(|c| {
            let (logits, v, m) = (c.floats("logits"), c.width("logits"), c.width("out"));
            let over = |b: usize| logits[b * v..][..v].iter().any(|&l| l > 88.7);
            c.then("out", |i, o| if over(i / m) { f64::NEG_INFINITY } else { o })
        }),
    bug("logprobs_of_base_2", LOGPROBS, "the logarithm is of base 2")
        .launch(|c| c.then("out", |_, o| o / std::f64::consts::LN_2)),
    bug("logprobs_padding_is_first", LOGPROBS, "a negative id counts as id 0")
        .launch(|c| c.edit().map_ints("ids", |_, id| id.max(0)).run()),
    bug("logprobs_padding_left", LOGPROBS, "the place of a negative id is not written").launch(
        |c| {
            let (before, ids) = (c.floats("out"), c.ints("ids"));
            c.then("out", |i, o| if ids[i] < 0 { before[i] } else { o })
        },
    ),
    bug("logprobs_tail_not_summed", LOGPROBS, "logits after the last whole 8 are not summed")
        .launch(|c| {
            let (logits, ids) = (c.floats("logits"), c.ints("ids"));
            let (v, m) = (c.width("logits"), c.width("ids"));
            c.then("out", |i, o| {
                if ids[i] < 0 {
                    return o;
                }
                // What the tail holds, taken off the sum.
                let row = &logits[i / m * v..][..v];
                let lse = row[ids[i] as usize] - o;
                let tail: f64 = row[v / 8 * 8..].iter().map(|l| (l - lse).exp()).sum();
                o - (1.0 - tail).max(1e-30).ln()
            })
        }),
    bug("logprobs_are_logits", LOGPROBS, "nothing is taken off").launch(|c| {
        let (logits, ids) = (c.floats("logits"), c.ints("ids"));
        let (v, m) = (c.width("logits"), c.width("ids"));
        c.then("out", |i, o| if ids[i] < 0 { o } else { logits[i / m * v + ids[i] as usize] })
    }),
    bug("process_repetition_of_negative", PROCESS, "a negative logit is divided, too").launch(
        |c| {
            if !c.has("ids") {
                return c.run();
            }
            // What multiplies a negative logit: r for the right kernel, 1 / r here; -inf stays.
            let (logits, ids, all) = (c.floats("logits"), c.ints("ids"), c.ints("count_all"));
            let (params, v, m) = (c.floats("params"), c.width("logits"), c.width("ids"));
            let mut changed = logits.clone();
            for (i, &id) in ids.iter().enumerate().filter(|&(i, &id)| id >= 0 && all[i] > 0) {
                let (r, at) = (params[i / m * 3], i / m * v + id as usize);
                if changed[at] < 0.0 && !c.has("bias") {
                    changed[at] /= r * r;
                }
            }
            c.write("logits", &changed);
            c.run()
        },
    ),
    bug("process_penalties_by_all", PROCESS, "presence and frequency count the prompt, too")
        .launch(|c| {
            if !c.has("ids") {
                return c.run();
            }
            let all = c.ints("count_all");
            c.edit().map_ints("count_out", |i, _| all[i]).run()
        }),
    bug("process_frequency_added", PROCESS, "the frequency penalty is added")
        .launch(|c| c.edit().map("params", |i, p| if i % 3 == 2 { -p } else { p }).run()),
    bug("process_presence_always", PROCESS, "presence is taken off ids that only the prompt has")
        .launch(|c| {
            if !c.has("ids") || c.has("mask") {
                return c.run();
            }
            let (ids, all, out) = (c.ints("ids"), c.ints("count_all"), c.ints("count_out"));
            let (params, v, m) = (c.floats("params"), c.width("logits"), c.width("ids"));
            c.run()?;
            let mut logits = c.floats("logits");
            for (i, &id) in ids.iter().enumerate() {
                if id >= 0 && all[i] > 0 && out[i] == 0 {
                    logits[i / m * v + id as usize] -= params[i / m * 3 + 1];
                }
            }
            c.write("logits", &logits);
            Ok(())
        }),
    bug("process_params_swapped", PROCESS, "presence and frequency are in each other's place")
        .launch(|c| {
            if !c.has("params") {
                return c.run();
            }
            let params = c.floats("params");
            let other = |i: usize| [i, i + 1, i.saturating_sub(1)][i % 3];
            c.edit().map("params", |i, _| params[other(i)]).run()
        }),
    bug("process_uncounted_penalised", PROCESS, "ids with a count of 0 are penalised")
        .launch(|c| c.edit().map_ints("count_all", |_, n| n.max(1)).run()),
    bug("process_mask_bits_reversed", PROCESS, "mask bits are read most significant first").launch(
        |c| {
            let reversed = |word: i64| i64::from((word as u32).reverse_bits());
            c.edit().map_ints("mask", |_, w| reversed(w)).run()
        },
    ),
    bug("process_mask_inverted", PROCESS, "a bit of 1 forbids")
        .launch(|c| c.edit().map_ints("mask", |_, w| !w).run()),
    bug("process_mask_last_word", PROCESS, "the last, partly used word of the mask is not applied")
        .launch(|c| {
            let words = c.width("mask");
            c.edit().map_ints("mask", |i, w| if i % words == words - 1 { -1 } else { w }).run()
        }),
    bug("process_mask_is_finite", PROCESS, "forbidden ids get a large negative number")
        .launch(|c| c.then("logits", |_, l| if l.is_infinite() && l < 0.0 { -1e30 } else { l })),
    bug("process_mask_first", PROCESS, "the mask comes before the bias, which may be infinite")
        .launch(|c| {
            if !c.has("mask") || !c.has("bias") {
                return c.run();
            }
            let (before, ids) = (c.floats("logits"), c.ints("bias_ids"));
            let (bias, v, m) = (c.floats("bias"), c.width("logits"), c.width("bias_ids"));
            c.run()?;
            let mut logits = c.floats("logits");
            for (i, &id) in ids.iter().enumerate().filter(|&(_, &id)| id >= 0) {
                let at = i / m * v + id as usize;
                if logits[at].is_infinite() {
                    logits[at] = before[at] + bias[i];
                }
            }
            c.write("logits", &logits);
            Ok(())
        }),
    bug("process_bias_overwrites", PROCESS, "the bias replaces the logit").launch(|c| {
        if !c.has("bias") {
            return c.run();
        }
        let (ids, mut logits) = (c.ints("bias_ids"), c.floats("logits"));
        let (v, m) = (c.width("logits"), c.width("bias_ids"));
        for (i, &id) in ids.iter().enumerate().filter(|&(_, &id)| id >= 0) {
            logits[i / m * v + id as usize] = 0.0;
        }
        c.write("logits", &logits);
        c.run()
    }),
    bug("process_bias_after_penalties", PROCESS, "the bias is added after the penalties").launch(
        |c| {
            if !c.has("bias") || !c.has("ids") {
                return c.run();
            }
            let (ids, bias) = (c.ints("bias_ids"), c.floats("bias"));
            let (v, m) = (c.width("logits"), c.width("bias_ids"));
            c.edit().without("bias_ids").without("bias").run()?;
            let mut logits = c.floats("logits");
            for (i, &id) in ids.iter().enumerate().filter(|&(_, &id)| id >= 0) {
                logits[i / m * v + id as usize] += bias[i];
            }
            c.write("logits", &logits);
            Ok(())
        },
    ),
    bug("process_padding_is_first", PROCESS, "a negative id counts as id 0").launch(|c| {
        c.edit().map_ints("ids", |_, id| id.max(0)).map_ints("bias_ids", |_, id| id.max(0)).run()
    }),
];
