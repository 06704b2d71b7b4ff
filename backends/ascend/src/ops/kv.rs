//! KV_WRITE.

use halyard_sdk::{
    Result, TensorSpec,
    abi::ops::{Sym, attrs},
};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    index::{choose, negative, put_index, select},
};
use crate::kv::Plane;

struct Write {
    k: Plane,
    v: Plane,
}

pub(super) fn write(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::KvWrite {} = op.attrs()?;
    op.floats(&[0, 1])?;
    if !op.present(4) || op.present(5) || op.present(6) {
        return Err(op.refuse("one fused cache, or scales; supported: two caches of f16 or bf16"));
    }
    let plane = |slot: usize| Plane::of(&op.desc.tensors[slot]);
    let (k, v) = (plane(3)?, plane(4)?);
    if op.dtype(0) != k.dtype || op.dtype(1) != v.dtype {
        return Err(op.refuse("a cache of another type than the keys and values"));
    }
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
    let wide = args.tensor(&args.cast(slots, Kind::F32)?)?;
    let at = args.tensor(&token)?;
    enqueue!(args.on, ArgMax(wide.raw(), 0, true, at.raw()))?;
    let slot = args.scratch(Kind::I64, &[1])?;
    select(args, slots, &token, &slot)?;
    let nobody = negative(args, &slot)?;
    put_index(args, &slot, &nobody)?;
    Ok(Stand { slot, token, nobody })
}

/// Writes rows to a plane.
fn scatter(
    args: &Args<'_>,
    plane: &Plane,
    (x, cache): (&Place, &Place),
    (slots, none, stand): (&Place, &Place, &Stand),
) -> Result<()> {
    let (tokens, width) = (x.dims[0], plane.heads * plane.dim);
    let cells = cache.reshaped(&[cache.dims[0] * plane.block, width]);
    let rows = args.scratch(x.kind, &[tokens, width])?;
    args.copy(&rows.reshaped(&x.dims), x)?;
    // What the stand-in's slot gets: its token's row, or, where no token has a slot, what is there.
    let (there, own) = (args.scratch(x.kind, &[1, width])?, args.scratch(x.kind, &[1, width])?);
    select(args, &cells, &stand.slot, &there)?;
    select(args, &rows, &stand.token, &own)?;
    let instead = args.scratch(x.kind, &[1, width])?;
    choose(args, &stand.nobody.column(), [&there, &own], &instead)?;
    let written = args.scratch(x.kind, &[tokens, width])?;
    choose(args, &none.column(), [&instead, &rows], &written)?;
    let (cells, slots) = (args.tensor(&cells)?, args.tensor(&slots.column())?);
    let written = args.tensor(&written)?;
    enqueue!(args.on, ScatterNdUpdate(cells.raw(), slots.raw(), written.raw()))
}

impl Launch for Write {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let tokens = shapes.first().map_or(0, |s| s.dims[0]);
        let plane = |p: &Plane| {
            let width = p.heads * p.dim;
            let rows = scratch_bytes(Kind::F32, &[tokens, width]);
            2 * rows + 3 * scratch_bytes(Kind::F32, &[width])
        };
        let lists = 3 * scratch_bytes(Kind::I64, &[tokens]) + 3 * scratch_bytes(Kind::I64, &[1]);
        plane(&self.k) + plane(&self.v) + lists
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (k, v, slots) = (args.place(0)?, args.place(1)?, args.place(2)?);
        let (k_cache, v_cache) = (args.place(3)?, args.place(4)?);
        if slots.is_empty() || k_cache.is_empty() {
            return Ok(());
        }
        let none = negative(args, &slots)?;
        let stand = stand(args, &slots)?;
        let safe = args.scratch(Kind::I64, &slots.dims)?;
        choose(args, &none, [&stand.slot, &slots], &safe)?;
        let to = (&safe, &none, &stand);
        scatter(args, &self.k, (&k, &k_cache), to)?;
        scatter(args, &self.v, (&v, &v_cache), to)
    }
}
