//! Attention by `FusedInferAttentionScore`: prefill and decode at once, rows of all sequences one behind the other (layout TND).

use std::ffi::CStr;

use std::sync::Arc;

use halyard_sdk::{DType, Error, Result, TensorSpec};

use super::{Attend, Lengths, StepPlan, blank};
use crate::{
    driver::{self, Changing, IntArray, NO_INTS, NO_TENSOR, Tensor, TensorList},
    kv::Plane,
    ops::{
        Constants, Op,
        args::{Args, Kind, Place, scratch_bytes},
        index::put,
    },
};

/// `sparseMode`: every key, those up to the query (lower right corners aligned), a band.
const ALL: i64 = 0;
const CAUSAL: i64 = 3;
const BAND: i64 = 4;

/// No bound of a band.
const FAR: i64 = i32::MAX as i64;

/// Widths of latents and rotated parts that the operator takes, and how many queries of a sequence.
const LATENT: i64 = 512;
const ROTATED: i64 = 64;
const FEW: i64 = 16;

/// Keys and values by slot.
enum Source {
    Paged { key: (usize, Plane), value: (usize, Plane), table: usize },
    Contiguous { key: usize, value: usize },
}

pub(super) struct Fused {
    rule: Attend,
    source: Source,
    /// Rotated parts of queries and keys, of latent attention.
    rotated: Option<(usize, usize, Plane)>,
    /// The slot of the numbers of keys, where those are paged.
    kv_len: Option<usize>,
    o: usize,
    lse: usize,
    /// Queries of a sequence at most, where there is a bound.
    pub(super) few: Option<i64>,
}

/// Whether the installed release has the operator, and it has the rule.
fn has(rule: &Attend) -> Result<bool> {
    let found = &driver::start()?.operators;
    let there =
        found.FusedInferAttentionScoreV4.is_some() || found.FusedInferAttentionScoreV3.is_some();
    let few = (1..=256).contains(&rule.heads);
    Ok(there && few && rule.softcap == 0.0 && !rule.sinks)
}

fn sixteen(dtypes: &[DType]) -> bool {
    [DType::F16, DType::BF16].contains(&dtypes[0]) && dtypes.iter().all(|d| *d == dtypes[0])
}

/// Of a paged cache.
pub(super) fn paged(op: &Op<'_>, rule: Attend) -> Result<Option<Fused>> {
    let (key, value) = (Plane::of(&op.desc.tensors[1])?, Plane::of(&op.desc.tensors[2])?);
    let alike = key == value && op.dtype(0) == key.dtype && key.is_for_operators();
    if !has(&rule)? || !alike || rule.heads / rule.kv_heads > 64 {
        return Ok(None);
    }
    let source = Source::Paged { key: (1, key), value: (2, value), table: 3 };
    Ok(Some(Fused { rule, source, rotated: None, kv_len: Some(5), o: 6, lse: 7, few: None }))
}

/// Of a paged cache of latents: few new tokens of each sequence.
pub(super) fn latent(op: &Op<'_>, rule: Attend) -> Result<Option<Fused>> {
    let (key, part) = (Plane::of(&op.desc.tensors[2])?, Plane::of(&op.desc.tensors[3])?);
    let widths = key.dim == LATENT && part.dim == ROTATED && [16, 128].contains(&key.block);
    let heads = [32, 64, 128].contains(&rule.heads);
    let alike = sixteen(&[op.dtype(0), op.dtype(1), key.dtype, part.dtype]);
    if !has(&rule)? || !widths || !heads || !alike || !rule.causal || rule.window >= 0 {
        return Ok(None);
    }
    let source = Source::Paged { key: (2, key), value: (2, key), table: 4 };
    let rotated = Some((1, 3, part));
    Ok(Some(Fused { rule, source, rotated, kv_len: Some(6), o: 7, lse: 8, few: Some(FEW) }))
}

/// Of contiguous keys and values.
pub(super) fn contiguous(op: &Op<'_>, rule: Attend) -> Result<Option<Fused>> {
    let width = |slot: usize| op.desc.tensors[slot].dims[2];
    let (key, value) = (width(1), width(2));
    let alike = key == value && key % 16 == 0 && (16..=256).contains(&key);
    let widths = alike || key == 192 && value == 128;
    let types = sixteen(&[op.dtype(0), op.dtype(1), op.dtype(2), op.dtype(5)]);
    if !has(&rule)? || !widths || !types || rule.heads / rule.kv_heads > 64 {
        return Ok(None);
    }
    let source = Source::Contiguous { key: 1, value: 2 };
    Ok(Some(Fused { rule, source, rotated: None, kv_len: None, o: 5, lse: 6, few: None }))
}

impl Fused {
    /// `sparseMode` for sequences of so many queries at most.
    fn sparse(&self, longest: i64) -> i64 {
        match (self.rule.causal, self.rule.window >= 0) {
            _ if self.few.is_some() && longest <= 1 => ALL,
            (true, false) => CAUSAL,
            (true, true) => BAND,
            (false, _) => ALL,
        }
    }

    fn cache(args: &Args<'_>, slot: usize, plane: &Plane) -> Result<Tensor> {
        let cache = args.place(slot)?;
        let width = plane.heads * plane.dim;
        Ok(args.tensor(&cache.reshaped(&[cache.dims[0], plane.block, width])))
    }

    /// Rows of keys or values up to `end`, without gaps.
    fn rows(args: &Args<'_>, slot: usize, end: i64) -> Result<Tensor> {
        Ok(args.tensor(&packed(args, &args.place(slot)?.slice(0, 0, end))?))
    }

    /// With a plan, what is captured follows it.
    fn attend(
        &self,
        args: &Args<'_>,
        (lengths, plan): (&Arc<Lengths>, Option<Arc<StepPlan>>),
        (q, o, lse): (&[Place], &Place, Option<&Place>),
    ) -> Result<()> {
        let total = lengths.keys.iter().sum();
        let (key, value, table, block) = match &self.source {
            Source::Paged { key, value, table } => {
                let tensors = [key, value].map(|(slot, plane)| Self::cache(args, *slot, plane));
                let [k, v] = tensors;
                (k?, v?, Some(args.tensor(&args.place(*table)?)), key.1.block)
            }
            Source::Contiguous { key, value } => {
                (Self::rows(args, *key, total)?, Self::rows(args, *value, total)?, None, 0)
            }
        };
        let rotated = match &self.rotated {
            Some((_, slot, plane)) => Some([args.tensor(&q[1]), Self::cache(args, *slot, plane)?]),
            None => None,
        };
        let longest = lengths.spans().map(|[_, queries, _]| queries).max().unwrap_or(0);
        let sparse = self.sparse(longest);
        let constants = args.shared.constants.as_ref().filter(|_| sparse != ALL);
        let call = Call {
            rule: self.rule,
            query: args.tensor(&q[0]),
            key: TensorList(key),
            value: TensorList(value),
            mask: constants.map(Constants::mask),
            table,
            rotated,
            sparse,
            band: if sparse == BAND { [self.rule.window, 0] } else { [FAR; 2] },
            block,
            o: args.tensor(o),
            lse: lse.map(|lse| args.tensor(&lse.column())),
        };
        match plan {
            Some(plan) => {
                let lengths = Arc::clone(lengths);
                args.on.enqueue_changing(Box::new(Following { call, plan, lengths }))
            }
            None => call.enqueue(args.on, lengths),
        }
    }

    /// Queries and results without gaps, and rows of keys and values.
    pub(super) fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let wide = |slot: usize| {
            let dims = shapes.get(slot).map_or(&[0][..], |s| s.dims());
            scratch_bytes(Kind::F32, dims)
        };
        let rotated = self.rotated.as_ref().map_or(0, |(slot, ..)| wide(*slot));
        let rows = match &self.source {
            Source::Paged { .. } => 0,
            Source::Contiguous { key, value } => wide(*key) + wide(*value),
        };
        let heads = shapes.get(self.o).map_or(&[0][..], |s| &s.dims()[..2]);
        let blind = self.kv_len.and_then(|slot| shapes.get(slot));
        let blind = blind.map_or(0, |s| scratch_bytes(Kind::BOOL, s.dims()));
        wide(0) + rotated + rows + wide(self.o) + scratch_bytes(Kind::F32, heads) + blind
    }

    /// Whether what is captured can follow a plan: not if rows of keys are, whose number is in the lengths.
    pub(super) fn follows_plans(&self) -> bool {
        self.kv_len.is_some()
    }

    pub(super) fn launch(
        &self,
        args: &Args<'_>,
        lengths: &Arc<Lengths>,
        plan: Option<Arc<StepPlan>>,
    ) -> Result<()> {
        let (o, lse) = (args.place(self.o)?, args.optional(self.lse)?);
        let used = lengths.used(&o)?;
        blank(args, (&o, lse.as_ref()), (used, o.dims[0] - used))?;
        if used == 0 {
            return Ok(());
        }
        let rotated = self.rotated.as_ref().map(|(slot, ..)| *slot);
        let q = [Some(0), rotated].into_iter().flatten();
        let q = q.map(|slot| packed(args, &args.place(slot)?.slice(0, 0, used)));
        let q = q.collect::<Result<Vec<_>>>()?;
        let o = o.slice(0, 0, used);
        let out = if o.is_contiguous() { o.clone() } else { args.scratch(o.kind, &o.dims)? };
        let lse = lse.map(|lse| lse.slice(0, 0, used));
        let sums = lse.as_ref().map(|l| args.scratch(l.kind, &l.dims)).transpose()?;
        let plan = plan.filter(|_| args.on.is_capturing());
        let is_captured = plan.is_some();
        self.attend(args, (lengths, plan), (&q, &out, sums.as_ref()))?;
        if !o.is_contiguous() {
            args.copy(&o, &out)?;
        }
        if let (Some(lse), Some(sums)) = (&lse, &sums) {
            args.copy(lse, sums)?;
        }
        if is_captured {
            return self.blank_now(args, lengths, (&o, lse.as_ref()));
        }
        let blind = lengths.blind(self.rule.causal);
        blind.into_iter().try_for_each(|run| blank(args, (&o, lse.as_ref()), run))
    }
}

impl Fused {
    /// Rows of sequences without keys at the moment when it runs; each sequence has one query.
    fn blank_now(
        &self,
        args: &Args<'_>,
        lengths: &Lengths,
        (o, lse): (&Place, Option<&Place>),
    ) -> Result<()> {
        let slot = self.kv_len.filter(|_| lengths.spans().all(|[_, queries, _]| queries == 1));
        let slot = slot.ok_or_else(|| {
            Error::unsupported("a capture with a plan of sequences of more or less than one query")
        })?;
        let keys = args.place(slot)?;
        let none = args.scratch(Kind::BOOL, &keys.dims)?;
        args.at_most(&keys, &args.whole(0)?.part(Kind::I32, 0), &none)?;
        put(args, o, &none.column().column(), 0.0)?;
        lse.map_or(Ok(()), |lse| put(args, lse, &none.column(), f32::NEG_INFINITY))
    }
}

fn packed(args: &Args<'_>, rows: &Place) -> Result<Place> {
    if rows.is_contiguous() { Ok(rows.clone()) } else { args.cast(rows, rows.kind) }
}

/// What both revisions of the operator take, but for the lengths.
struct Call {
    rule: Attend,
    query: Tensor,
    key: TensorList,
    value: TensorList,
    mask: Option<Tensor>,
    table: Option<Tensor>,
    rotated: Option<[Tensor; 2]>,
    sparse: i64,
    band: [i64; 2],
    block: i64,
    o: Tensor,
    lse: Option<Tensor>,
}

const LAYOUT: &CStr = c"TND";

impl Call {
    fn enqueue(&self, on: &driver::Stream, lengths: &Lengths) -> Result<()> {
        let keys = if self.table.is_some() { lengths.keys.clone() } else { lengths.key_ends() };
        let (ends, keys) = (IntArray(lengths.ends.clone()), IntArray(keys));
        if on.driver().operators.FusedInferAttentionScoreV4.is_some() {
            self.v4(on, &ends, &keys)
        } else {
            self.v3(on, &ends, &keys)
        }
    }

    fn rotated(&self) -> [Option<&Tensor>; 2] {
        [0, 1].map(|n| self.rotated.as_ref().map(|both| &both[n]))
    }

    // Lengths are those of one step.
    #[rustfmt::skip]
    fn v4(&self, on: &driver::Stream, ends: &IntArray, keys: &IntArray) -> Result<()> {
        let (rule, [q_rope, k_rope], [before, after]) = (&self.rule, self.rotated(), self.band);
        let (mask, table, lse, no) = (self.mask.as_ref(), self.table.as_ref(), self.lse.as_ref(), NO_TENSOR);
        enqueue!(on, Once, FusedInferAttentionScoreV4(
            &self.query, &self.key, &self.value, no, mask, ends, keys,
            no, no, no, no, no, no, no,
            table, no, no, no, no, no, no,
            no, no, NO_INTS, q_rope, k_rope, no, no, no,
            rule.heads, rule.scale, before, after, LAYOUT, rule.kv_heads,
            self.sparse, 0, self.block, 0, lse.is_some(), 0, 0, 0, &self.o, lse,
        ))
    }

    #[rustfmt::skip]
    fn v3(&self, on: &driver::Stream, ends: &IntArray, keys: &IntArray) -> Result<()> {
        let (rule, [q_rope, k_rope], [before, after]) = (&self.rule, self.rotated(), self.band);
        let (mask, table, lse, no) = (self.mask.as_ref(), self.table.as_ref(), self.lse.as_ref(), NO_TENSOR);
        enqueue!(on, Once, FusedInferAttentionScoreV3(
            &self.query, &self.key, &self.value, no, mask, ends, keys,
            no, no, no, no, no, no, no,
            table, no, no, no, no, no, no,
            no, no, NO_INTS, q_rope, k_rope, no,
            rule.heads, rule.scale, before, after, LAYOUT, rule.kv_heads,
            self.sparse, 0, self.block, 0, lse.is_some(), 0, 0, &self.o, lse,
        ))
    }
}

/// An operator in a graph, with the lengths of a plan.
struct Following {
    call: Call,
    plan: Arc<StepPlan>,
    /// Those that it has.
    lengths: Arc<Lengths>,
}

impl Changing for Following {
    fn has_changed(&self) -> bool {
        !Arc::ptr_eq(&self.plan.now(), &self.lengths)
    }

    fn enqueue(&mut self, on: &driver::Stream) -> Result<()> {
        self.lengths = self.plan.now();
        self.call.enqueue(on, &self.lengths)
    }
}
