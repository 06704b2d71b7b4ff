//! SAMPLE.
//!
//! The rule walks all ids in descending order, but the walk nearly always ends among the first few
//! hundred. So only ids close to the best are sorted; if the walk leaves them, all are.

use std::sync::atomic::{AtomicUsize, Ordering};

use halyard_sdk::{Result, TensorSpec, abi::ops::attrs::Sample};

use super::args::{Args, Table};
use super::logits::{ArgmaxRow, LogSumExp};
use super::{Launch, Op, Prepared, same, spec_dim};
use crate::device::Context;
use crate::elem::Rows;
use crate::isa::Isa;

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Sample {} = op.attrs()?;
    Ok(Prepared::native(Draw))
}

struct Draw;

/// What draws a row.
#[derive(Clone, Copy)]
struct Rule {
    temperature: f32,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    /// Uniform in `[0, 1)`.
    u: f64,
}

impl Launch for Draw {
    /// A list of all ids for each thread.
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        let tasks = context.pool.threads().min(spec_dim(shapes, 0, 0));
        tasks.saturating_mul(spec_dim(shapes, 0, 1)).saturating_mul(8)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (logits, rows, n) = args.rows(0)?;
        // SAFETY: the host has checked the views.
        let (temperature, top_k, top_p, min_p, seed, offset) = unsafe {
            (
                args.slice::<f32>(1)?,
                args.slice::<i32>(2)?,
                args.slice::<f32>(3)?,
                args.slice::<f32>(4)?,
                args.slice::<u64>(5)?,
                args.slice::<u64>(6)?,
            )
        };
        // SAFETY: the host has checked the view.
        let ids: &mut [i32] = unsafe { args.slice_mut(7)? };
        let logprob = match args.optional(8) {
            None => None,
            // SAFETY: the host has checked the view.
            Some(_) => Some(unsafe { args.slice_mut::<f32>(8)? }),
        };
        for len in [
            temperature.len(),
            top_k.len(),
            top_p.len(),
            min_p.len(),
            seed.len(),
            offset.len(),
            ids.len(),
        ] {
            same("rows", len, rows)?;
        }
        same("rows", logprob.as_ref().map_or(rows, |l| l.len()), rows)?;
        if rows == 0 || n == 0 {
            ids.fill(0);
            return Ok(());
        }
        let (ids, logprob) = (Table::of(ids), logprob.map(Table::of));
        let tasks = args.context.pool.threads().min(rows);
        let scratch = Scratch(args.workspace(tasks * n * 8)?.cast());
        let (isa, next) = (args.context.isa, AtomicUsize::new(0));
        args.context.pool.run(tasks, &|task| {
            // SAFETY: each task has its own part of the workspace.
            let keys = unsafe { scratch.part(task, n) };
            loop {
                let row = next.fetch_add(1, Ordering::Relaxed);
                if row >= rows {
                    return;
                }
                let rule = Rule {
                    temperature: temperature[row],
                    top_k: usize::try_from(top_k[row]).unwrap_or(0),
                    top_p: f64::from(top_p[row]),
                    min_p: f64::from(min_p[row]),
                    u: uniform(seed[row], offset[row]),
                };
                let drawn = Row { isa, logits, row, n };
                // SAFETY: tasks claim different rows.
                unsafe {
                    let id = drawn.choose(&rule, keys);
                    ids.row_mut(row)[0] = id as i32;
                    if let Some(logprob) = &logprob {
                        logprob.row_mut(row)[0] = drawn.logprob(&rule, id);
                    }
                }
            }
        });
        Ok(())
    }
}

/// The workspace.
struct Scratch(*mut u64);

// SAFETY: tasks use disjoint parts.
unsafe impl Sync for Scratch {}

impl Scratch {
    /// # Safety
    /// The workspace has `task + 1` parts of `n`; only this task uses the part.
    #[expect(clippy::mut_from_ref, reason = "each task has its own part")]
    unsafe fn part(&self, task: usize, n: usize) -> &mut [u64] {
        // SAFETY: the caller's promise; any bytes are a u64, and the workspace is aligned.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(task * n), n) }
    }
}

/// One row of logits.
struct Row {
    isa: Isa,
    logits: Rows,
    row: usize,
    n: usize,
}

/// Ids whose logit over temperature is this far below the best one's are left for the second try: each
/// has less than 1e-5 of its probability.
const NEAR: f32 = 12.0;

impl Row {
    fn logit(&self, id: usize) -> f32 {
        // SAFETY: ids are inside the row; the host has checked the view.
        let l = unsafe { self.logits.get(self.row, id) };
        if l.is_nan() { f32::NEG_INFINITY } else { l }
    }

    fn choose(&self, rule: &Rule, keys: &mut [u64]) -> usize {
        let &Self { isa, logits, row, n } = self;
        let first = isa.dispatch(ArgmaxRow { logits, row, n });
        let max = self.logit(first);
        let greedy = rule.temperature.is_nan() || rule.temperature <= 0.0;
        if greedy || max.is_infinite() {
            return first;
        }
        let near = max - NEAR * rule.temperature;
        let count = self.collect(near, keys);
        let total = if rule.top_k == 0 { self.total(rule, max) } else { 0.0 };
        let all = count == n;
        self.walk(rule, max, total, &mut keys[..count], all).unwrap_or_else(|| {
            let count = self.collect(f32::NEG_INFINITY, keys);
            self.walk(rule, max, total, &mut keys[..count], true).unwrap_or(first)
        })
    }

    /// Lists the ids with a logit of at least `least`, as keys that sort best first.
    fn collect(&self, least: f32, keys: &mut [u64]) -> usize {
        let mut count = 0;
        for id in 0..self.n {
            let l = self.logit(id);
            if l >= least {
                keys[count] = u64::from(!ordered(l)) << 32 | id as u64;
                count += 1;
            }
        }
        count
    }

    /// `Σ e^((l - max) / temperature)` over all ids.
    fn total(&self, rule: &Rule, max: f32) -> f64 {
        let &Self { isa, logits, row, n } = self;
        let scale = 1.0 / rule.temperature;
        let sum = isa.dispatch(LogSumExp { logits, row, n, scale, skip_nan: true });
        (sum - f64::from(max) * f64::from(scale)).exp()
    }

    /// Draws among the listed ids; `None` if the walk leaves them and they are not `all`. `total` is the
    /// sum over all ids, unless `top_k` cuts them.
    fn walk(
        &self,
        rule: &Rule,
        max: f32,
        total: f64,
        keys: &mut [u64],
        all: bool,
    ) -> Option<usize> {
        keys.sort_unstable();
        let id = |key: u64| (key & 0xffff_ffff) as usize;
        let weight = |key: u64| {
            let l = f64::from(self.logit(id(key))) - f64::from(max);
            (l / f64::from(rule.temperature)).exp()
        };
        let mut kept: &[u64] = keys;
        let mut total = total;
        if rule.top_k > 0 {
            if rule.top_k > kept.len() && !all {
                return None;
            }
            kept = &kept[..rule.top_k.min(kept.len())];
            total = kept.iter().map(|&k| weight(k)).sum();
        }
        // The prefix that top_p and min_p keep; without them, everything.
        let (mut end, mut mass, mut cut) = (0, 0.0, false);
        for &key in kept {
            let w = weight(key);
            if end > 0 && w < rule.min_p {
                cut = true;
                break;
            }
            (end, mass) = (end + 1, mass + w);
            if mass / total >= rule.top_p {
                cut = true;
                break;
            }
        }
        // What was not listed has less than 1e-5 of the best one's weight.
        let complete = cut || all || rule.top_k > 0 || rule.min_p > 1e-5;
        let goal = rule.u * if complete { mass } else { self.beyond(rule, total)? };
        let mut so_far = 0.0;
        for &key in &kept[..end] {
            so_far += weight(key);
            if so_far > goal {
                return Some(id(key));
            }
        }
        if complete { kept[..end].last().map(|&k| id(k)) } else { None }
    }

    /// The mass of a walk that goes on past the listed ids: known only if nothing cuts it later.
    fn beyond(&self, rule: &Rule, total: f64) -> Option<f64> {
        (rule.top_p >= 1.0 && rule.min_p <= 0.0).then_some(total)
    }

    fn logprob(&self, rule: &Rule, id: usize) -> f32 {
        let &Self { isa, logits, row, n } = self;
        let scale = if rule.temperature > 0.0 { 1.0 / rule.temperature } else { 1.0 };
        let sum = isa.dispatch(LogSumExp { logits, row, n, scale, skip_nan: true });
        (f64::from(self.logit(id)) * f64::from(scale) - sum) as f32
    }
}

/// Bits that sort as the number does, zeros of either sign together.
fn ordered(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// A number in `[0, 1)` with 24 random bits.
fn uniform(seed: u64, offset: u64) -> f64 {
    let words = |x: u64| [x as u32, (x >> 32) as u32];
    let [low, high] = words(offset);
    f64::from(philox4x32_10([low, high, 0, 0], words(seed))[0] >> 8) / f64::from(1 << 24)
}

/// The Philox4x32 generator with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let wide = |a: u32, b: u32| u64::from(a) * u64::from(b);
    for _ in 0..10 {
        let (a, b) = (wide(0xD251_1F53, counter[0]), wide(0xCD9E_8D57, counter[2]));
        let (high_a, high_b) = ((a >> 32) as u32, (b >> 32) as u32);
        counter = [high_b ^ counter[1] ^ key[0], b as u32, high_a ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published with the generator (Random123, `kat_vectors`).
    #[test]
    fn philox_known_answers() {
        let zeros = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
        assert_eq!(philox4x32_10([0; 4], [0; 2]), zeros);
        let ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), ones);
    }

    #[test]
    fn keys_sort_like_numbers() {
        let sorted = [f32::NEG_INFINITY, -2.0, -1e-30, 0.0, 1e-30, 3.0, f32::INFINITY];
        assert!(sorted.windows(2).all(|w| ordered(w[0]) < ordered(w[1])));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }
}
