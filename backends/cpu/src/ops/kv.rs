//! What writes, copies and gathers the paged cache: KV_WRITE, MLA_WRITE, KV_COPY_BLOCKS, KV_GATHER.

use halyard_sdk::{
    Error, KvDesc, Result,
    abi::{
        ops::{
            Sym,
            attrs::{KvCopyBlocks, KvGather, KvWrite, MlaWrite},
        },
        types::{KV_MLA, KV_STANDARD},
    },
};

use super::args::Args;
use super::{Launch, Op, Prepared, checked_row, same};
use crate::attention::MAX_DIM;
use crate::cell::Cell;
use crate::device::MAX_BLOCK_BITS;
use crate::kv::{self, Cache, KvShape, Plane, PlaneShape, Scales};

/// The shape of a cache that a host asks for.
pub(crate) fn shape_of(kv: &KvDesc<'_>) -> Result<KvShape> {
    let known = [KV_STANDARD, KV_MLA].contains(&kv.kind);
    if !known || !kv.attrs.is_empty() {
        return Err(Error::unsupported(format!(
            "a cache of kind {} with {} attributes; supported: {KV_STANDARD} (keys and values) and {KV_MLA} (latents) with none",
            kv.kind,
            kv.attrs.len()
        )));
    }
    let cell =
        Cell::of(kv.dtype).map_err(|e| Error::unsupported(format!("a cache of {}", e.message)))?;
    let (block, heads) = (kv.block_size as usize, kv.heads as usize);
    let dims = [kv.dim_k as usize, kv.dim_v as usize];
    if kv.kind == KV_STANDARD {
        return checked(KvShape::standard(cell, block, heads, dims));
    }
    if heads != 1 {
        return Err(Error::invalid(format!("latents with {heads} heads, expected 1")));
    }
    latent(cell, block, dims)
}

fn latent(cell: Cell, block: usize, dims: [usize; 2]) -> Result<KvShape> {
    match cell.float() {
        Some(elem) => checked(KvShape::latent(elem, block, dims)),
        None => Err(Error::unsupported("latents of 8 bits; supported: f32, f16, bf16")),
    }
}

/// Refuses a cache that the kernels are not made for.
fn checked(shape: KvShape) -> Result<KvShape> {
    let PlaneShape { block, heads, dim, .. } = shape.k;
    let inside = |d: usize| (1..=MAX_DIM).contains(&d);
    if heads == 0 || !inside(dim) || !inside(shape.v.dim) {
        return Err(Error::unsupported(format!(
            "a cache of {heads} heads of {dim} and {} dims; supported: 1 to {MAX_DIM} dims",
            shape.v.dim
        )));
    }
    if shape.is_latent() && dim + shape.v.dim > MAX_DIM {
        return Err(Error::unsupported(format!(
            "latents of {dim} dims with {} rotated ones; supported: {MAX_DIM} together",
            shape.v.dim
        )));
    }
    if !block.is_power_of_two() || block > 1 << MAX_BLOCK_BITS {
        return Err(Error::unsupported(format!(
            "blocks of {block} tokens; supported: powers of two up to {}",
            1 << MAX_BLOCK_BITS
        )));
    }
    if shape.k.block_bytes().is_none() || shape.v.block_bytes().is_none() {
        return Err(Error::invalid(format!("a cache with {heads} heads is too large")));
    }
    Ok(shape)
}

/// How an op names its cache's dims.
#[derive(Clone, Copy)]
pub(super) enum Named {
    /// Keys and values.
    Standard,
    /// Latents and rotated parts, `C` and `R`.
    Mla,
    /// Latents and rotated parts in slots for keys and values.
    Latent,
}

/// The cache's shape from an op's cache slots; scales come with 8-bit caches only.
pub(super) fn cache_shape(
    op: &Op<'_>,
    named: Named,
    caches: [usize; 2],
    scales: &[usize],
) -> Result<KvShape> {
    let kind = op.desc.kind;
    if !op.present(caches[1]) {
        return Err(Error::unsupported(format!("{kind}: one cache; this backend has two")));
    }
    let dtype = op.desc.tensors[caches[0]].dtype;
    let cell = Cell::of(dtype).map_err(|e| Error::unsupported(format!("{kind}: {}", e.message)))?;
    if cell.float().is_some() && scales.iter().any(|&slot| op.present(slot)) {
        return Err(Error::unsupported(format!(
            "{kind}: scales with a cache of {dtype}; they belong to f8e4m3 and i8"
        )));
    }
    let fixed = |sym: Sym| {
        usize::try_from(op.dim(sym))
            .map_err(|_| Error::unsupported(format!("{kind}: the cache's {sym:?} must be fixed")))
    };
    let block = fixed(Sym::Block)?;
    match named {
        Named::Mla => latent(cell, block, [fixed(Sym::C)?, fixed(Sym::R)?]),
        Named::Latent if fixed(Sym::Hk)? != 1 => {
            Err(Error::invalid(format!("{kind}: latents with heads, expected 1")))
        }
        Named::Latent => latent(cell, block, [fixed(Sym::Dk)?, fixed(Sym::Dv)?]),
        Named::Standard => {
            let dims = [fixed(Sym::Dk)?, fixed(Sym::Dv)?];
            checked(KvShape::standard(cell, block, fixed(Sym::Hk)?, dims))
        }
    }
}

/// Opens the two caches of a launch.
pub(super) fn open(
    args: &Args<'_>,
    shape: KvShape,
    named: Named,
    slots: [usize; 2],
) -> Result<Cache> {
    let plane = |shape: PlaneShape, slot: usize| {
        let (base, blocks) = match named {
            Named::Mla => args.opaque(slot, &[shape.block, shape.dim])?,
            Named::Standard | Named::Latent => {
                args.opaque(slot, &[shape.block, shape.heads, shape.dim])?
            }
        };
        let block_bytes = shape.block_bytes().ok_or_else(|| Error::invalid("a cache too large"))?;
        Ok((Plane { shape, base, block_bytes }, blocks))
    };
    let ((k, blocks), (v, v_blocks)) = (plane(shape.k, slots[0])?, plane(shape.v, slots[1])?);
    same("blocks of the two caches", blocks, v_blocks)?;
    Ok(Cache { blocks, k, v })
}

/// The scales in two slots that may be absent.
pub(super) fn scales<'a>(args: &Args<'a>, slots: [usize; 2], heads: usize) -> Result<Scales<'a>> {
    let read = |slot: usize| -> Result<Option<&'a [f32]>> {
        if args.optional(slot).is_none() {
            return Ok(None);
        }
        // SAFETY: the host has checked the view.
        let scales: &[f32] = unsafe { args.slice(slot)? };
        same("scales", scales.len(), heads)?;
        Ok(Some(scales))
    };
    Ok(Scales { k: read(slots[0])?, v: read(slots[1])? })
}

/// Slots, all of which that are not negative are inside the cache.
pub(super) fn slots<'a>(args: &Args<'a>, slot: usize, cache: &Cache) -> Result<&'a [i64]> {
    // SAFETY: the host has checked the view.
    let slots: &[i64] = unsafe { args.slice(slot)? };
    for &slot in slots.iter().filter(|&&s| s >= 0) {
        checked_row("slot", slot, cache.blocks * cache.k.shape.block)?;
    }
    Ok(slots)
}

/// Every block that holds one of a sequence's first `len` tokens must exist.
pub(super) fn check_blocks(row: &[i32], len: usize, cache: &Cache) -> Result<()> {
    let needed = len.div_ceil(cache.k.shape.block);
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

/// Numbers of rows up to each sequence: rising from 0 to no more than there are.
pub(super) fn check_rising(what: &str, cu: &[i32], rows: usize) -> Result<()> {
    let rising = cu.windows(2).all(|w| w[0] <= w[1]);
    let last = cu.last().and_then(|&n| usize::try_from(n).ok());
    if cu.first() != Some(&0) || !rising || last.is_none_or(|n| n > rows) {
        return Err(Error::invalid(format!("{what} {cu:?} for {rows} rows")));
    }
    Ok(())
}

pub(super) fn write(op: &Op<'_>) -> Result<Prepared> {
    let KvWrite {} = op.attrs()?;
    let shape = cache_shape(op, Named::Standard, [3, 4], &[5, 6])?;
    Ok(Prepared::tuned(Write { shape, named: Named::Standard }))
}

pub(super) fn mla_write(op: &Op<'_>) -> Result<Prepared> {
    let MlaWrite {} = op.attrs()?;
    let shape = cache_shape(op, Named::Mla, [3, 4], &[])?;
    Ok(Prepared::tuned(Write { shape, named: Named::Mla }))
}

struct Write {
    shape: KvShape,
    named: Named,
}

impl Launch for Write {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let KvShape { k: k_shape, v: v_shape } = self.shape;
        let cache = open(args, self.shape, self.named, [3, 4])?;
        let tensor = |slot| match self.named {
            Named::Mla => args.one_head(slot),
            Named::Standard | Named::Latent => args.heads(slot),
        };
        let (k, tokens, k_heads, dim_k) = tensor(0)?;
        let (v, v_tokens, v_heads, dim_v) = tensor(1)?;
        let slots = slots(args, 2, &cache)?;
        for (what, a, b) in [
            ("tokens", tokens, slots.len()),
            ("tokens", v_tokens, slots.len()),
            ("heads", k_heads, k_shape.heads),
            ("heads", v_heads, v_shape.heads),
            ("key dims", dim_k, k_shape.dim),
            ("value dims", dim_v, v_shape.dim),
        ] {
            same(what, a, b)?;
        }
        let scales = scales(args, [5, 6], k_shape.heads)?;
        let write = kv::KvWrite { cache, k, v, scales, slots };
        // SAFETY: the host has checked the views; sizes and slots as just checked.
        unsafe { write.run(args.context.isa, &args.context.pool) };
        Ok(())
    }
}

pub(super) fn copy_blocks(op: &Op<'_>) -> Result<Prepared> {
    let KvCopyBlocks { latent } = op.attrs()?;
    let named = if latent { Named::Latent } else { Named::Standard };
    Ok(Prepared::tuned(CopyBlocks(cache_shape(op, named, [0, 1], &[])?)))
}

struct CopyBlocks(KvShape);

impl Launch for CopyBlocks {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let cache = open(args, self.0, Named::Standard, [0, 1])?;
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

pub(super) fn gather(op: &Op<'_>) -> Result<Prepared> {
    let KvGather { latent } = op.attrs()?;
    let named = if latent { Named::Latent } else { Named::Standard };
    Ok(Prepared::native(Gather(cache_shape(op, named, [0, 1], &[6, 7])?)))
}

struct Gather(KvShape);

impl Launch for Gather {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (k_shape, v_shape) = (self.0.k, self.0.v);
        let cache = open(args, self.0, Named::Standard, [0, 1])?;
        let table = args.table::<i32>(2)?;
        // SAFETY: the host has checked the view.
        let cu_k: &[i32] = unsafe { args.slice(3)? };
        let (k, rows, k_heads, dim_k) = args.heads_mut(4)?;
        let (v, v_rows, v_heads, dim_v) = args.heads_mut(5)?;
        for (what, a, b) in [
            ("rows", rows, v_rows),
            ("heads", k_heads, k_shape.heads),
            ("heads", v_heads, v_shape.heads),
            ("key dims", dim_k, k_shape.dim),
            ("value dims", dim_v, v_shape.dim),
            ("sequences", cu_k.len(), table.rows + 1),
        ] {
            same(what, a, b)?;
        }
        check_rising("cu_k", cu_k, rows)?;
        for b in 0..table.rows {
            // SAFETY: the host has checked the view.
            check_blocks(unsafe { table.row(b) }, (cu_k[b + 1] - cu_k[b]) as usize, &cache)?;
        }
        let gather = kv::KvGather {
            cache,
            scales: scales(args, [6, 7], k_shape.heads)?,
            cu_k,
            // SAFETY: the host has checked the view.
            block_table: unsafe { table.all() },
            table_stride: table.stride(),
            k,
            v,
            rows,
        };
        // SAFETY: the host has checked the views; sizes, lengths and blocks as just checked.
        unsafe { gather.run(args.context.isa, &args.context.pool) };
        Ok(())
    }
}
