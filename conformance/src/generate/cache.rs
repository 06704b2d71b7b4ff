//! What a paged cache is, and what it holds before an op runs.

use std::collections::BTreeMap;

use half::{bf16, f16};
use halyard_abi::{
    fp8::{e4m3_from_f64, e4m3_to_f32},
    types::FLAG_OPAQUE,
};
use halyard_core::{
    DType, OpBuf, OpKind, Sym,
    attrs::{KvCopyBlocks, KvGather},
};

use super::{Fill, Inputs, Recipe};
use crate::{
    array::{Array, is_float},
    opbuf::attrs_of,
    rng::Rng,
    symbols::Symbols,
};

/// What a paged cache is and holds before the op runs.
#[derive(Clone, Debug)]
pub(crate) struct CacheContents {
    /// Of latents and rotated parts instead of keys and values.
    pub(crate) latent: bool,
    pub(crate) cache_dtype: DType,
    /// Of the keys and values that are written, and of queries.
    pub(crate) compute: DType,
    pub(crate) heads: usize,
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
    pub(crate) block: usize,
    pub(crate) blocks: usize,
    /// Of keys and of values, f32 a head, for a cache of 8 bits.
    pub(crate) scales: Option<[Array; 2]>,
    pub(crate) writes: Vec<KvWriteBatch>,
    /// Random queries, a row a slot, to look at every block with after the op ran: `q`, or `qc` and `qr`.
    pub(crate) probe: Vec<Array>,
    /// After the op ran the cache is read as it is, by gathering it.
    pub(crate) read_back: bool,
}

/// Keys and values of some tokens, and where they go.
#[derive(Clone, Debug)]
pub(crate) struct KvWriteBatch {
    /// `[T, heads, dim_k]`; of a latent cache `[T, dim_k]`.
    pub(crate) k: Array,
    /// `[T, heads, dim_v]`; of a latent cache `[T, dim_v]`.
    pub(crate) v: Array,
    /// `[T]` i64.
    pub(crate) slots: Array,
}

/// Whether an op's cache is one of latents and rotated parts.
pub(crate) fn is_latent(op: &OpBuf) -> bool {
    match op.kind() {
        OpKind::MLA_WRITE | OpKind::MLA_ATTENTION => true,
        OpKind::KV_GATHER => attrs_of::<KvGather>(op).latent,
        OpKind::KV_COPY_BLOCKS => attrs_of::<KvCopyBlocks>(op).latent,
        _ => false,
    }
}

impl CacheContents {
    /// An empty cache as an op wants it.
    pub(crate) fn of(op: &OpBuf, symbols: &Symbols, rng: &mut Rng) -> Self {
        let n = |sym: Sym| symbols.get(sym);
        let opaque = |t: &&halyard_core::TensorSpec| t.flags & FLAG_OPAQUE != 0;
        let cache_dtype = op.tensors().iter().find(opaque).map_or(DType::NONE, |t| t.dtype);
        // Copying blocks has no slot of the compute type.
        let floats = |t: &&halyard_core::TensorSpec| !opaque(t) && is_float(t.dtype);
        let otherwise = if is_float(cache_dtype) { cache_dtype } else { DType::BF16 };
        let compute = op.tensors().iter().find(floats).map_or(otherwise, |t| t.dtype);
        let latent = is_latent(op);
        let mla = matches!(op.kind(), OpKind::MLA_WRITE | OpKind::MLA_ATTENTION);
        let (dim_k, dim_v) = if mla { (Sym::C, Sym::R) } else { (Sym::Dk, Sym::Dv) };
        let heads = if latent { 1 } else { n(Sym::Hk) };
        let scale =
            |rng: &mut Rng| Array::floats(DType::F32, &[heads], |_| rng.between(0.01, 0.05));
        let scales = (!is_float(cache_dtype)).then(|| [scale(rng), scale(rng)]);
        Self {
            latent,
            cache_dtype,
            compute,
            heads,
            dim_k: n(dim_k),
            dim_v: n(dim_v),
            block: n(Sym::Block),
            blocks: n(Sym::Blocks),
            scales,
            writes: Vec::new(),
            probe: Vec::new(),
            read_back: false,
        }
    }

    /// `[rows, heads, dim]`, or `[rows, dim]` where there are no heads.
    fn dims(&self, rows: usize, dim: usize) -> Vec<usize> {
        if self.latent { vec![rows, dim] } else { vec![rows, self.heads, dim] }
    }

    /// Normal keys and values for these slots.
    pub(super) fn write(&mut self, slots: &[usize], rng: &mut Rng) {
        let tokens = slots.len();
        let values = |part: usize, dim: usize, rng: &mut Rng| {
            let dims = self.dims(tokens, dim);
            let scales = self.scales.as_ref().map(|s| &s[part]);
            Array::floats(self.compute, &dims, |i| match scales {
                None => rng.normal(),
                Some(scales) => self.storable(scales.get(i / dim.max(1) % self.heads), rng),
            })
        };
        let (k, v) = (values(0, self.dim_k, rng), values(1, self.dim_v, rng));
        let slots: Vec<i64> = slots.iter().map(|&s| s as i64).collect();
        let slots = Array::ints(DType::I64, &[tokens], &slots);
        self.writes.push(KvWriteBatch { k, v, slots });
    }

    /// A normal number that the cache can store, up to the rounding of the compute type: far enough from the middle between two codes
    /// that every backend stores the same.
    fn storable(&self, scale: f64, rng: &mut Rng) -> f64 {
        let code = rng.normal() / scale;
        let stored = match self.cache_dtype {
            DType::I8 => code.round().clamp(-127.0, 127.0),
            _ => f64::from(e4m3_to_f32(e4m3_from_f64(code))),
        };
        match self.compute {
            DType::F16 => f16::from_f64(stored * scale).to_f64(),
            DType::BF16 => bf16::from_f64(stored * scale).to_f64(),
            _ => stored * scale,
        }
    }

    /// Puts a NaN or an infinity where a fill for the caches says so, into what the last write brings of one token.
    pub(super) fn plant(&mut self, recipe: &Recipe, token: usize) {
        let Some(write) = self.writes.last_mut() else { return };
        let parts = [
            (["k_cache", "c_cache"], &mut write.k, self.dim_k * self.heads),
            (["v_cache", "r_cache"], &mut write.v, self.dim_v * self.heads),
        ];
        for (names, array, width) in parts {
            let fill = names.iter().find_map(|name| recipe.fills.get(*name));
            let value = match fill {
                Some(Fill::OneNan) => f64::NAN,
                Some(Fill::OneInf) => f64::INFINITY,
                _ => continue,
            };
            array.set(token * width, value);
        }
    }

    /// The same cache with all bits of its elements.
    pub(crate) fn unrounded(&self) -> Self {
        Self { cache_dtype: DType::F32, scales: None, ..self.clone() }
    }

    fn queries(&mut self, recipe: &Recipe, rng: &mut Rng) {
        if self.scales.is_some() {
            self.read_back = true;
            return;
        }
        let rows = self.blocks * self.block;
        let heads = self.heads * recipe.probe_group.max(1);
        let dims = if self.latent { vec![self.dim_k, self.dim_v] } else { vec![self.dim_k] };
        for dim in dims {
            self.probe.push(Fill::Normal.array(self.compute, &[rows, heads, dim], rng));
        }
    }
}

/// The slots of scales, as the cache has them.
pub(super) fn scales(cache: &CacheContents) -> BTreeMap<&'static str, Array> {
    let Some([k, v]) = &cache.scales else { return BTreeMap::new() };
    BTreeMap::from([("k_scale", k.clone()), ("v_scale", v.clone())])
}

/// For ops that change a cache: all of it is known before, and is looked at afterwards.
pub(super) fn background(
    op: &OpBuf,
    symbols: &Symbols,
    recipe: &Recipe,
    rng: &mut Rng,
    inputs: &mut Inputs,
) -> BTreeMap<&'static str, Array> {
    let mut cache = CacheContents::of(op, symbols, rng);
    let slots: Vec<usize> = (0..cache.blocks * cache.block).collect();
    cache.write(&slots, rng);
    cache.queries(recipe, rng);
    let planned = scales(&cache);
    inputs.cache = Some(cache);
    planned
}
