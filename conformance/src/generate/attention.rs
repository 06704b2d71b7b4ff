//! Paged caches and batches of sequences.

use std::collections::BTreeMap;

use halyard_core::{DType, OpBuf, Sym};

use super::{Fill, Inputs, Recipe};
use crate::{array::Array, rng::Rng, symbols::Symbols};

/// What a paged cache is and holds before the op runs.
#[derive(Clone, Debug)]
pub(crate) struct CacheContents {
    pub(crate) cache_dtype: DType,
    /// Of the keys and values that are written, and of queries.
    pub(crate) compute: DType,
    pub(crate) heads: usize,
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
    pub(crate) block: usize,
    pub(crate) blocks: usize,
    pub(crate) writes: Vec<KvWriteBatch>,
    /// Random queries, a row a slot, to look at every block with after the op ran.
    pub(crate) probe: Option<Array>,
}

/// Keys and values of some tokens, and where they go.
#[derive(Clone, Debug)]
pub(crate) struct KvWriteBatch {
    /// `[T, heads, dim_k]`.
    pub(crate) k: Array,
    /// `[T, heads, dim_v]`.
    pub(crate) v: Array,
    /// `[T]` i64.
    pub(crate) slots: Array,
}

/// Tokens, sequences, table columns and blocks follow from the batch.
pub(super) fn complete(symbols: &mut Symbols, recipe: &Recipe) {
    let block = symbols.get(Sym::Block).max(1);
    let needed = |kv: usize| kv.div_ceil(block);
    let widest = recipe.batch.iter().map(|&[_, kv]| needed(kv)).max().unwrap_or(0);
    let blocks: usize = recipe.batch.iter().map(|&[_, kv]| needed(kv)).sum();
    symbols.or(Sym::T, recipe.batch.iter().map(|&[q, _]| q).sum::<usize>() + recipe.padding);
    symbols.or(Sym::B, recipe.batch.len());
    // One column more than anybody needs.
    symbols.or(Sym::M, widest + 1);
    symbols.or(Sym::Blocks, blocks + 3);
}

fn contents(op: &OpBuf, symbols: &Symbols) -> CacheContents {
    let n = |sym: Sym| symbols.get(sym);
    let cache_dtype = op
        .tensors()
        .iter()
        .find(|t| t.flags & halyard_abi::types::FLAG_OPAQUE != 0)
        .map_or(DType::NONE, |t| t.dtype);
    CacheContents {
        cache_dtype,
        // Slot 0 of the attention and writing ops is of the compute type; copying blocks has none.
        compute: op.tensors().first().map_or(cache_dtype, |t| t.dtype),
        heads: n(Sym::Hk),
        dim_k: n(Sym::Dk),
        dim_v: n(Sym::Dv),
        block: n(Sym::Block),
        blocks: n(Sym::Blocks),
        writes: Vec::new(),
        probe: None,
    }
}

impl CacheContents {
    /// Normal keys and values for these slots.
    fn write(&mut self, slots: &[usize], rng: &mut Rng) {
        let (dtype, tokens) = (self.compute, slots.len());
        let slots: Vec<i64> = slots.iter().map(|&s| s as i64).collect();
        self.writes.push(KvWriteBatch {
            k: Fill::Normal.array(dtype, &[tokens, self.heads, self.dim_k], rng),
            v: Fill::Normal.array(dtype, &[tokens, self.heads, self.dim_v], rng),
            slots: Array::ints(DType::I64, &[tokens], &slots),
        });
    }
}

/// For ops that change a cache: all of it is known before, and is looked at afterwards.
pub(super) fn background(
    op: &OpBuf,
    symbols: &Symbols,
    recipe: &Recipe,
    rng: &mut Rng,
    inputs: &mut Inputs,
) -> BTreeMap<&'static str, Array> {
    let mut cache = contents(op, symbols);
    let slots: Vec<usize> = (0..cache.blocks * cache.block).collect();
    cache.write(&slots, rng);
    let dims = [slots.len(), cache.heads * recipe.probe_group.max(1), cache.dim_k];
    cache.probe = Some(Fill::Normal.array(cache.compute, &dims, rng));
    inputs.cache = Some(cache);
    BTreeMap::new()
}

/// A batch: block tables over scattered blocks, garbage where nobody may look, and only the tokens that exist in the cache.
pub(super) fn plan(
    op: &OpBuf,
    symbols: &Symbols,
    recipe: &Recipe,
    rng: &mut Rng,
    inputs: &mut Inputs,
) -> Result<BTreeMap<&'static str, Array>, String> {
    let mut cache = contents(op, symbols);
    let (block, columns) = (cache.block, symbols.get(Sym::M));
    let mut free = rng.distinct(cache.blocks, cache.blocks);
    let garbage = [-1, i64::from(i32::MAX), cache.blocks as i64, i64::from(i32::MIN)];
    let (mut table, mut slots, mut cu_q) = (Vec::new(), Vec::new(), vec![0i64]);
    for &[q, kv] in &recipe.batch {
        let needed = kv.div_ceil(block);
        if needed > columns || needed > free.len() {
            return Err(format!("a sequence of {kv} does not fit {columns} blocks of {block}"));
        }
        let mine: Vec<usize> = free.drain(..needed).collect();
        slots.extend((0..kv).map(|j| mine[j / block] * block + j % block));
        table.extend(mine.iter().map(|&b| b as i64));
        table.extend((needed..columns).map(|_| garbage[rng.below(garbage.len())]));
        cu_q.push(cu_q[cu_q.len() - 1] + q as i64);
    }
    cache.write(&slots, rng);
    inputs.cache = Some(cache);

    let batch = recipe.batch.len();
    let kv_len: Vec<i64> = recipe.batch.iter().map(|&[_, kv]| kv as i64).collect();
    lengths(inputs);
    Ok(BTreeMap::from([
        ("block_table", Array::ints(DType::I32, &[batch, columns], &table)),
        ("cu_q", Array::ints(DType::I32, &[batch + 1], &cu_q)),
        ("kv_len", Array::ints(DType::I32, &[batch], &kv_len)),
    ]))
}

/// The scalars and host arrays that mirror a batch.
pub(crate) fn lengths(inputs: &mut Inputs) {
    let small = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let mut cu_q = vec![0i32];
    for &[q, _] in &inputs.batch {
        cu_q.push(cu_q[cu_q.len() - 1] + small(q));
    }
    let most = |part: usize| inputs.batch.iter().map(|s| s[part] as u64).max().unwrap_or(0);
    let decodes = inputs.batch.iter().take_while(|&&[q, _]| q == 1).count() as u64;
    inputs.scalars = vec![most(0), most(1), decodes];
    let kv_len = inputs.batch.iter().map(|&[_, kv]| small(kv)).collect();
    inputs.host = vec![cu_q, kv_len];
}
