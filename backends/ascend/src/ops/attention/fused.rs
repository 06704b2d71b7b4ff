//! Attention by `FusedInferAttentionScore`: prefill and decode at once, rows of all sequences one behind the other (layout TND).

use std::{ffi::CStr, ptr::null};

use halyard_ascend_sys::{
    aclnn::{IA, T, TL},
    types::ACL_INT8,
};
use halyard_sdk::{Result, TensorSpec};

use super::{Attend, Lengths, blank};
use crate::{
    driver::{self, IntArray, Tensor, TensorList},
    kv::Plane,
    ops::{
        Launch, MASK, Op,
        args::{Args, Kind, Place, scratch_bytes},
    },
};

/// `sparseMode`: every key, those up to the query (lower right corners aligned), a band.
const ALL: i64 = 0;
const CAUSAL: i64 = 3;
const BAND: i64 = 4;

/// No bound of a band.
const FAR: i64 = i32::MAX as i64;

pub(super) struct Paged {
    plane: Plane,
    heads: i64,
    scale: f64,
    sparse: i64,
    window: i64,
    lse: bool,
}

/// The operator for a paged cache; `None` where it lacks something.
pub(super) fn paged(op: &Op<'_>, rule: &Attend) -> Result<Option<Paged>> {
    let found = &driver::start()?.operators;
    let there =
        found.FusedInferAttentionScoreV4.is_some() || found.FusedInferAttentionScoreV3.is_some();
    let (plane, v) = (Plane::of(&op.desc.tensors[1])?, Plane::of(&op.desc.tensors[2])?);
    let plain = plane == v && op.dtype(0) == plane.dtype && rule.softcap == 0.0 && !rule.sinks;
    let few = (1..=256).contains(&rule.heads) && rule.heads / plane.heads <= 64;
    let sparse = match (rule.causal, rule.window >= 0) {
        (true, false) => CAUSAL,
        (true, true) => BAND,
        (false, _) => ALL,
    };
    let fits = there && plain && few && plane.is_for_operators();
    let (heads, scale, window, lse) = (rule.heads, rule.scale, rule.window, op.present(7));
    Ok(fits.then_some(Paged { plane, heads, scale, sparse, window, lse }))
}

impl Paged {
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
        let lengths = Lengths::paged(args)?;
        let used = lengths.used(&o)?;
        if o.is_empty() {
            return Ok(());
        }
        blank(args, (&o, lse.as_ref()), (used, o.dims[0] - used))?;
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
        blind.into_iter().try_for_each(|run| blank(args, (&o, lse.as_ref()), run))
    }
}
