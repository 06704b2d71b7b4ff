//! Some rows of a launch as a launch of their own: what batch invariance is checked with.

use halyard_core::{OpBuf, OpKind, Sym, ops::OpSchema};

use super::{Inputs, Slot, lengths};
use crate::{array::Array, symbols::row_symbol};

/// A smaller launch and the rows of the whole one that it computes.
pub(crate) struct Part {
    pub(crate) inputs: Inputs,
    pub(crate) start: usize,
    pub(crate) len: usize,
}

/// Parts that must give the same bits as the whole; none for ops without independent rows.
pub(crate) fn parts(op: &OpBuf, inputs: &Inputs) -> Vec<Part> {
    match op.kind() {
        OpKind::KV_WRITE
        | OpKind::KV_COPY_BLOCKS
        | OpKind::MLA_WRITE
        | OpKind::KV_GATHER
        | OpKind::MOE_PERMUTE => Vec::new(),
        OpKind::PAGED_ATTENTION | OpKind::MLA_ATTENTION | OpKind::VARLEN_ATTENTION => {
            attention_parts(op, inputs)
        }
        OpKind::GROUPED_LINEAR => sorted_rows(op, inputs),
        _ => row_parts(op, inputs),
    }
}

fn row_parts(op: &OpBuf, inputs: &Inputs) -> Vec<Part> {
    let Some(sym) = row_symbol(op) else { return Vec::new() };
    // The rows of the first slot; some read any row of their first slot and have their own rows in the second.
    let (first, sym) = match op.kind() {
        OpKind::GATHER_ROWS => (1, Sym::B),
        OpKind::MOE_UNPERMUTE => (1, Sym::T),
        _ => (0, sym),
    };
    let dims = inputs.slots.get(first).and_then(Slot::array).map_or(&[][..], Array::dims);
    let rows = dims.first().copied().unwrap_or(0);
    let dynamic = op.tensors().get(first).is_some_and(|t| t.dims().first() == Some(&-1));
    if rows < 2 || !dynamic {
        return Vec::new();
    }
    let mut ranges = vec![(0, 1), (rows - 1, 1), (rows / 2, rows - rows / 2)];
    ranges.dedup();
    ranges.into_iter().map(|(start, len)| rows_alone(op, inputs, sym, (start, len))).collect()
}

fn rows_alone(op: &OpBuf, inputs: &Inputs, sym: Sym, (start, len): (usize, usize)) -> Part {
    let mut part = inputs.clone();
    let slots = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
    for (slot, data) in slots.iter().zip(&mut part.slots) {
        let Slot::Array(array) = data else { continue };
        let first = slot.axes(array.dims().len()).next();
        if first.and_then(|d| d.sym()) == Some(sym) {
            *array = array.narrow(start, len);
        }
    }
    Part { inputs: part, start, len }
}

/// The first and the last sorted row alone, each the only one of its expert.
fn sorted_rows(op: &OpBuf, inputs: &Inputs) -> Vec<Part> {
    let Some(offsets) = inputs.named(op, "offsets").cloned() else { return Vec::new() };
    let rows = usize::try_from(offsets.int(offsets.len() - 1)).unwrap_or(0);
    let mut parts = Vec::new();
    for row in [0, rows.saturating_sub(1)].into_iter().take(rows) {
        let mut part = rows_alone(op, inputs, Sym::P, (row, 1));
        let ends: Vec<i64> =
            (0..offsets.len()).map(|e| i64::from(offsets.int(e) > row as i64)).collect();
        part.inputs.slots[1] = Slot::Array(Array::ints(offsets.dtype(), &[ends.len()], &ends));
        parts.push(part);
    }
    parts
}

/// Each sequence alone, and the last token of each prefill alone, over the same cache.
fn attention_parts(op: &OpBuf, inputs: &Inputs) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut start, mut first_key) = (0, 0);
    for (b, &[q, kv]) in inputs.batch.iter().enumerate() {
        if q > 0 && inputs.batch.len() > 1 {
            parts.push(sequence_alone(op, inputs, (b, first_key), [start, q, kv]));
        }
        if q > 1 {
            parts.push(sequence_alone(op, inputs, (b, first_key), [start + q - 1, 1, kv]));
            // The prefill in two chunks: the second one.
            parts.push(sequence_alone(op, inputs, (b, first_key), [start + q / 2, q - q / 2, kv]));
        }
        start += q;
        first_key += kv;
    }
    parts
}

fn sequence_alone(
    op: &OpBuf,
    inputs: &Inputs,
    (b, first_key): (usize, usize),
    [start, q, kv]: [usize; 3],
) -> Part {
    let mut part = inputs.clone();
    part.batch = vec![[q, kv]];
    lengths(op.kind(), &mut part);
    let slots = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
    for (slot, data) in slots.iter().zip(&mut part.slots) {
        let Slot::Array(array) = data else { continue };
        match slot.name {
            "q" | "qc" | "qr" | "o" | "lse" => *array = array.narrow(start, q),
            "k" | "v" => *array = array.narrow(first_key, kv),
            "block_table" => *array = array.narrow(b, 1),
            "kv_len" => *array = Array::ints(array.dtype(), &[1], &[kv as i64]),
            "cu_q" => *array = Array::ints(array.dtype(), &[2], &[0, q as i64]),
            "cu_k" => *array = Array::ints(array.dtype(), &[2], &[0, kv as i64]),
            _ => {}
        }
    }
    Part { inputs: part, start, len: q }
}
