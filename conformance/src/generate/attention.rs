//! Batches of sequences: over a paged cache, and over contiguous keys and values.

use std::collections::BTreeMap;

use halyard_core::{DType, OpBuf, OpKind, Sym};

use super::{
    Fill, Inputs, Recipe,
    cache::{CacheContents, scales},
};
use crate::{array::Array, rng::Rng, symbols::Symbols};

/// Tokens, sequences, table columns and blocks follow from the batch.
pub(super) fn complete(symbols: &mut Symbols, recipe: &Recipe) {
    let block = symbols.get(Sym::Block).max(1);
    let needed = |kv: usize| kv.div_ceil(block);
    let widest = recipe.batch.iter().map(|&[_, kv]| needed(kv)).max().unwrap_or(0);
    let blocks: usize = recipe.batch.iter().map(|&[_, kv]| needed(kv)).sum();
    let total = |part: usize| recipe.batch.iter().map(|s| s[part]).sum::<usize>();
    symbols.or(Sym::T, total(0) + recipe.padding);
    symbols.or(Sym::Tk, total(1) + recipe.padding);
    symbols.or(Sym::B, recipe.batch.len());
    // One column more than anybody needs.
    symbols.or(Sym::M, widest + 1);
    symbols.or(Sym::Blocks, blocks + 3);
}

/// Starts of the sequences by their new tokens (part 0) or their lengths (part 1).
fn starts(batch: &[[usize; 2]], part: usize) -> Vec<i64> {
    let mut starts = vec![0i64];
    for sequence in batch {
        starts.push(starts[starts.len() - 1] + sequence[part] as i64);
    }
    starts
}

fn small(values: Vec<i64>) -> Vec<i32> {
    values.into_iter().map(|v| i32::try_from(v).unwrap_or(i32::MAX)).collect()
}

fn ids(values: &[i64]) -> Array {
    Array::ints(DType::I32, &[values.len()], values)
}

/// A batch over a cache: block tables over scattered blocks, garbage where nobody may look, and only the tokens that exist in the cache.
pub(super) fn paged(
    op: &OpBuf,
    symbols: &Symbols,
    recipe: &Recipe,
    rng: &mut Rng,
    inputs: &mut Inputs,
) -> Result<BTreeMap<&'static str, Array>, String> {
    let mut cache = CacheContents::of(op, symbols, rng);
    let (block, columns) = (cache.block, symbols.get(Sym::M));
    let mut free = rng.distinct(cache.blocks, cache.blocks);
    let garbage = [-1, i64::from(i32::MAX), cache.blocks as i64, i64::from(i32::MIN)];
    let (mut table, mut slots) = (Vec::new(), Vec::new());
    for &[_, kv] in &recipe.batch {
        let needed = kv.div_ceil(block);
        if needed > columns || needed > free.len() {
            return Err(format!("a sequence of {kv} does not fit {columns} blocks of {block}"));
        }
        let mine: Vec<usize> = free.drain(..needed).collect();
        slots.extend((0..kv).map(|j| mine[j / block] * block + j % block));
        table.extend(mine.iter().map(|&b| b as i64));
        table.extend((needed..columns).map(|_| garbage[rng.below(garbage.len())]));
    }
    cache.write(&slots, rng);
    // Seen by every query of its own sequence: by none of another.
    let before = &recipe.batch[..recipe.batch.len() / 2];
    cache.plant(recipe, before.iter().map(|s| s[1]).sum());
    let mut planned = scales(&cache);
    inputs.cache = Some(cache);

    let batch = recipe.batch.len();
    let kv_len: Vec<i64> = recipe.batch.iter().map(|&[_, kv]| kv as i64).collect();
    lengths(op.kind(), inputs);
    planned.extend([
        ("block_table", Array::ints(DType::I32, &[batch, columns], &table)),
        ("cu_q", ids(&starts(&recipe.batch, 0))),
        ("cu_k", ids(&starts(&recipe.batch, 1))),
        ("kv_len", ids(&kv_len)),
    ]);
    Ok(planned)
}

/// A batch over contiguous keys and values: rows that belong to no sequence are NaN.
pub(super) fn contiguous(
    op: &OpBuf,
    symbols: &Symbols,
    recipe: &Recipe,
    rng: &mut Rng,
    inputs: &mut Inputs,
) -> BTreeMap<&'static str, Array> {
    let compute = op.tensors().first().map_or(DType::F32, |t| t.dtype);
    let (rows, cu_k) = (symbols.get(Sym::Tk), starts(&recipe.batch, 1));
    let used: usize = recipe.batch.iter().map(|s| s[1]).sum();
    let mut rows_of = |dim: Sym| {
        let row = [symbols.get(Sym::Hk), symbols.get(dim)];
        let mut array = Fill::Normal.array(compute, &[rows, row[0], row[1]], rng);
        let row = row[0] * row[1];
        (used * row..rows * row).for_each(|i| array.set(i, f64::NAN));
        array
    };
    let (k, v) = (rows_of(Sym::Dk), rows_of(Sym::Dv));
    lengths(op.kind(), inputs);
    BTreeMap::from([
        ("k", k),
        ("v", v),
        ("cu_q", ids(&starts(&recipe.batch, 0))),
        ("cu_k", ids(&cu_k)),
    ])
}

/// The scalars and host arrays that mirror a batch.
pub(crate) fn lengths(kind: OpKind, inputs: &mut Inputs) {
    let most = |part: usize| inputs.batch.iter().map(|s| s[part] as u64).max().unwrap_or(0);
    let starts = |part: usize| small(starts(&inputs.batch, part));
    (inputs.scalars, inputs.host) = match kind {
        OpKind::KV_GATHER => (vec![most(1)], vec![starts(1)]),
        OpKind::VARLEN_ATTENTION => (vec![most(0), most(1)], vec![starts(0), starts(1)]),
        _ => {
            let decodes = inputs.batch.iter().take_while(|&&[q, _]| q == 1).count() as u64;
            let kv_len = small(inputs.batch.iter().map(|&[_, kv]| kv as i64).collect());
            (vec![most(0), most(1), decodes], vec![starts(0), kv_len])
        }
    };
}
