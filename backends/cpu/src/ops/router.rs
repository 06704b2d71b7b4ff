//! MOE_ROUTER.

use std::ops::Range;

use halyard_sdk::{
    Error, Result,
    abi::ops::{Sym, attrs::MoeRouter},
};

use super::args::{Args, Table};
use super::{Launch, Op, Prepared, for_rows, same};

/// Experts whose scores fit a thread's stack.
const MAX_EXPERTS: usize = 1024;

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let attrs: MoeRouter = op.attrs()?;
    let (experts, top) = (op.dim(Sym::E), op.dim(Sym::Top));
    if experts as usize > MAX_EXPERTS {
        return Err(Error::unsupported(format!(
            "moe_router: {experts} experts; supported: up to {MAX_EXPERTS}"
        )));
    }
    Ok(Prepared::native(Router { attrs, experts: experts as usize, top: top as usize }))
}

struct Router {
    attrs: MoeRouter,
    experts: usize,
    top: usize,
}

impl Launch for Router {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let logits = args.table::<f32>(0)?;
        // SAFETY: the host has checked the view.
        let bias: Option<&[f32]> =
            args.optional(1).map(|_| unsafe { args.slice(1) }).transpose()?;
        let (ids, weight) = (args.table::<i32>(2)?, args.table::<f32>(3)?);
        for (what, a, b) in [
            ("experts", logits.cols, self.experts),
            ("experts", bias.map_or(self.experts, <[f32]>::len), self.experts),
            ("chosen", ids.cols, self.top),
            ("chosen", weight.cols, self.top),
            ("tokens", ids.rows, logits.rows),
            ("tokens", weight.rows, logits.rows),
        ] {
            same(what, a, b)?;
        }
        // An exponential costs about ten simple operations.
        for_rows(&args.context.pool, logits.rows, 10 * self.experts, |rows| {
            // SAFETY: the host has checked the views; tasks write different rows.
            unsafe { self.rows(&logits, bias, &ids, &weight, rows) };
        });
        Ok(())
    }
}

impl Router {
    /// # Safety
    /// The rows exist; nobody else writes them.
    unsafe fn rows(
        &self,
        logits: &Table<f32>,
        bias: Option<&[f32]>,
        ids: &Table<i32>,
        weight: &Table<f32>,
        rows: Range<usize>,
    ) {
        let (mut scores, mut choice) = ([0.0; MAX_EXPERTS], [0.0; MAX_EXPERTS]);
        let (scores, choice) = (&mut scores[..self.experts], &mut choice[..self.experts]);
        for t in rows {
            // SAFETY: the caller's promise.
            let (logits, ids, weight) =
                unsafe { (logits.row(t), ids.row_mut(t), weight.row_mut(t)) };
            self.score(logits, scores);
            for (e, c) in choice.iter_mut().enumerate() {
                *c = value(scores[e] + bias.map_or(0.0, |b| f64::from(b[e])));
            }
            self.drop_groups(choice);
            let mut sum = 0.0;
            for id in ids.iter_mut() {
                let e = best(choice);
                choice[e] = f64::NAN;
                sum += scores[e];
                *id = e as i32;
            }
            let divisor = if self.attrs.norm { sum + 1e-20 } else { 1.0 };
            for (w, &id) in weight.iter_mut().zip(ids.iter()) {
                *w = (scores[id as usize] / divisor * self.attrs.scale) as f32;
            }
        }
    }

    fn score(&self, logits: &[f32], scores: &mut [f64]) {
        if self.attrs.sigmoid {
            for (s, &l) in scores.iter_mut().zip(logits) {
                *s = 1.0 / (1.0 + (-f64::from(l)).exp());
            }
            return;
        }
        let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| if l > m { l } else { m });
        for (s, &l) in scores.iter_mut().zip(logits) {
            *s = (f64::from(l) - f64::from(max)).exp();
        }
        let sum: f64 = scores.iter().sum();
        scores.iter_mut().for_each(|s| *s /= sum);
    }

    /// Experts outside the best groups become NaN, which [`best`] passes over.
    fn drop_groups(&self, choice: &mut [f64]) {
        let groups = self.attrs.n_group as usize;
        if groups <= 1 {
            return;
        }
        let size = self.experts / groups;
        let mut score = [f64::NAN; MAX_EXPERTS];
        for (score, group) in score.iter_mut().zip(choice.chunks(size)) {
            let first = best(group);
            *score = group[first];
            if self.attrs.group_sum_of_two && size > 1 {
                let rest = group.iter().enumerate().filter(|&(i, _)| i != first);
                *score += rest.fold(f64::NEG_INFINITY, |m, (_, &c)| m.max(c));
            }
        }
        let mut kept = [false; MAX_EXPERTS];
        for _ in 0..self.attrs.topk_group {
            let group = best(&score[..groups]);
            score[group] = f64::NAN;
            kept[group] = true;
        }
        for (group, choice) in choice.chunks_mut(size).enumerate() {
            if !kept[group] {
                choice.fill(f64::NAN);
            }
        }
    }
}

/// A NaN score counts as the smallest, but as a choice: NaN itself marks what is out.
fn value(x: f64) -> f64 {
    if x.is_nan() { f64::NEG_INFINITY } else { x }
}

/// The first of the largest numbers, NaN apart.
fn best(values: &[f64]) -> usize {
    let mut found: Option<usize> = None;
    for (i, &v) in values.iter().enumerate() {
        if !v.is_nan() && found.is_none_or(|f| v > values[f]) {
            found = Some(i);
        }
    }
    found.unwrap_or(0)
}
