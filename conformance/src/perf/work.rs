//! What a launch has to move and to compute: the one place that counts.

use std::collections::BTreeSet;

use halyard_abi::scheme;
use halyard_core::{
    DType, OpBuf, OpKind, Sym, WeightDesc,
    attrs::{Linear, MoeExperts},
    ops::{Access, OpSchema},
};

use crate::{
    array::Array,
    generate::{Inputs, Slot},
    opbuf::{Attention, attention, attrs_of},
    symbols::Symbols,
};

/// Least traffic and arithmetic of a launch, however a kernel does it.
///
/// Bytes are what must cross the device's memory at least once:
/// - weights at their stored size (codes, scales, zero points, as `halyard_abi::scheme` describes them), once; of experts those that a
///   token goes to, of an embedding table or of gathered rows the rows that are fetched;
/// - every other tensor once, or twice where it is read and written;
/// - of a cache, the keys and values that some query of the sequence sees, or those that are written, in the cache's dtype.
///
/// Operations are multiplications and additions, each counted, of products of matrices: in linear layers and experts 2 a weight and
/// token, in attention 2 a query head, pair of query and visible key, and element of key and value. Everything else (norms,
/// activations, softmax, sampling, copies) counts as none: memory bounds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) bytes: u64,
    pub(super) flops: u64,
}

impl Work {
    /// Of one launch.
    pub(super) fn of(op: &OpBuf, symbols: &Symbols, inputs: &Inputs) -> Self {
        let bytes = weights(op, symbols, inputs) + tensors(op, inputs) + cache(op, symbols, inputs);
        Self { bytes, flops: flops(op, symbols, inputs) }
    }
}

fn product(factors: &[usize]) -> u64 {
    factors.iter().map(|&f| f as u64).product()
}

/// Stored bytes of one group of a weight.
fn stored(weight: &WeightDesc<'_>) -> u64 {
    let parts = scheme::parts(weight).unwrap_or_default();
    parts.iter().filter_map(|part| part.bytes(weight.n)).sum()
}

fn weights(op: &OpBuf, symbols: &Symbols, inputs: &Inputs) -> u64 {
    let all = |w: &WeightDesc<'_>| stored(w) * u64::from(w.groups);
    match op.kind() {
        OpKind::EMBEDDING => {
            let row = |w: &WeightDesc<'_>| stored(w) / w.n.max(1);
            symbols.get(Sym::T) as u64 * op.weights().iter().map(row).sum::<u64>()
        }
        OpKind::MOE_EXPERTS => {
            let met = chosen(op, symbols, inputs).into_iter().collect::<BTreeSet<_>>().len();
            met as u64 * op.weights().iter().map(stored).sum::<u64>()
        }
        _ => op.weights().iter().map(all).sum(),
    }
}

/// The expert of every pair of a token and one of its choices that has one here.
fn chosen(op: &OpBuf, symbols: &Symbols, inputs: &Inputs) -> Vec<i64> {
    let start = attrs_of::<MoeExperts>(op).expert_start;
    let here = start..start + symbols.get(Sym::E) as i64;
    let ids = inputs.named(op, "ids");
    let ids = ids.map_or_else(Vec::new, |ids| (0..ids.len()).map(|i| ids.int(i)).collect());
    ids.into_iter().filter(|id| here.contains(id)).collect()
}

fn tensors(op: &OpBuf, inputs: &Inputs) -> u64 {
    let slots = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
    let size = |array: &Array| array.bytes().len() as u64;
    // A linear layer reads what it adds to, if it adds.
    let reads_outputs = op.kind() != OpKind::LINEAR || attrs_of::<Linear>(op).accumulate;
    let one = |(slot, data): (&halyard_abi::ops::schema::Slot, &Slot)| {
        let times = if slot.access == Access::InOut && reads_outputs { 2 } else { 1 };
        data.array().map_or(0, |array| times * size(array))
    };
    let all: u64 = slots.iter().zip(&inputs.slots).map(one).sum();
    match op.kind() {
        // Of what rows are gathered from, only as much as is written.
        OpKind::GATHER_ROWS => {
            let of = |name| inputs.named(op, name).map_or(0, size);
            all - of("x") + of("x").min(of("y"))
        }
        _ => all,
    }
}

/// Pairs of a query and a key that it sees, and keys that some query sees, over all sequences.
fn seen(batch: &[[usize; 2]], causal: bool, window: i64) -> (u64, u64) {
    let (mut pairs, mut keys) = (0, 0);
    for &[q, kv] in batch {
        let most = usize::try_from(window).map_or(kv, |w| w.saturating_add(1));
        let visible = |i: usize| match causal {
            true => (kv + i + 1).saturating_sub(q).min(most),
            false => kv,
        };
        pairs += (0..q).map(|i| visible(i) as u64).sum::<u64>();
        keys += match (q, causal) {
            (0, _) => 0,
            (_, true) => kv.min(most.saturating_add(q - 1)) as u64,
            (_, false) => kv as u64,
        };
    }
    (pairs, keys)
}

/// What attention's attributes let be seen.
fn visible(op: &OpBuf, inputs: &Inputs) -> (u64, u64) {
    let Attention { causal, window, .. } = attention(op);
    seen(&inputs.batch, causal, window)
}

fn cache(op: &OpBuf, symbols: &Symbols, inputs: &Inputs) -> u64 {
    let Some(cache) = &inputs.cache else { return 0 };
    let token = product(&[cache.heads, cache.dim_k + cache.dim_v]);
    let token = token * bytes_of(cache.cache_dtype);
    match op.kind() {
        OpKind::PAGED_ATTENTION | OpKind::MLA_ATTENTION => visible(op, inputs).1 * token,
        OpKind::KV_GATHER => inputs.batch.iter().map(|s| s[1] as u64).sum::<u64>() * token,
        OpKind::KV_COPY_BLOCKS => 2 * product(&[symbols.get(Sym::P), cache.block]) * token,
        _ => symbols.get(Sym::T) as u64 * token,
    }
}

fn bytes_of(dtype: DType) -> u64 {
    dtype.bytes(1).unwrap_or(0)
}

fn flops(op: &OpBuf, symbols: &Symbols, inputs: &Inputs) -> u64 {
    let n = |sym: Sym| symbols.get(sym);
    let weights: u64 = op.weights().iter().map(|w| w.n * w.k).sum();
    match op.kind() {
        OpKind::LINEAR | OpKind::LINEAR_ACT_MUL => 2 * n(Sym::T) as u64 * weights,
        OpKind::BATCHED_LINEAR => 2 * product(&[n(Sym::T), n(Sym::G)]) * weights,
        OpKind::GROUPED_LINEAR => 2 * n(Sym::P) as u64 * weights,
        OpKind::MOE_EXPERTS => 2 * chosen(op, symbols, inputs).len() as u64 * weights,
        OpKind::PAGED_ATTENTION | OpKind::VARLEN_ATTENTION => {
            2 * visible(op, inputs).0 * product(&[n(Sym::Hq), n(Sym::Dk) + n(Sym::Dv)])
        }
        // A latent is key and value.
        OpKind::MLA_ATTENTION => {
            2 * visible(op, inputs).0 * product(&[n(Sym::Hq), 2 * n(Sym::C) + n(Sym::R)])
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog, generate::inputs, rng::Rng};

    fn work(entry: &str) -> Work {
        let text = format!("[[case]]\nname = \"x\"\nwhy = \"counts\"\n{entry}");
        let cases = catalog::parse("counts.toml", &text).unwrap();
        let [case] = &cases[..] else { panic!("{} cases", cases.len()) };
        let mut rng = Rng::new(0, "counts");
        let inputs = inputs(&case.op, &case.symbols, &case.recipe, &mut rng).unwrap();
        Work::of(&case.op, &case.symbols, &inputs)
    }

    #[test]
    fn linear_layers_read_each_weight_once_at_its_stored_size() {
        let dense = "op = \"linear\"\ndtype = \"bf16\"\nweights = \"same\"\ndims = { T = 4, N = 32, K = 256 }";
        let activations = 2 * 4 * (32 + 256);
        assert_eq!(
            work(dense),
            Work { bytes: 2 * 32 * 256 + activations, flops: 2 * 4 * 32 * 256 }
        );
        let adding = format!("{dense}\nattrs = {{ accumulate = true }}");
        assert_eq!(work(&adding).bytes, work(dense).bytes + 2 * 4 * 32);
        // 34 bytes a block of 32; half a byte a code and a scale of f16 a group of 128; a byte a code and a scale of f32 a block.
        let q8 = dense.replace("same", "q8_0");
        assert_eq!(work(&q8).bytes, 32 * 256 / 32 * 34 + activations);
        let int4 = dense.replace("same", "int4_group-g128-f16");
        assert_eq!(work(&int4).bytes, 32 * 256 / 2 + 32 * 2 * 2 + activations);
        let fp8 = dense.replace("same", "fp8_block");
        assert_eq!(work(&fp8).bytes, 32 * 256 + 2 * 4 + activations);
    }

    #[test]
    fn attention_reads_the_keys_that_are_seen() {
        let entry = |batch: &str, attrs: &str| {
            work(&format!(
                "op = \"paged_attention\"\ndtype = \"bf16\"\nbatch = [{batch}]\nattrs = {{ {attrs} }}\n\
                 dims = {{ Hq = 4, Hk = 2, Dk = 64, Dv = 32, Block = 16 }}"
            ))
        };
        let token = 2 * 2 * (64 + 32);
        let pair = 2 * 4 * (64 + 32);
        let decode = entry("[[1, 100], [1, 1]]", "scale = 1.0");
        let small = 2 * 2 * 4 * (64 + 32) + 4 * (2 * 8 + 3 + 2);
        assert_eq!(decode, Work { bytes: 101 * token + small, flops: 101 * pair });
        let windowed = entry("[[1, 100], [1, 1]]", "scale = 1.0, window = 9");
        assert_eq!(windowed, Work { bytes: 11 * token + small, flops: 11 * pair });
        // Three new tokens after two: they see three, four and five.
        assert_eq!(entry("[[3, 5]]", "scale = 1.0").flops, 12 * pair);
        assert_eq!(entry("[[3, 5]]", "scale = 1.0, causal = false").flops, 15 * pair);
    }

    #[test]
    fn latent_attention_uses_a_latent_as_key_and_value() {
        let mla = work(
            "op = \"mla_attention\"\ndtype = \"bf16\"\nbatch = [[[1, 64]]]\ndims = { Hq = 16, C = 512, R = 64, Block = 64 }",
        );
        assert_eq!(mla.flops, 2 * 16 * 64 * (512 + 64 + 512));
        let queries = 2 * 16 * (512 + 64 + 512);
        assert_eq!(mla.bytes, 64 * 2 * (512 + 64) + queries + 4 * (2 + 2 + 1));
    }

    #[test]
    fn experts_without_tokens_are_not_read() {
        let entry = |routing: &str| {
            work(&format!(
                "op = \"moe_experts\"\ndtype = \"f32\"\nweights = \"same\"\nrouting = \"{routing}\"\n\
                 dims = {{ T = 5, Top = 2, E = 8, H = 32, I = 16 }}"
            ))
        };
        let expert = 3 * 32 * 16;
        let small = 4 * (2 * 5 * 32 + 2 * 5 * 2);
        // The first choice of each token goes to the last expert, the second to none.
        assert_eq!(entry("all_to_one"), Work { bytes: 4 * expert + small, flops: 2 * 5 * expert });
        assert_eq!(entry("random").flops, 2 * 10 * expert);
        assert_eq!(entry("none"), Work { bytes: small, flops: 0 });
    }

    #[test]
    fn the_rest_moves_its_tensors() {
        let copy = work("op = \"copy\"\ndtype = \"f32\"\nshape = [[10, 100]]");
        assert_eq!(copy, Work { bytes: 8000, flops: 0 });
        let write = work(
            "op = \"kv_write\"\ndtype = \"bf16\"\ndims = { T = 3, Hk = 2, Dk = 16, Dv = 8, Block = 16 }",
        );
        assert_eq!(write, Work { bytes: 2 * 3 * 2 * 2 * 24 + 3 * 8, flops: 0 });
        let rows = work("op = \"gather_rows\"\ndtype = \"f32\"\ndims = { T = 9, B = 2, H = 10 }");
        assert_eq!(rows.bytes, 2 * 4 * 20 + 8);
    }
}
