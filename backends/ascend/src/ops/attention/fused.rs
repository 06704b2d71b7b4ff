//! PAGED_ATTENTION: one path for prefill and decode, rows of all sequences one behind the other (layout TND).

use std::{ffi::CStr, ptr::null};

use halyard_ascend_sys::{
    aclnn::{IA, T, TL},
    types::ACL_INT8,
};
use halyard_sdk::{Error, Result, TensorSpec, abi::ops::attrs};

use super::{
    Launch, MASK, Op,
    args::{Args, Kind, Place, scratch_bytes},
};
use crate::{
    driver::{self, IntArray, Scalar, Tensor, TensorList},
    kv::Plane,
};

/// `sparseMode`: every key, those up to the query (lower right corners aligned), a band.
const ALL: i64 = 0;
const CAUSAL: i64 = 3;
const BAND: i64 = 4;

/// No bound of a band.
const FAR: i64 = i32::MAX as i64;

/// Entries that lists of lengths may have.
const MAX_SEQUENCES: usize = 4096;

struct Paged {
    plane: Plane,
    heads: i64,
    scale: f64,
    sparse: i64,
    window: i64,
    lse: bool,
}

pub(super) fn paged(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::PagedAttention { scale, causal, window, softcap } = op.attrs()?;
    if !op.present(2) {
        return Err(op.refuse("values fused into the key cache; this backend has two caches"));
    }
    let found = &driver::start()?.operators;
    if found.FusedInferAttentionScoreV4.is_none() && found.FusedInferAttentionScoreV3.is_none() {
        return Err(op.refuse("the installed CANN has no aclnnFusedInferAttentionScoreV3"));
    }
    let (plane, v) = (Plane::of(&op.desc.tensors[1])?, Plane::of(&op.desc.tensors[2])?);
    if plane != v || op.dtype(0) != plane.dtype {
        return Err(op.refuse("keys, values and queries of different types or widths"));
    }
    if softcap != 0.0 || op.present(8) || op.present(9) || op.present(10) {
        return Err(op.refuse("a soft-cap, scales or sinks; supported: none of these"));
    }
    let heads = op.desc.tensors[0].dims[1];
    if !(1..=256).contains(&heads) || heads / plane.heads > 64 {
        return Err(op.refuse(format!(
            "{heads} query heads over {}; supported: up to 256, 64 for each KV head",
            plane.heads
        )));
    }
    let sparse = match (causal, window >= 0) {
        (true, false) => CAUSAL,
        (true, true) => BAND,
        (false, false) => ALL,
        (false, true) => return Err(op.refuse("a window that is not causal")),
    };
    Ok(Box::new(Paged { plane, heads, scale, sparse, window, lse: op.present(7) }))
}

/// The lengths of a batch, as the operator wants them.
struct Lengths {
    /// Ends of the sequences' queries.
    ends: Vec<i64>,
    /// Keys of each sequence.
    keys: Vec<i64>,
}

impl Lengths {
    fn of(args: &Args<'_>) -> Result<Self> {
        let list = |i: usize| args.args.host.as_slice().get(i).map(|l| l.as_slice());
        let (Some(cu_q), Some(kv_len)) = (list(0), list(1)) else {
            return Err(Error::invalid("no lengths on the host"));
        };
        if cu_q.len() != kv_len.len() + 1 || kv_len.len() > MAX_SEQUENCES {
            return Err(Error::invalid(format!(
                "{} sequences with {} ends; at most {MAX_SEQUENCES}",
                kv_len.len(),
                cu_q.len()
            )));
        }
        Ok(Self {
            ends: cu_q[1..].iter().map(|&n| n.into()).collect(),
            keys: kv_len.iter().map(|&n| n.into()).collect(),
        })
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

impl Paged {
    /// Rows that see nothing: those of no sequence, and those before a sequence's first key.
    fn blank(
        &self,
        args: &Args<'_>,
        (o, lse): (&Place, Option<&Place>),
        (first, rows): (i64, i64),
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let o = args.tensor(&o.slice(0, first, rows))?;
        enqueue!(args.on, InplaceZero(o.raw()))?;
        let Some(lse) = lse else { return Ok(()) };
        let lse = args.tensor(&lse.slice(0, first, rows))?;
        let value = Scalar::float(args.on.driver(), f32::NEG_INFINITY)?;
        enqueue!(args.on, InplaceFillScalar(lse.raw(), value.raw()))
    }

    fn cache(&self, args: &Args<'_>, slot: usize) -> Result<TensorList> {
        let cache = args.place(slot)?;
        let width = self.plane.heads * self.plane.dim;
        let pages = cache.reshaped(&[cache.dims[0], self.plane.block, width]);
        TensorList::of(args.tensor(&pages)?)
    }

    fn attend(
        &self,
        args: &Args<'_>,
        lengths: &Lengths,
        (q, o, lse): (&Place, &Place, Option<&Place>),
    ) -> Result<()> {
        let driver = args.on.driver();
        let (key, value) = (self.cache(args, 1)?, self.cache(args, 2)?);
        let table = args.tensor(&args.place(3)?)?;
        let ends = IntArray::new(driver, &lengths.ends)?;
        let keys = IntArray::new(driver, &lengths.keys)?;
        let mask = args.shared.mask.as_ref().filter(|_| self.sparse != ALL);
        let side = [MASK as i64; 2];
        let mask =
            mask.map(|m| Tensor::new(driver, ACL_INT8, &side, &[side[0], 1], (m.start(), 0)));
        let mask = mask.transpose()?;
        let mask = mask.as_ref().map_or(null(), Tensor::raw);
        let before = if self.sparse == BAND { self.window } else { FAR };
        let after = if self.sparse == BAND { 0 } else { FAR };
        let (q, o) = (args.tensor(q)?, args.tensor(o)?);
        let lse = lse.map(|lse| args.tensor(&lse.column())).transpose()?;
        let lse = lse.as_ref().map_or(null(), Tensor::raw);
        let call = Call {
            op: self,
            query: q.raw(),
            key: key.raw(),
            value: value.raw(),
            mask,
            ends: ends.raw(),
            keys: keys.raw(),
            table: table.raw(),
            before,
            after,
            o: o.raw(),
            lse,
        };
        if driver.operators.FusedInferAttentionScoreV4.is_some() {
            call.v4(args)
        } else {
            call.v3(args)
        }
    }
}

/// What both revisions of the operator take.
struct Call<'a> {
    op: &'a Paged,
    query: T,
    key: TL,
    value: TL,
    mask: T,
    ends: IA,
    keys: IA,
    table: T,
    before: i64,
    after: i64,
    o: T,
    lse: T,
}

const LAYOUT: &CStr = c"TND";

impl Call<'_> {
    #[rustfmt::skip]
    fn v4(&self, args: &Args<'_>) -> Result<()> {
        let (op, plane) = (self.op, &self.op.plane);
        enqueue!(args.on, FusedInferAttentionScoreV4(
            self.query, self.key, self.value, null(), self.mask, self.ends, self.keys,
            null(), null(), null(), null(), null(), null(), null(),
            self.table, null(), null(), null(), null(), null(), null(),
            null(), null(), null(), null(), null(), null(), null(), null(),
            op.heads, op.scale, self.before, self.after, LAYOUT.as_ptr(), plane.heads,
            op.sparse, 0, plane.block, 0, op.lse, 0, 0, 0, self.o, self.lse,
        ))
    }

    #[rustfmt::skip]
    fn v3(&self, args: &Args<'_>) -> Result<()> {
        let (op, plane) = (self.op, &self.op.plane);
        enqueue!(args.on, FusedInferAttentionScoreV3(
            self.query, self.key, self.value, null(), self.mask, self.ends, self.keys,
            null(), null(), null(), null(), null(), null(), null(),
            self.table, null(), null(), null(), null(), null(), null(),
            null(), null(), null(), null(), null(), null(),
            op.heads, op.scale, self.before, self.after, LAYOUT.as_ptr(), plane.heads,
            op.sparse, 0, plane.block, 0, op.lse, 0, 0, self.o, self.lse,
        ))
    }
}

impl Launch for Paged {
    /// Queries and results without gaps.
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let tokens = shapes.first().map_or(0, |s| s.dims[0]);
        2 * scratch_bytes(Kind::F32, &[tokens, self.heads, self.plane.dim])
            + scratch_bytes(Kind::F32, &[tokens, self.heads])
    }

    fn wants_lengths(&self) -> bool {
        true
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (q, o, lse) = (args.place(0)?, args.place(6)?, args.optional(7)?);
        let lengths = Lengths::of(args)?;
        let used = lengths.ends.last().copied().unwrap_or(0);
        if o.is_empty() {
            return Ok(());
        }
        if !(0..=o.dims[0]).contains(&used) {
            return Err(Error::invalid(format!("{used} queries in {} rows", o.dims[0])));
        }
        self.blank(args, (&o, lse.as_ref()), (used, o.dims[0] - used))?;
        if used == 0 {
            return Ok(());
        }
        let (q, o) = (q.slice(0, 0, used), o.slice(0, 0, used));
        let packed = if q.is_contiguous() { q } else { args.cast(&q, q.kind)? };
        let out = if o.is_contiguous() { o.clone() } else { args.scratch(o.kind, &o.dims)? };
        let lse = lse.map(|lse| lse.slice(0, 0, used));
        let sums = lse.as_ref().map(|l| args.scratch(l.kind, &l.dims)).transpose()?;
        self.attend(args, &lengths, (&packed, &out, sums.as_ref()))?;
        if !o.is_contiguous() {
            args.copy(&o, &out)?;
        }
        if let (Some(lse), Some(sums)) = (&lse, &sums) {
            args.copy(lse, sums)?;
        }
        let blind = lengths.blind(self.sparse != ALL);
        blind.into_iter().try_for_each(|run| self.blank(args, (&o, lse.as_ref()), run))
    }
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
