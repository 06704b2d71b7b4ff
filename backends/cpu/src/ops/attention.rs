//! PAGED_ATTENTION, MLA_ATTENTION, VARLEN_ATTENTION and MERGE_ATTENTION.

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::{
        Sym,
        attrs::{MergeAttention, MlaAttention, PagedAttention, VarlenAttention},
    },
};

use super::args::Args;
use super::kv::{self, Named, cache_shape, check_blocks, check_rising, open};
use super::{Launch, Op, Prepared, for_rows, same, spec_dim};
use crate::attention::{self, Attention, Lse, MAX_DIM, Paged, Rules, Source, scratch_bytes};
use crate::device::Context;
use crate::elem::Elem;
use crate::kv::{Cache, Heads, KvShape, Scales};
use crate::simd::LANES;

fn rules(scale: f64, causal: bool, window: i64, softcap: f64) -> Rules {
    let window = usize::try_from(window).ok();
    Rules { scale: scale as f32, causal, window, softcap: softcap as f32 }
}

/// The query heads, a multiple of the KV heads.
fn query_heads(op: &Op<'_>, kv_heads: usize) -> Result<usize> {
    let q_heads = usize::try_from(op.dim(Sym::Hq)).unwrap_or(0);
    if q_heads == 0 || kv_heads == 0 || !q_heads.is_multiple_of(kv_heads) {
        return Err(Error::invalid(format!(
            "{}: {q_heads} query heads on {kv_heads} KV heads, expected a multiple",
            op.desc.kind
        )));
    }
    Ok(q_heads)
}

pub(super) fn paged(op: &Op<'_>) -> Result<Prepared> {
    let PagedAttention { scale, causal, window, softcap } = op.attrs()?;
    let shape = cache_shape(op, Named::Standard, [1, 2], &[8, 9])?;
    let q_heads = query_heads(op, shape.k.heads)?;
    let attend = AttendPaged { rules: rules(scale, causal, window, softcap), shape, q_heads };
    if shape.k.block < LANES {
        return Ok(Prepared::slow(
            "blocks of fewer than 16 tokens are gathered key by key",
            attend,
        ));
    }
    Ok(Prepared::tuned(attend))
}

pub(super) fn mla(op: &Op<'_>) -> Result<Prepared> {
    let MlaAttention { scale, causal, window, softcap } = op.attrs()?;
    let shape = cache_shape(op, Named::Mla, [2, 3], &[])?;
    let q_heads = query_heads(op, 1)?;
    Ok(Prepared::tuned(AttendLatent {
        rules: rules(scale, causal, window, softcap),
        shape,
        q_heads,
    }))
}

pub(super) fn varlen(op: &Op<'_>) -> Result<Prepared> {
    let VarlenAttention { scale, causal, window, softcap } = op.attrs()?;
    let fixed = |sym: Sym| usize::try_from(op.dim(sym)).unwrap_or(0);
    let (heads, dims) = (fixed(Sym::Hk), [fixed(Sym::Dk), fixed(Sym::Dv)]);
    if dims.iter().any(|d| !(1..=MAX_DIM).contains(d)) {
        return Err(Error::unsupported(format!(
            "{}: heads of {dims:?} dims; supported: 1 to {MAX_DIM}",
            op.desc.kind
        )));
    }
    let q_heads = query_heads(op, heads)?;
    let rules = rules(scale, causal, window, softcap);
    Ok(Prepared::tuned(AttendRows { rules, heads, dims, q_heads }))
}

/// Where the slots are that all kinds of attention have.
struct Slots {
    q: usize,
    cu_q: usize,
    o: usize,
    lse: usize,
    sinks: Option<usize>,
}

/// Opens what all kinds of attention have.
fn attend(
    args: &Args<'_>,
    rules: Rules,
    source: Source<'_>,
    q_heads: usize,
    slots: &Slots,
) -> Result<()> {
    let (q, tokens, heads, dim) = args.heads(slots.q)?;
    let (o, o_tokens, o_heads, o_dim) = args.heads_mut(slots.o)?;
    // SAFETY: the host has checked the view.
    let cu_q: &[i32] = unsafe { args.slice(slots.cu_q)? };
    let dim_q = match &source {
        Source::Latent(p, _) => p.cache.k.shape.dim,
        other => other.dim_k(),
    };
    for (what, a, b) in [
        ("tokens", o_tokens, tokens),
        ("heads", heads, q_heads),
        ("heads", o_heads, q_heads),
        ("query dims", dim, dim_q),
        ("output dims", o_dim, source.dim_v()),
    ] {
        same(what, a, b)?;
    }
    check_rising("cu_q", cu_q, tokens)?;
    let lse = args.optional(slots.lse).map(|_| lse(args, slots.lse, tokens, heads)).transpose()?;
    let call = Attention {
        rules,
        source,
        q,
        q_heads,
        cu_q,
        tokens,
        o,
        lse,
        sinks: slots.sinks.map_or(Ok(None), |slot| sinks(args, slot, q_heads))?,
        scratch: args.workspace(0)?,
        scratch_bytes: args.args.workspace_bytes as usize,
    };
    // SAFETY: the host has checked the views; sizes as just checked, lengths and blocks by the caller; the
    // workspace is this launch's own.
    unsafe { call.run(args.context.isa, &args.context.pool) };
    Ok(())
}

/// Lengths and blocks of a paged cache, checked: block table, `cu_q` and `kv_len` from a slot on.
fn paged_source<'a>(
    args: &Args<'a>,
    cache: Cache,
    scales: Scales<'a>,
    slot: usize,
) -> Result<Paged<'a>> {
    let table = args.table::<i32>(slot)?;
    // SAFETY: the host has checked the views.
    let (cu_q, kv_len): (&[i32], &[i32]) =
        unsafe { (args.slice(slot + 1)?, args.slice(slot + 2)?) };
    same("sequences", table.rows, kv_len.len())?;
    same("sequences", cu_q.len(), kv_len.len() + 1)?;
    for (b, &len) in kv_len.iter().enumerate() {
        let Ok(len) = usize::try_from(len) else {
            return Err(Error::invalid(format!("a kv_len of {len}")));
        };
        if cu_q[b + 1] > cu_q[b] {
            // SAFETY: the host has checked the view.
            check_blocks(unsafe { table.row(b) }, len, &cache)?;
        }
    }
    // SAFETY: the host has checked the view.
    let block_table = unsafe { table.all() };
    Ok(Paged { cache, scales, kv_len, block_table, table_stride: table.stride() })
}

struct AttendPaged {
    rules: Rules,
    shape: KvShape,
    q_heads: usize,
}

impl Launch for AttendPaged {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        let max_kv = spec_dim(shapes, 3, 1).saturating_mul(self.shape.k.block);
        scratch_bytes(context.pool.threads(), max_kv, self.shape.v.padded())
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let cache = open(args, self.shape, Named::Standard, [1, 2])?;
        let scales = kv::scales(args, [8, 9], self.shape.k.heads)?;
        let source = Source::Paged(paged_source(args, cache, scales, 3)?);
        let slots = Slots { q: 0, cu_q: 4, o: 6, lse: 7, sinks: Some(10) };
        attend(args, self.rules, source, self.q_heads, &slots)
    }
}

struct AttendLatent {
    rules: Rules,
    shape: KvShape,
    q_heads: usize,
}

impl Launch for AttendLatent {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        let max_kv = spec_dim(shapes, 4, 1).saturating_mul(self.shape.k.block);
        scratch_bytes(context.pool.threads(), max_kv, self.shape.k.padded())
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let cache = open(args, self.shape, Named::Mla, [2, 3])?;
        let (rotated, tokens, heads, dim) = args.heads(1)?;
        same("heads", heads, self.q_heads)?;
        same("rotated query dims", dim, self.shape.v.dim)?;
        same("tokens", tokens, args.heads(0)?.1)?;
        let source = Source::Latent(paged_source(args, cache, Scales::default(), 4)?, rotated);
        let slots = Slots { q: 0, cu_q: 5, o: 7, lse: 8, sinks: None };
        attend(args, self.rules, source, self.q_heads, &slots)
    }
}

struct AttendRows {
    rules: Rules,
    heads: usize,
    dims: [usize; 2],
    q_heads: usize,
}

impl Launch for AttendRows {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        let padded = self.dims[1].next_multiple_of(LANES);
        scratch_bytes(context.pool.threads(), spec_dim(shapes, 1, 0), padded)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (k, rows, k_heads, dim_k) = args.heads(1)?;
        let (v, v_rows, v_heads, dim_v) = args.heads(2)?;
        // SAFETY: the host has checked the views.
        let (cu_q, cu_k): (&[i32], &[i32]) = unsafe { (args.slice(3)?, args.slice(4)?) };
        for (what, a, b) in [
            ("rows", rows, v_rows),
            ("heads", k_heads, self.heads),
            ("heads", v_heads, self.heads),
            ("key dims", dim_k, self.dims[0]),
            ("value dims", dim_v, self.dims[1]),
            ("sequences", cu_q.len(), cu_k.len()),
        ] {
            same(what, a, b)?;
        }
        check_rising("cu_k", cu_k, rows)?;
        let source = Source::Rows { k, v, heads: self.heads, dims: self.dims, cu_k };
        let slots = Slots { q: 0, cu_q: 3, o: 5, lse: 6, sinks: Some(7) };
        attend(args, self.rules, source, self.q_heads, &slots)
    }
}

pub(super) fn merge(op: &Op<'_>) -> Result<Prepared> {
    let MergeAttention {} = op.attrs()?;
    Ok(Prepared::tuned(Merge))
}

struct Merge;

impl Launch for Merge {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (o, tokens, heads, dim) = args.heads_mut(4)?;
        let part = |slot: usize| -> Result<(Heads, Lse)> {
            let (part, part_tokens, part_heads, part_dim) = args.heads(slot)?;
            same("tokens", part_tokens, tokens)?;
            same("heads", part_heads, heads)?;
            same("dims", part_dim, dim)?;
            Ok((part, lse(args, slot + 1, tokens, heads)?))
        };
        let (parts, lse) = ([part(0)?, part(2)?], lse(args, 5, tokens, heads)?);
        let merge = attention::MergeAttention { parts, o, lse, heads, dim };
        for_rows(&args.context.pool, tokens, heads * dim, |tokens| {
            args.context.isa.dispatch(attention::MergeTokens { merge: &merge, tokens });
        });
        Ok(())
    }
}

/// A `[tokens, heads]` tensor of log-sum-exps.
fn lse(args: &Args<'_>, slot: usize, tokens: usize, heads: usize) -> Result<Lse> {
    let (rows, lse_tokens, lse_heads) = args.rows_mut(slot)?;
    same("tokens", lse_tokens, tokens)?;
    same("heads", lse_heads, heads)?;
    if rows.elem != Elem::F32 {
        return Err(Error::invalid("an lse that is not f32"));
    }
    Ok(Lse { base: rows.base, token_stride: rows.row_stride, head_stride: rows.col_stride })
}

fn sinks(args: &Args<'_>, slot: usize, heads: usize) -> Result<Option<*const f32>> {
    if args.optional(slot).is_none() {
        return Ok(None);
    }
    // SAFETY: the host has checked the view.
    let sinks: &[f32] = unsafe { args.slice(slot)? };
    same("sinks", sinks.len(), heads)?;
    Ok(Some(sinks.as_ptr()))
}
