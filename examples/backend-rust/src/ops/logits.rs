//! From logits to a token.

use std::cmp::Ordering;

use halyard_sdk::{
    HostTensor,
    abi::ops::attrs::{Argmax, LogitsProcess, Logprobs, Sample, Topk},
};

use super::{Body, index};

/// A row; NaN counts as -inf.
fn row(logits: &HostTensor, b: usize) -> Vec<f64> {
    let clean = |l: f64| if l.is_nan() { f64::NEG_INFINITY } else { l };
    logits.row(&[b]).map(clean).collect()
}

/// Ids from the largest logit down, ties by id.
fn order(row: &[f64]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
    ids
}

/// `ln Σ e^l`.
fn log_sum(row: &[f64]) -> f64 {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + row.iter().map(|l| (l - largest).exp()).sum::<f64>().ln()
}

pub(super) fn argmax(_: Argmax) -> Body {
    Box::new(|call| {
        let (logits, ids) = (call.tensor(0), call.tensor(1));
        for b in 0..logits.dim(0) {
            ids.set(&[b], order(&row(&logits, b))[0] as f64);
        }
        Ok(())
    })
}

pub(super) fn topk(_: Topk) -> Body {
    Box::new(|call| {
        let (logits, values, ids) = (call.tensor(0), call.tensor(1), call.tensor(2));
        for b in 0..logits.dim(0) {
            let row = row(&logits, b);
            for (i, &id) in order(&row).iter().take(ids.dim(1)).enumerate() {
                values.set(&[b, i], row[id]);
                ids.set(&[b, i], id as f64);
            }
        }
        Ok(())
    })
}

pub(super) fn logprobs(_: Logprobs) -> Body {
    Box::new(|call| {
        let (logits, ids, out) = (call.tensor(0), call.tensor(1), call.tensor(2));
        for b in 0..logits.dim(0) {
            let row = row(&logits, b);
            let norm = log_sum(&row);
            for m in 0..ids.dim(1) {
                let id = index(ids.get_int(&[b, m]), row.len(), "id")?;
                out.set(&[b, m], id.map_or(0.0, |id| row[id] - norm));
            }
        }
        Ok(())
    })
}

/// Bias, then penalties, then the mask.
pub(super) fn process(_: LogitsProcess) -> Body {
    Box::new(|call| {
        let logits = call.tensor(0);
        let vocab = logits.dim(1);
        for b in 0..logits.dim(0) {
            if let (Some(ids), Some(bias)) = (call.optional(6), call.optional(7)) {
                for m in 0..ids.dim(1) {
                    let Some(id) = index(ids.get_int(&[b, m]), vocab, "id")? else { continue };
                    logits.set(&[b, id], logits.get(&[b, id]) + bias.get(&[b, m]));
                }
            }
            if let (Some(ids), Some(all), Some(out), Some(params)) =
                (call.optional(2), call.optional(3), call.optional(4), call.optional(5))
            {
                let [repetition, presence, frequency] = [0, 1, 2].map(|p| params.get(&[b, p]));
                for m in 0..ids.dim(1) {
                    let Some(id) = index(ids.get_int(&[b, m]), vocab, "id")? else { continue };
                    if all.get_int(&[b, m]) <= 0 {
                        continue;
                    }
                    let l = logits.get(&[b, id]);
                    let l = if l > 0.0 { l / repetition } else { l * repetition };
                    let count = out.get(&[b, m]);
                    let seen = if count > 0.0 { presence } else { 0.0 };
                    logits.set(&[b, id], l - frequency * count - seen);
                }
            }
            if let Some(mask) = call.optional(1) {
                for v in (0..vocab).filter(|v| mask.get_int(&[b, v / 32]) >> (v % 32) & 1 == 0) {
                    logits.set(&[b, v], f64::NEG_INFINITY);
                }
            }
        }
        Ok(())
    })
}

pub(super) fn sample(_: Sample) -> Body {
    Box::new(|call| {
        let logits = call.tensor(0);
        let [temperature, top_k, top_p, min_p] = [1, 2, 3, 4].map(|slot| call.tensor(slot));
        let (seed, offset, ids, logprob) =
            (call.tensor(5), call.tensor(6), call.tensor(7), call.optional(8));
        for b in 0..logits.dim(0) {
            let mut row = row(&logits, b);
            let t = temperature.get(&[b]);
            if t > 0.0 {
                row.iter_mut().for_each(|l| *l /= t);
            }
            let sorted = order(&row);
            let id = if t > 0.0 {
                let k = usize::try_from(top_k.get_int(&[b])).unwrap_or(0);
                let (seed, offset) = (seed.get_int(&[b]), offset.get_int(&[b]));
                let u = uniform(seed.cast_unsigned(), offset.cast_unsigned());
                let kept = if k == 0 { row.len() } else { k.min(row.len()) };
                draw(&row, &sorted[..kept], top_p.get(&[b]), min_p.get(&[b]), u)
            } else {
                sorted[0]
            };
            ids.set(&[b], id as f64);
            if let Some(out) = logprob {
                out.set(&[b], row[id] - log_sum(&row));
            }
        }
        Ok(())
    })
}

/// One of `kept`, most likely first, after top-p and min-p.
fn draw(row: &[f64], kept: &[usize], top_p: f64, min_p: f64, u: f64) -> usize {
    let largest = row[kept[0]];
    let weight = |&id: &usize| (row[id] - largest).exp();
    let sum: f64 = kept.iter().map(weight).sum();
    let p: Vec<f64> = kept.iter().map(|id| weight(id) / sum).collect();
    let mut cumulative = 0.0;
    let nucleus = p.iter().position(|p| {
        cumulative += p;
        cumulative >= top_p
    });
    let p = &p[..nucleus.map_or(p.len(), |last| last + 1)];
    let likely: Vec<f64> = p.iter().copied().filter(|&q| q >= min_p * p[0]).collect();
    let threshold = u * likely.iter().sum::<f64>();
    let mut cumulative = 0.0;
    let drawn = likely.iter().position(|p| {
        cumulative += p;
        cumulative > threshold
    });
    kept[drawn.unwrap_or(likely.len() - 1)]
}

/// The first word of Philox 4×32-10 (Salmon et al., SC 2011) as a number in `[0, 1)`.
fn uniform(seed: u64, offset: u64) -> f64 {
    let halves = |v: u64| [v as u32, (v >> 32) as u32];
    let ([mut k0, mut k1], [c0, c1]) = (halves(seed), halves(offset));
    let mut c = [c0, c1, 0, 0];
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        let ([a_low, a_high], [b_low, b_high]) = (halves(a), halves(b));
        c = [b_high ^ c[1] ^ k0, b_low, a_high ^ c[3] ^ k1, a_low];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    f64::from(c[0] >> 8) / f64::from(1 << 24)
}
