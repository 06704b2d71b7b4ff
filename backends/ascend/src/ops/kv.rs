//! KV_WRITE, MLA_WRITE, KV_COPY_BLOCKS: rows scattered to a cache, of which some go nowhere.

use halyard_sdk::{
    Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    index::{index_bytes, indices, negative, put_index, select},
};
use crate::{driver::Scalar, kv::Plane};

struct Write {
    k: Plane,
    v: Plane,
}

pub(super) fn write(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::KvWrite {} = op.attrs()?;
    if op.present(5) || op.present(6) {
        return Err(op.refuse("a cache with scales; supported: f32, f16, bf16"));
    }
    write_both(op)
}

pub(super) fn write_latent(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::MlaWrite {} = op.attrs()?;
    write_both(op)
}

fn write_both(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    op.floats(&[0, 1])?;
    if !op.present(4) {
        return Err(op.refuse("one fused cache; this backend has two"));
    }
    let plane = |slot: usize| Plane::of(&op.desc.tensors[slot]);
    let (k, v) = (plane(3)?, plane(4)?);
    if op.dim(Sym::Block) != k.block {
        return Err(op.refuse("a block whose size is known at launch only"));
    }
    Ok(Box::new(Write { k, v }))
}

/// Where tokens without a slot go: to the slot of one with a slot, with what that one writes.
struct Stand {
    /// i64, one element: a slot, or slot 0.
    slot: Place,
    /// i64, one element: its token.
    token: Place,
    /// True if no token has a slot.
    nobody: Place,
}

/// The token with the highest slot; rounding to f32 may take another one with a slot, which is as good.
fn stand(args: &Args<'_>, slots: &Place) -> Result<Stand> {
    let token = args.scratch(Kind::I64, &[1])?;
    let wide = args.tensor(&args.cast(slots, Kind::F32)?);
    let at = args.tensor(&token);
    enqueue!(args.on, ArgMax(&wide, 0, true, &at))?;
    let slot = args.scratch(Kind::I64, &[1])?;
    select(args, slots, &token, &slot)?;
    let nobody = negative(args, &slot)?;
    put_index(args, &slot, &nobody)?;
    Ok(Stand { slot, token, nobody })
}

/// Where rows go.
struct Targets {
    /// i64, a row each.
    at: Place,
    /// True where the row goes nowhere.
    none: Place,
    stand: Stand,
}

impl Targets {
    /// From rows' numbers below `end`; others are nowhere, so that no index leads out of the cache.
    fn of(args: &Args<'_>, at: &Place, end: i64) -> Result<Self> {
        let inside = args.scratch(Kind::BOOL, &at.dims)?;
        args.less(at, &args.whole(end)?, &inside)?;
        let bounded = args.scratch(Kind::I64, &at.dims)?;
        args.choose(&inside, [at, &args.whole(-1)?], &bounded)?;
        let at = &bounded;
        let none = negative(args, at)?;
        let stand = stand(args, at)?;
        let safe = args.scratch(Kind::I64, &at.dims)?;
        args.choose(&none, [&stand.slot, at], &safe)?;
        Ok(Self { at: safe, none, stand })
    }

    /// Scratch bytes of [`Self::of`].
    fn bytes(rows: i64) -> u64 {
        5 * scratch_bytes(Kind::I64, &[rows]) + 8 * scratch_bytes(Kind::I64, &[1])
    }
}

/// Scratch bytes of [`scatter`].
fn scatter_bytes(rows: i64, width: i64) -> u64 {
    scratch_bytes(Kind::F32, &[rows, width]) + 3 * scratch_bytes(Kind::F32, &[width])
}

/// Writes rows to a matrix of cells.
fn scatter(args: &Args<'_>, rows: &Place, cells: &Place, to: &Targets) -> Result<()> {
    let one = [1, rows.dims[1]];
    // What the stand-in's slot gets: its token's row, or, where no row goes anywhere, what is there.
    let (there, own) = (args.scratch(rows.kind, &one)?, args.scratch(rows.kind, &one)?);
    select(args, cells, &to.stand.slot, &there)?;
    select(args, rows, &to.stand.token, &own)?;
    let instead = args.scratch(rows.kind, &one)?;
    args.choose(&to.stand.nobody.column(), [&there, &own], &instead)?;
    let written = args.scratch(rows.kind, &rows.dims)?;
    args.choose(&to.none.column(), [&instead, rows], &written)?;
    let (cells, at) = (args.tensor(cells), args.tensor(&to.at.column()));
    let written = args.tensor(&written);
    enqueue!(args.on, ScatterNdUpdate(&cells, &at, &written))
}

impl Launch for Write {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let tokens = shapes.first().map_or(0, |s| s.dims[0]);
        let plane = |p: &Plane| {
            let width = p.heads * p.dim;
            scratch_bytes(Kind::F32, &[tokens, width]) + scatter_bytes(tokens, width)
        };
        plane(&self.k) + plane(&self.v) + Targets::bytes(tokens)
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (slots, caches) = (args.place(2)?, [args.place(3)?, args.place(4)?]);
        if slots.is_empty() || caches[0].is_empty() {
            return Ok(());
        }
        let to = Targets::of(args, &slots, caches[0].dims[0] * self.k.block)?;
        for (slot, (plane, cache)) in [&self.k, &self.v].into_iter().zip(&caches).enumerate() {
            let (x, width) = (args.place(slot)?, plane.heads * plane.dim);
            let rows = args.scratch(cache.kind, &[x.dims[0], width])?;
            args.copy(&rows.reshaped(&x.dims), &x)?;
            let cells = cache.reshaped(&[cache.dims[0] * plane.block, width]);
            scatter(args, &rows, &cells, &to)?;
        }
        Ok(())
    }
}

struct CopyBlocks {
    planes: [Plane; 2],
}

pub(super) fn copy_blocks(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::KvCopyBlocks { latent: _ } = op.attrs()?;
    if !op.present(1) {
        return Err(op.refuse("one fused cache; this backend has two"));
    }
    let plane = |slot: usize| Plane::of(&op.desc.tensors[slot]);
    Ok(Box::new(CopyBlocks { planes: [plane(0)?, plane(1)?] }))
}

impl Launch for CopyBlocks {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let pairs = shapes.get(2).map_or(0, |s| s.dims[0]);
        let plane = |p: &Plane| {
            let width = p.block * p.heads * p.dim;
            scratch_bytes(Kind::F32, &[pairs, width]) + scatter_bytes(pairs, width)
        };
        let lists = 2 * index_bytes(pairs) + Targets::bytes(pairs);
        plane(&self.planes[0]) + plane(&self.planes[1]) + lists
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (caches, pairs) = ([args.place(0)?, args.place(1)?], args.place(2)?);
        if pairs.is_empty() || caches[0].is_empty() {
            return Ok(());
        }
        let member = |i| pairs.slice(1, i, 1).seen(&[pairs.dims[0]], &[pairs.strides[0]]);
        let from = indices(args, &member(0))?;
        let to = args.cast(&member(1), Kind::I64)?;
        {
            // A pair without a source goes nowhere.
            let (to, none) = (args.tensor(&to), args.tensor(&from.none));
            let nowhere = Scalar::int(-1);
            enqueue!(args.on, InplaceMaskedFillScalar(&to, &none, &nowhere))?;
        }
        let to = Targets::of(args, &to, caches[0].dims[0])?;
        for (plane, cache) in self.planes.iter().zip(&caches) {
            let width = plane.block * plane.heads * plane.dim;
            let blocks = cache.reshaped(&[cache.dims[0], width]);
            let rows = args.scratch(blocks.kind, &[pairs.dims[0], width])?;
            select(args, &blocks, &from.at, &rows)?;
            scatter(args, &rows, &blocks, &to)?;
        }
        Ok(())
    }
}
