//! Integer inputs: indices, positions, slots, ids, counts, masks.

use halyard_core::{DType, OpBuf, OpKind, Sym, attrs::Embedding, ops::OpSchema};

use super::{Inputs, Recipe, Slot, moe};
use crate::{array::Array, opbuf::attrs_of, rng::Rng, symbols::Symbols};

/// The values of an integer slot.
pub(super) fn array(
    op: &OpBuf,
    name: &str,
    (dtype, dims): (DType, &[usize]),
    (symbols, recipe): (&Symbols, &Recipe),
    rng: &mut Rng,
) -> Result<Array, String> {
    let count: usize = dims.iter().product();
    let width = dims.last().copied().unwrap_or(0);
    let mut each = |f: &mut dyn FnMut(usize, &mut Rng) -> i64| -> Vec<i64> {
        (0..count).map(|i| f(i, rng)).collect()
    };
    let n = |sym: Sym| symbols.get(sym);
    let values = match (op.kind(), name) {
        (OpKind::COPY, _) => each(&mut |_, rng| rng.next().cast_signed()),
        (OpKind::GATHER_ROWS, "idx") => each(&mut |i, rng| index(i, n(Sym::T), rng)),
        (OpKind::EMBEDDING, "ids") => {
            let start = attrs_of::<Embedding>(op).vocab_start;
            each(&mut |i, rng| token(i, start, n(Sym::V), rng))
        }
        (OpKind::ROPE | OpKind::QKV_POST, "pos") => each(&mut |i, rng| index(i, n(Sym::P), rng)),
        (OpKind::KV_WRITE | OpKind::MLA_WRITE | OpKind::QKV_POST, "slots") => {
            let slots = rng.distinct(count, n(Sym::Blocks) * n(Sym::Block));
            // The third token, and one in eight, is padding.
            let keep = |i: usize, rng: &mut Rng| i != 2 && rng.below(8) > 0;
            let skip = |i: usize, rng: &mut Rng| if keep(i, rng) { slots[i] as i64 } else { -1 };
            (0..count).map(|i| skip(i, rng)).collect()
        }
        (OpKind::KV_COPY_BLOCKS, "pairs") => pairs(n(Sym::P), n(Sym::Blocks), rng),
        (OpKind::MOE_EXPERTS | OpKind::MOE_PERMUTE, "ids") => {
            moe::route(op, recipe.routing, dims, n(Sym::E), rng)
        }
        (OpKind::GROUPED_LINEAR, "offsets") => {
            moe::offsets(recipe.routing, n(Sym::E), n(Sym::P), rng)
        }
        (OpKind::MOE_UNPERMUTE, "inverse") => moe::inverse(count, n(Sym::P), rng),
        (OpKind::LOGPROBS, "ids") => each(&mut |i, rng| index(i, n(Sym::V), rng)),
        (OpKind::LOGITS_PROCESS, "mask") => {
            each(&mut |_, rng| (rng.next() | rng.next()).cast_signed())
        }
        (OpKind::LOGITS_PROCESS, "ids" | "bias_ids") => {
            let rows = count.checked_div(width).unwrap_or(0);
            (0..rows).flat_map(|_| listed(width, n(Sym::V), rng)).collect()
        }
        (OpKind::LOGITS_PROCESS, "count_all") => each(&mut |_, rng| rng.below(4) as i64),
        // Settled once `count_all` is known.
        (OpKind::LOGITS_PROCESS, "count_out") => each(&mut |_, rng| rng.below(4) as i64),
        (OpKind::SAMPLE, "top_k") => {
            let most = n(Sym::V);
            each(&mut |_, rng| [0, 0, 1, 5, 40, most, most + 7][rng.below(7)] as i64)
        }
        (OpKind::SAMPLE, "seed" | "offset") => each(&mut |i, rng| {
            // Small, as servers count them, and with all 64 bits.
            if i % 2 == 0 { i as i64 } else { rng.next().cast_signed() }
        }),
        (kind, name) => return Err(format!("{kind}: no inputs are known for slot {name}")),
    };
    Ok(Array::ints(dtype, dims, &values))
}

/// A row number below `n`: the last and the first come early, the third and one in eight is padding.
fn index(i: usize, n: usize, rng: &mut Rng) -> i64 {
    match i {
        0 => n as i64 - 1,
        1 => 0,
        2 => -1,
        _ if n == 0 || rng.below(8) == 0 => -1,
        _ => rng.below(n) as i64,
    }
}

/// As [`index`], with ids just below and just above the shard.
fn token(i: usize, start: i64, n: usize, rng: &mut Rng) -> i64 {
    match i {
        3 => start + n as i64,
        4 => start - 1,
        _ => match index(i, n, rng) {
            -1 => -1,
            row => start + row,
        },
    }
}

/// Copies between blocks: none written twice, none both source and destination; some are skipped.
fn pairs(count: usize, blocks: usize, rng: &mut Rng) -> Vec<i64> {
    let order = rng.distinct(blocks, blocks);
    let (sources, targets) = order.split_at(blocks / 2);
    let pair = |i: usize| match targets.get(i) {
        Some(_) if i == 2 && !sources.is_empty() => [sources[i % sources.len()] as i64, -1],
        Some(&to) if i != 1 && !sources.is_empty() => {
            [sources[i % sources.len()] as i64, to as i64]
        }
        Some(&to) => [-1, to as i64],
        None => [0, -1],
    };
    (0..count).flat_map(pair).collect()
}

/// Different ids of a row, some of them padding.
fn listed(width: usize, vocab: usize, rng: &mut Rng) -> Vec<i64> {
    let ids = rng.distinct(width, vocab);
    let one = |i: usize, rng: &mut Rng| match ids.get(i) {
        Some(&id) if i % 5 != 3 && rng.below(8) > 0 => id as i64,
        _ => -1,
    };
    (0..width).map(|i| one(i, rng)).collect()
}

/// Makes slots agree that were filled on their own: an output never occurred more often than altogether.
pub(super) fn settle(op: &OpBuf, inputs: &mut Inputs) {
    if op.kind() != OpKind::LOGITS_PROCESS {
        return;
    }
    let Some(schema) = OpSchema::of(op.kind()) else { return };
    let at = |name| schema.slot(name).unwrap_or(usize::MAX);
    let Some(all) = inputs.named(op, "count_all").cloned() else { return };
    if let Some(Slot::Array(out)) = inputs.slots.get_mut(at("count_out")) {
        for i in 0..out.len() {
            out.set_int(i, out.int(i).min(all.int(i)));
        }
    }
}
