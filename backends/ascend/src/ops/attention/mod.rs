//! Attention: by one operator where it takes the op, else composed of products and softmaxes.

mod composed;
mod fused;
mod merge;

use std::sync::{Arc, Mutex, PoisonError};

use halyard_sdk::{
    Error, LaunchArgs, Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Place},
};
use crate::{driver::Scalar, kv::Plane};
use composed::{Composed, Source};
use fused::Fused;

pub(super) use composed::gather;
pub(super) use merge::prepare as merge;

/// Entries that lists of lengths may have.
const MAX_SEQUENCES: usize = 4096;

/// Which keys a query sees, and how they count.
#[derive(Clone, Copy, Debug)]
struct Attend {
    heads: i64,
    kv_heads: i64,
    scale: f64,
    causal: bool,
    /// Left reach; -1 is all.
    window: i64,
    softcap: f64,
    sinks: bool,
}

impl Attend {
    fn new(op: &Op<'_>, attrs: attrs::PagedAttention, [queries, keys]: [i64; 2]) -> Result<Self> {
        let attrs::PagedAttention { scale, causal, window, softcap } = attrs;
        if queries < 1 || keys < 1 || queries % keys != 0 {
            return Err(op.refuse(format!("{queries} query heads over {keys} of keys")));
        }
        let window = if causal { window } else { -1 };
        let (heads, kv_heads) = (queries, keys);
        Ok(Self { heads, kv_heads, scale, causal, window, softcap, sinks: false })
    }
}

pub(super) fn paged(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs: attrs::PagedAttention = op.attrs()?;
    if !op.present(2) {
        return Err(op.refuse("values fused into the key cache; this backend has two caches"));
    }
    if op.present(8) || op.present(9) {
        return Err(op.refuse("a cache with scales; supported: f32, f16, bf16"));
    }
    op.floats(&[0, 6])?;
    let plane = |slot: usize| Plane::of(&op.desc.tensors[slot]);
    let (keys, values) = (plane(1)?, plane(2)?);
    let mut rule = Attend::new(op, attrs, [op.dim(Sym::Hq), keys.heads])?;
    rule.sinks = op.present(10);
    let fused = fused::paged(op, rule)?;
    let source = Source::Paged { keys: vec![(1, keys)], values: Some((2, values)), table: 3 };
    let composed = Composed { rule, source, queries: vec![0], o: 6, lse: 7, sinks: 10 };
    Ok(Box::new(Attention { fused, composed }))
}

pub(super) fn latent(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::MlaAttention { scale, causal, window, softcap } = op.attrs()?;
    if !op.present(3) {
        return Err(op.refuse("rotated parts fused into the latents; this backend has two caches"));
    }
    op.floats(&[0, 1, 7])?;
    let keys = [2, 3].map(|slot| Ok((slot, Plane::of(&op.desc.tensors[slot])?)));
    let keys = keys.into_iter().collect::<Result<Vec<_>>>()?;
    let attrs = attrs::PagedAttention { scale, causal, window, softcap };
    let rule = Attend::new(op, attrs, [op.dim(Sym::Hq), 1])?;
    let source = Source::Paged { keys, values: None, table: 4 };
    let fused = fused::latent(op, rule)?;
    let composed = Composed { rule, source, queries: vec![0, 1], o: 7, lse: 8, sinks: 9 };
    Ok(Box::new(Attention { fused, composed }))
}

pub(super) fn contiguous(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::VarlenAttention { scale, causal, window, softcap } = op.attrs()?;
    op.floats(&[0, 1, 2, 5])?;
    let attrs = attrs::PagedAttention { scale, causal, window, softcap };
    let mut rule = Attend::new(op, attrs, [op.dim(Sym::Hq), op.dim(Sym::Hk)])?;
    rule.sinks = op.present(7);
    let source = Source::Contiguous { keys: 1, values: 2 };
    let fused = fused::contiguous(op, rule)?;
    let composed = Composed { rule, source, queries: vec![0], o: 5, lse: 6, sinks: 7 };
    Ok(Box::new(Attention { fused, composed }))
}

/// Both ways: one operator where it takes the op and the batch.
struct Attention {
    fused: Option<Fused>,
    composed: Composed,
}

impl Attention {
    fn lengths(&self, args: &LaunchArgs<'_>) -> Result<Lengths> {
        match self.composed.source {
            Source::Paged { .. } => Lengths::paged(args),
            Source::Contiguous { .. } => Lengths::contiguous(args),
        }
    }

    /// Whether the operator takes these lengths: few queries, and not more of them than keys where those are contiguous.
    fn takes(&self, fused: &Fused, lengths: &Lengths) -> bool {
        let most = fused.few.unwrap_or(i64::MAX);
        let paged = matches!(self.composed.source, Source::Paged { .. });
        let fits = |[_, queries, keys]: [i64; 3]| queries <= most && (paged || queries <= keys);
        lengths.spans().all(fits)
    }
}

impl Launch for Attention {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let paged = matches!(self.composed.source, Source::Paged { .. });
        match &self.fused {
            Some(fused) if paged && fused.few.is_none() => fused.workspace_bytes(shapes),
            Some(fused) => fused.workspace_bytes(shapes).max(self.composed.workspace_bytes(shapes)),
            None => self.composed.workspace_bytes(shapes),
        }
    }

    fn wants_lengths(&self) -> bool {
        true
    }

    fn slow(&self) -> Option<&'static str> {
        match &self.fused {
            Some(_) => None,
            None => Some("composed of products and softmaxes in f32, a sequence at a time"),
        }
    }

    fn plan(&self, args: &LaunchArgs<'_>) -> Result<Option<StepPlan>> {
        if !self.follows_plans() {
            return Ok(None);
        }
        Ok(Some(StepPlan(Mutex::new(Arc::new(self.lengths(args)?)))))
    }

    fn follows_plans(&self) -> bool {
        self.fused.as_ref().is_some_and(Fused::follows_plans)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let plan = args.plan()?;
        let lengths = match &plan {
            Some(plan) => plan.now(),
            None => Arc::new(self.lengths(args.args)?),
        };
        if args.place(self.composed.o)?.is_empty() {
            return Ok(());
        }
        match &self.fused {
            Some(fused) if self.takes(fused, &lengths) => fused.launch(args, &lengths, plan),
            _ => self.composed.launch(args, &lengths),
        }
    }
}

/// The lengths of a step, which all layers share and what is captured follows.
#[derive(Debug)]
pub(crate) struct StepPlan(Mutex<Arc<Lengths>>);

impl StepPlan {
    /// Those of the moment.
    fn now(&self) -> Arc<Lengths> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes those of another plan, for the same rows.
    pub(super) fn update(&self, other: &Self) -> Result<()> {
        let new = other.now();
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.ends != new.ends {
            let what = format!("queries that end at {:?}, in a plan of {:?}", new.ends, now.ends);
            return Err(Error::invalid(what));
        }
        if now.keys != new.keys {
            *now = new;
        }
        Ok(())
    }
}

/// The lengths of a batch, as the operator wants them.
#[derive(Debug)]
struct Lengths {
    /// Ends of the sequences' queries.
    ends: Vec<i64>,
    /// Keys of each sequence.
    keys: Vec<i64>,
}

impl Lengths {
    fn lists<'a>(args: &'a LaunchArgs<'_>) -> Result<[&'a [i32]; 2]> {
        let list = |i: usize| args.host.as_slice().get(i).map(|l| l.as_slice());
        let lists = [list(0), list(1)];
        let [Some(first), Some(second)] = lists else {
            return Err(Error::invalid("no lengths on the host"));
        };
        Ok([first, second])
    }

    /// Of a paged cache: ends of queries, numbers of keys.
    fn paged(args: &LaunchArgs<'_>) -> Result<Self> {
        let [cu_q, kv_len] = Self::lists(args)?;
        Self::new(cu_q, kv_len.iter().map(|&n| n.into()).collect())
    }

    /// Of contiguous keys: ends of queries, ends of keys.
    fn contiguous(args: &LaunchArgs<'_>) -> Result<Self> {
        let [cu_q, cu_k] = Self::lists(args)?;
        Self::new(cu_q, cu_k.windows(2).map(|w| i64::from(w[1]) - i64::from(w[0])).collect())
    }

    fn new(cu_q: &[i32], kv_len: Vec<i64>) -> Result<Self> {
        if cu_q.len() != kv_len.len() + 1 || kv_len.len() > MAX_SEQUENCES {
            return Err(Error::invalid(format!(
                "{} sequences with {} ends; at most {MAX_SEQUENCES}",
                kv_len.len(),
                cu_q.len()
            )));
        }
        Ok(Self { ends: cu_q[1..].iter().map(|&n| n.into()).collect(), keys: kv_len })
    }

    /// Ends of the sequences' keys, where those lie one behind the other.
    fn key_ends(&self) -> Vec<i64> {
        let ends = self.keys.iter().scan(0, |end, keys| {
            *end += keys;
            Some(*end)
        });
        ends.collect()
    }

    /// Rows with queries, of those that there are.
    fn used(&self, o: &Place) -> Result<i64> {
        let used = self.ends.last().copied().unwrap_or(0);
        if (0..=o.dims[0]).contains(&used) {
            return Ok(used);
        }
        Err(Error::invalid(format!("{used} queries in {} rows", o.dims[0])))
    }

    /// First query, number of queries and number of keys of each sequence.
    fn spans(&self) -> impl Iterator<Item = [i64; 3]> + '_ {
        let begins = std::iter::once(&0).chain(&self.ends);
        let each = begins.zip(&self.ends).zip(&self.keys);
        each.map(|((&begin, &end), &keys)| [begin, end - begin, keys])
    }

    /// Runs of rows, first and length, that see no key.
    fn blind(&self, causal: bool) -> Vec<(i64, i64)> {
        let mut begin = 0;
        let runs = self.ends.iter().zip(&self.keys).map(|(&end, &keys)| {
            let (first, queries) = (begin, end - begin);
            begin = end;
            let rows = if causal || keys == 0 { queries - keys } else { 0 };
            (first, rows.clamp(0, queries.max(0)))
        });
        runs.filter(|(_, rows)| *rows > 0).collect()
    }
}

/// Rows that see nothing: those of no sequence, and those before a sequence's first key.
fn blank(
    args: &Args<'_>,
    (o, lse): (&Place, Option<&Place>),
    (first, rows): (i64, i64),
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let o = args.tensor(&o.slice(0, first, rows));
    enqueue!(args.on, InplaceZero(&o))?;
    let Some(lse) = lse else { return Ok(()) };
    let lse = args.tensor(&lse.slice(0, first, rows));
    let value = Scalar::float(f32::NEG_INFINITY);
    enqueue!(args.on, InplaceFillScalar(&lse, &value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_before_the_first_key_see_nothing() {
        let lengths = Lengths { ends: vec![3, 3, 5, 6], keys: vec![1, 4, 0, 9] };
        assert_eq!(lengths.blind(true), [(0, 2), (3, 2)]);
        assert_eq!(lengths.blind(false), [(3, 2)]);
    }
}
