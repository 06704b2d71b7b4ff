//! A smaller op that gives some of the outputs of a large one: what the oracle computes.

use halyard_abi::{
    Attr, AttrKey,
    scheme::{self, FP8_BLOCK},
};
use halyard_core::{
    OpBuf, OpKind, TensorSpec, WeightDesc,
    attrs::{Embedding, MoeExperts},
};

use crate::{
    array::Array,
    generate::{Inputs, Slot},
    opbuf::{self, attrs_of},
    rng::Rng,
    weight::WeightSource,
};

/// The smaller op.
pub(super) struct Sample {
    pub(super) op: OpBuf,
    pub(super) weights: Vec<WeightSource>,
    pub(super) inputs: Inputs,
    /// The columns of the large op's outputs that it gives; `None`: all.
    pub(super) columns: Option<Vec<usize>>,
}

/// Output columns of a linear layer that are checked.
const COLUMNS: usize = 64;

/// Reduces an op with weights to what a few outputs need; others stay as they are.
pub(super) fn reduce(
    op: &OpBuf,
    weights: &[WeightSource],
    inputs: &Inputs,
    rng: &mut Rng,
) -> Result<Sample, String> {
    match (op.kind(), weights) {
        (OpKind::LINEAR, [w]) if w.desc().n as usize > COLUMNS => linear(op, w, inputs, rng),
        (OpKind::EMBEDDING, [w]) if !in_blocks(w.desc()) => embedding(op, w, inputs),
        (OpKind::MOE_EXPERTS, [w0, w1]) => experts(op, [w0, w1], inputs),
        _ => Ok(Sample {
            op: op.clone(),
            weights: weights.to_vec(),
            inputs: inputs.clone(),
            columns: None,
        }),
    }
}

/// Some rows of the weight.
fn linear(op: &OpBuf, w: &WeightSource, inputs: &Inputs, rng: &mut Rng) -> Result<Sample, String> {
    const BIAS: usize = 1;
    const Y: usize = 2;
    let n = w.desc().n as usize;
    let columns = if in_blocks(w.desc()) { blocks(n, rng) } else { scattered(n, rng) };

    let mut inputs = inputs.clone();
    let mut tensors = op.tensors().to_vec();
    for slot in [BIAS, Y] {
        if let Some(Slot::Array(array)) = inputs.slots.get_mut(slot) {
            *array = array.columns(&columns);
            narrow_last(&mut tensors[slot], columns.len());
        }
    }
    let weight = w.pick(1, columns.iter().map(|&c| (0, c as u64)).collect());
    let op = opbuf::with_shapes(op, tensors, vec![*weight.desc()])?;
    Ok(Sample { op, weights: vec![weight], inputs, columns: Some(columns) })
}

/// Whether neighbouring rows share a scale.
fn in_blocks(w: &WeightDesc<'_>) -> bool {
    scheme::parts(w).is_ok_and(|parts| scheme::in_blocks(&parts))
}

/// Both ends, both sides of tile borders, and random ones.
fn scattered(n: usize, rng: &mut Rng) -> Vec<usize> {
    let mut columns: Vec<usize> = [1, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256]
        .into_iter()
        .flat_map(|edge| [edge - 1, n.saturating_sub(edge)])
        .filter(|&c| c < n)
        .collect();
    columns.extend((0..COLUMNS).map(|_| rng.below(n)));
    columns.truncate(COLUMNS);
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// Rows that share a scale stay together: the first block, the last, which may be shorter, and a random one.
fn blocks(n: usize, rng: &mut Rng) -> Vec<usize> {
    let size = FP8_BLOCK as usize;
    let count = n.div_ceil(size);
    let mut blocks = vec![0, rng.below(count), count - 1];
    blocks.sort_unstable();
    blocks.dedup();
    blocks.into_iter().flat_map(|b| b * size..((b + 1) * size).min(n)).collect()
}

fn narrow_last(spec: &mut TensorSpec, len: usize) {
    let last = spec.dims().len() - 1;
    spec.dims[last] = len as i64;
}

/// The op with one integer attribute set to 0.
fn without(op: &OpBuf, key: AttrKey, weights: Vec<WeightDesc<'static>>) -> Result<OpBuf, String> {
    let plain = |a: &Attr| if a.key == key { Attr { bits: 0, ..*a } } else { *a };
    let attrs: Vec<Attr> = op.attrs().iter().map(plain).collect();
    opbuf::build(op.kind(), &attrs, op.tensors().to_vec(), weights)
}

/// Numbers the local ids that occur from 0 on; all others become -1. At least one is kept.
fn renumber(ids: &Array, start: i64, count: u64) -> (Array, Vec<u64>) {
    let local = |i: usize| {
        let row = ids.int(i).checked_sub(start).and_then(|r| u64::try_from(r).ok());
        row.filter(|&r| r < count && ids.int(i) >= 0)
    };
    let mut used: Vec<u64> = (0..ids.len()).filter_map(local).collect();
    used.push(0);
    used.sort_unstable();
    used.dedup();
    let place = |i: usize| local(i).and_then(|row| used.binary_search(&row).ok());
    let new: Vec<i64> = (0..ids.len()).map(|i| place(i).map_or(-1, |p| p as i64)).collect();
    (Array::ints(ids.dtype(), ids.dims(), &new), used)
}

/// A table of the rows that are looked up.
fn embedding(op: &OpBuf, w: &WeightSource, inputs: &Inputs) -> Result<Sample, String> {
    let ids = inputs.named(op, "ids").ok_or("no ids")?;
    let start = attrs_of::<Embedding>(op).vocab_start;
    let (ids, rows) = renumber(ids, start, w.desc().n);
    let weight = w.pick(1, rows.into_iter().map(|row| (0, row)).collect());
    let mut inputs = inputs.clone();
    inputs.slots[0] = Slot::Array(ids);
    let op = without(op, AttrKey::VOCAB_START, vec![*weight.desc()])?;
    Ok(Sample { op, weights: vec![weight], inputs, columns: None })
}

/// The experts that tokens went to.
fn experts(op: &OpBuf, w: [&WeightSource; 2], inputs: &Inputs) -> Result<Sample, String> {
    let ids = inputs.named(op, "ids").ok_or("no ids")?;
    let start = attrs_of::<MoeExperts>(op).expert_start;
    let (ids, used) = renumber(ids, start, u64::from(w[0].desc().groups));
    let groups = u32::try_from(used.len()).map_err(|e| e.to_string())?;
    let part = |w: &WeightSource| {
        let rows = |&e: &u64| (0..w.desc().n).map(move |row| (e as u32, row));
        w.pick(groups, used.iter().flat_map(rows).collect())
    };
    let weights: Vec<WeightSource> = w.into_iter().map(part).collect();
    let mut inputs = inputs.clone();
    inputs.slots[1] = Slot::Array(ids);
    let descs = weights.iter().map(|w| *w.desc()).collect();
    let op = without(op, AttrKey::EXPERT_START, descs)?;
    Ok(Sample { op, weights, inputs, columns: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_core::DType;

    #[test]
    fn blocks_stay_whole_and_a_shorter_one_comes_last() {
        for n in [1, 128, 129, 1000] {
            let columns = blocks(n, &mut Rng::new(1, "blocks"));
            assert!(columns.windows(2).all(|w| w[0] < w[1]) && columns.contains(&(n - 1)));
            for (at, &column) in columns.iter().enumerate() {
                assert_eq!(at % 128, column % 128, "{n}");
            }
        }
    }

    #[test]
    fn ids_are_numbered_by_what_occurs() {
        let ids = Array::ints(DType::I32, &[6], &[107, 105, -1, 110, 104, 107]);
        let (new, used) = renumber(&ids, 105, 5);
        assert_eq!(used, [0, 2]);
        let new: Vec<i64> = (0..6).map(|i| new.int(i)).collect();
        assert_eq!(new, [1, 0, -1, -1, -1, 1]);
    }
}
