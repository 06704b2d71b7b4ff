//! KV_WRITE, PAGED_ATTENTION and KV_COPY_BLOCKS.

use halyard_sdk::{
    Error, Result, TensorSpec,
    abi::ops::{
        Sym,
        attrs::{KvCopyBlocks, KvWrite, PagedAttention},
    },
};

use super::args::Args;
use super::{Launch, Op, Prepared, checked_row, same, spec_dim};
use crate::attention::{Attention, Lse, MAX_DIM, Rules, scratch_bytes};
use crate::device::{Context, MAX_BLOCK_BITS};
use crate::elem::Elem;
use crate::kv::{self, Cache, KvShape};
use crate::simd::LANES;

/// Refuses a cache that the kernels are not made for.
pub(crate) fn check_cache_shape(shape: &KvShape) -> Result<()> {
    let dims = |d: usize| d > 0 && d <= MAX_DIM && d.is_multiple_of(8);
    if shape.heads == 0 || !dims(shape.dim_k) || !dims(shape.dim_v) {
        return Err(Error::unsupported(format!(
            "a cache of {} heads of {} and {} dims; supported: multiples of 8 up to {MAX_DIM}",
            shape.heads, shape.dim_k, shape.dim_v
        )));
    }
    if !shape.block.is_power_of_two() || shape.block > 1 << MAX_BLOCK_BITS {
        return Err(Error::unsupported(format!(
            "blocks of {} tokens; supported: powers of two up to {}",
            shape.block,
            1 << MAX_BLOCK_BITS
        )));
    }
    Ok(())
}

/// The cache's shape from an op's cache slots, and refusal of scales.
fn cache_shape(op: &Op<'_>, caches: [usize; 2], scales: &[usize]) -> Result<KvShape> {
    if !op.present(caches[1]) {
        return Err(Error::unsupported("values fused into the key cache"));
    }
    let elem = op.elem(caches[0])?;
    if scales.iter().any(|&slot| op.present(slot)) {
        return Err(Error::unsupported("scales with a cache of floats"));
    }
    let fixed = |sym: Sym| {
        usize::try_from(op.dim(sym)).map_err(|_| {
            Error::unsupported(format!("{}: the cache's {sym:?} must be fixed", op.desc.kind))
        })
    };
    let shape = KvShape {
        elem,
        block: fixed(Sym::Block)?,
        heads: fixed(Sym::Hk)?,
        dim_k: fixed(Sym::Dk)?,
        dim_v: fixed(Sym::Dv)?,
    };
    check_cache_shape(&shape)?;
    Ok(shape)
}

/// Opens the two caches of a launch.
fn open(args: &Args<'_>, shape: KvShape, slots: [usize; 2]) -> Result<Cache> {
    let (k, k_dims) = args.opaque(slots[0])?;
    let (v, v_dims) = args.opaque(slots[1])?;
    if k_dims[1..] != [shape.block, shape.heads, shape.dim_k]
        || v_dims != [k_dims[0], shape.block, shape.heads, shape.dim_v]
    {
        return Err(Error::invalid(format!("caches of {k_dims:?} and {v_dims:?}")));
    }
    let bytes = shape.k_block_bytes().zip(shape.v_block_bytes());
    let (k_block_bytes, v_block_bytes) =
        bytes.ok_or_else(|| Error::invalid("a cache too large"))?;
    Ok(Cache { shape, blocks: k_dims[0], k, v, k_block_bytes, v_block_bytes })
}

pub(super) fn kv_write(op: &Op<'_>) -> Result<Prepared> {
    let KvWrite {} = op.attrs()?;
    Ok(Prepared::tuned(Write(cache_shape(op, [3, 4], &[5, 6])?)))
}

struct Write(KvShape);

impl Launch for Write {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let cache = open(args, self.0, [3, 4])?;
        let (k, tokens, k_heads, dim_k) = args.heads(0)?;
        let (v, v_tokens, v_heads, dim_v) = args.heads(1)?;
        // SAFETY: the host has checked the view.
        let slots: &[i64] = unsafe { args.slice(2)? };
        for (what, a, b) in [
            ("tokens", tokens, slots.len()),
            ("tokens", v_tokens, slots.len()),
            ("heads", k_heads, self.0.heads),
            ("heads", v_heads, self.0.heads),
            ("key dims", dim_k, self.0.dim_k),
            ("value dims", dim_v, self.0.dim_v),
        ] {
            same(what, a, b)?;
        }
        for &slot in slots.iter().filter(|&&s| s >= 0) {
            checked_row("slot", slot, cache.blocks * self.0.block)?;
        }
        // SAFETY: the host has checked the views; sizes and slots as just checked.
        unsafe { kv::KvWrite { cache, k, v, slots }.run(args.context.isa, &args.context.pool) };
        Ok(())
    }
}

pub(super) fn kv_copy_blocks(op: &Op<'_>) -> Result<Prepared> {
    let KvCopyBlocks { latent } = op.attrs()?;
    if latent {
        return Err(Error::unsupported("a cache of latents"));
    }
    Ok(Prepared::tuned(CopyBlocks(cache_shape(op, [0, 1], &[])?)))
}

struct CopyBlocks(KvShape);

impl Launch for CopyBlocks {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let cache = open(args, self.0, [0, 1])?;
        let pairs = args.table::<i32>(2)?;
        same("columns of pairs", pairs.cols, 2)?;
        for p in 0..pairs.rows {
            // SAFETY: the host has checked the view.
            let &[from, to] = (unsafe { pairs.row(p) }) else { continue };
            if from < 0 || to < 0 {
                continue;
            }
            let from = checked_row("source block", i64::from(from), cache.blocks)?;
            let to = checked_row("destination block", i64::from(to), cache.blocks)?;
            if from != to {
                // SAFETY: both blocks exist and differ.
                unsafe { cache.copy_block(from, to) };
            }
        }
        Ok(())
    }
}

pub(super) fn paged_attention(op: &Op<'_>) -> Result<Prepared> {
    let attrs: PagedAttention = op.attrs()?;
    let shape = cache_shape(op, [1, 2], &[8, 9])?;
    let q_heads = usize::try_from(op.dim(Sym::Hq)).unwrap_or(0);
    if q_heads == 0 || !q_heads.is_multiple_of(shape.heads) {
        return Err(Error::invalid(format!(
            "paged_attention: {q_heads} query heads on {} KV heads, expected a multiple",
            shape.heads
        )));
    }
    let rules = Rules {
        scale: attrs.scale as f32,
        causal: attrs.causal,
        window: usize::try_from(attrs.window).ok(),
        softcap: attrs.softcap as f32,
    };
    let attend = Attend { rules, shape, q_heads };
    if shape.block < LANES {
        return Ok(Prepared::slow(
            "blocks of fewer than 16 tokens are gathered key by key",
            attend,
        ));
    }
    Ok(Prepared::tuned(attend))
}

struct Attend {
    rules: Rules,
    shape: KvShape,
    q_heads: usize,
}

impl Launch for Attend {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        let max_kv = spec_dim(shapes, 3, 1).saturating_mul(self.shape.block);
        scratch_bytes(context.pool.threads(), max_kv, self.shape.padded_v())
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let cache = open(args, self.shape, [1, 2])?;
        let (q, tokens, heads, dim) = args.heads(0)?;
        let (o, o_tokens, o_heads, o_dim) = args.heads_mut(6)?;
        let table = args.table::<i32>(3)?;
        // SAFETY: the host has checked the views.
        let (cu_q, kv_len): (&[i32], &[i32]) = unsafe { (args.slice(4)?, args.slice(5)?) };
        for (what, a, b) in [
            ("tokens", o_tokens, tokens),
            ("heads", heads, self.q_heads),
            ("heads", o_heads, self.q_heads),
            ("query dims", dim, self.shape.dim_k),
            ("output dims", o_dim, self.shape.dim_v),
            ("sequences", table.rows, kv_len.len()),
            ("sequences", cu_q.len(), kv_len.len() + 1),
        ] {
            same(what, a, b)?;
        }
        check_lengths(cu_q, kv_len, tokens)?;
        for (b, &len) in kv_len.iter().enumerate() {
            // SAFETY: the host has checked the view.
            check_blocks(unsafe { table.row(b) }, len as usize, cu_q[b + 1] > cu_q[b], &cache)?;
        }
        let call = Attention {
            rules: self.rules,
            cache,
            q,
            q_heads: self.q_heads,
            cu_q,
            kv_len,
            // SAFETY: the host has checked the view.
            block_table: unsafe { table.all() },
            table_stride: table.stride(),
            tokens,
            o,
            lse: lse(args, tokens, self.q_heads)?,
            sinks: sinks(args, self.q_heads)?,
            scratch: args.workspace(0)?,
            scratch_bytes: args.args.workspace_bytes as usize,
        };
        // SAFETY: the host has checked the views; sizes, lengths and blocks as just checked; the workspace
        // is this launch's own.
        unsafe { call.run(args.context.isa, &args.context.pool) };
        Ok(())
    }
}

fn lse(args: &Args<'_>, tokens: usize, heads: usize) -> Result<Option<Lse>> {
    if args.optional(7).is_none() {
        return Ok(None);
    }
    let (rows, lse_tokens, lse_heads) = args.rows_mut(7)?;
    same("tokens", lse_tokens, tokens)?;
    same("heads", lse_heads, heads)?;
    if rows.elem != Elem::F32 {
        return Err(Error::invalid("an lse that is not f32"));
    }
    Ok(Some(Lse { base: rows.base, token_stride: rows.row_stride, head_stride: rows.col_stride }))
}

fn sinks(args: &Args<'_>, heads: usize) -> Result<Option<*const f32>> {
    if args.optional(10).is_none() {
        return Ok(None);
    }
    // SAFETY: the host has checked the view.
    let sinks: &[f32] = unsafe { args.slice(10)? };
    same("sinks", sinks.len(), heads)?;
    Ok(Some(sinks.as_ptr()))
}

fn check_lengths(cu_q: &[i32], kv_len: &[i32], tokens: usize) -> Result<()> {
    let rising = cu_q.windows(2).all(|w| w[0] <= w[1]);
    let last = cu_q.last().and_then(|&n| usize::try_from(n).ok());
    if cu_q.first() != Some(&0) || !rising || last.is_none_or(|n| n > tokens) {
        return Err(Error::invalid(format!("cu_q {cu_q:?} for {tokens} tokens")));
    }
    if let Some(bad) = kv_len.iter().find(|&&n| n < 0) {
        return Err(Error::invalid(format!("a kv_len of {bad}")));
    }
    Ok(())
}

/// Every block that holds a cached token of a sequence with queries must exist.
fn check_blocks(row: &[i32], len: usize, has_queries: bool, cache: &Cache) -> Result<()> {
    if !has_queries {
        return Ok(());
    }
    let needed = len.div_ceil(cache.shape.block);
    let Some(blocks) = row.get(..needed) else {
        return Err(Error::invalid(format!(
            "{len} cached tokens need {needed} blocks, the table has {}",
            row.len()
        )));
    };
    for &block in blocks {
        checked_row("a block", i64::from(block), cache.blocks)?;
    }
    Ok(())
}
