//! Every op of this opset: slots in order, shapes, and the formula.
//!
//! `!` marks a written slot, `?` an optional one. Symbols are those of [`Sym`](super::Sym).

use super::schema::{
    Dim::{Const, Is, PlusOne, Twice},
    OpSchema,
    Shape::{Dims, Same, Trailing},
    Sym::{B, Block, Blocks, Dk, Dv, E, H, Hk, Hq, I, K, M, Mb, N, P, R, T, Top, V, Words},
    Types::{Any, Cache, Compute, Float, Is as Ty},
    WeightSlot, inout, input, output,
};
use crate::ids::{DType, OpKind};

const NO_ALIAS: &[(usize, usize)] = &[];

const fn op(
    kind: OpKind,
    slots: &'static [super::schema::Slot],
    weights: &'static [WeightSlot],
) -> OpSchema {
    OpSchema { kind, revision: 1, slots, weights, scalars: &[], host: &[], may_alias: NO_ALIAS }
}

/// The catalogue, in order of id.
pub static CATALOGUE: &[OpSchema] = &[
    COPY,
    ADD,
    MUL,
    GATHER_ROWS,
    EMBEDDING,
    RMS_NORM,
    ROPE,
    ACT_MUL,
    LINEAR,
    KV_WRITE,
    PAGED_ATTENTION,
    KV_COPY_BLOCKS,
    MOE_ROUTER,
    MOE_EXPERTS,
    ARGMAX,
    TOPK,
    LOGPROBS,
    LOGITS_PROCESS,
    SAMPLE,
];

/// `y = x`, any dtype pair, any strides. Float to integer rounds half to even and saturates; NaN becomes 0.
pub const COPY: OpSchema = op(
    OpKind::COPY,
    &[input("x", Any, Same).any_layout(), output("y", Any, Same).any_layout()],
    &[],
);

/// `y = a + ALPHA b`; `b` broadcasts over missing leading dims. `y` may be `a`.
pub const ADD: OpSchema = OpSchema {
    may_alias: &[(2, 0)],
    ..op(
        OpKind::ADD,
        &[input("a", Compute, Same), input("b", Compute, Trailing), output("y", Compute, Same)],
        &[],
    )
};

/// `y = a b`; `b` broadcasts over missing leading dims. `y` may be `a`.
pub const MUL: OpSchema = OpSchema { kind: OpKind::MUL, ..ADD };

/// `y[b] = x[idx[b]]`; a negative index gives a row of zeros. An index `>= T` is invalid.
pub const GATHER_ROWS: OpSchema = op(
    OpKind::GATHER_ROWS,
    &[
        input("x", Compute, Dims(&[Is(T), Is(H)])),
        input("idx", Ty(DType::I32), Dims(&[Is(B)])).packed(),
        output("y", Compute, Dims(&[Is(B), Is(H)])),
    ],
    &[],
);

/// `y[t] = SCALE W[ids[t] - VOCAB_START]` if that row exists, else zeros.
pub const EMBEDDING: OpSchema = op(
    OpKind::EMBEDDING,
    &[
        input("ids", Ty(DType::I32), Dims(&[Is(T)])).packed(),
        output("y", Float, Dims(&[Is(T), Is(H)])),
    ],
    &[WeightSlot { name: "w", groups: None, n: Is(V), k: Is(H) }],
);

/// With a residual `r`: `s = round(x + r)`, `r := s`; without: `s = x`. `y = s rsqrt(mean(s²) + EPS) (gamma + PLUS_ONE)`, over
/// the last dim. `y` may be `x`.
pub const RMS_NORM: OpSchema = OpSchema {
    may_alias: &[(2, 0)],
    ..op(
        OpKind::RMS_NORM,
        &[
            input("x", Compute, Same),
            input("gamma", Float, Dims(&[Is(H)])),
            output("y", Compute, Same),
            inout("r", Compute, Same).optional(),
        ],
        &[],
    )
};

/// In place on dims `OFFSET..OFFSET + R` of `q` and `k`; `table[p]` holds `cos` in `0..R/2` and `sin` in `R/2..R`.
/// STYLE 0 pairs `(i, i + R/2)`, 1 pairs `(2i, 2i + 1)`: `(a, b) -> (a cos_i - b sin_i, b cos_i + a sin_i)`. Rows with a negative
/// position are left as they are; a position `>= P` is invalid.
pub const ROPE: OpSchema = op(
    OpKind::ROPE,
    &[
        inout("q", Compute, Dims(&[Is(T), Is(Hq), Is(Dk)])),
        inout("k", Compute, Dims(&[Is(T), Is(Hk), Is(Dk)])).optional(),
        input("pos", Ty(DType::I32), Dims(&[Is(T)])).packed(),
        input("table", Ty(DType::F32), Dims(&[Is(P), Is(R)])),
    ],
    &[],
);

/// `y = act(min(g, L)) clamp(u, -L, L)` where `gu` holds `g` then `u` and `L` is LIMIT (0: no clamp).
pub const ACT_MUL: OpSchema = op(
    OpKind::ACT_MUL,
    &[input("gu", Compute, Dims(&[Is(T), Twice(I)])), output("y", Compute, Dims(&[Is(T), Is(I)]))],
    &[],
);

/// `y = x Wᵀ + bias (+ y if ACCUMULATE)`. `y` may be f32 whatever `x` is (router, logits).
pub const LINEAR: OpSchema = op(
    OpKind::LINEAR,
    &[
        input("x", Compute, Dims(&[Is(T), Is(K)])),
        input("bias", Float, Dims(&[Is(N)])).optional(),
        inout("y", Float, Dims(&[Is(T), Is(N)])),
    ],
    &[WeightSlot { name: "w", groups: None, n: Is(N), k: Is(K) }],
);

/// Token `t`'s key and value go to `slots[t] = block * BLOCK + offset`; a negative slot is skipped. An f8e4m3 or i8 cache stores
/// `x / scale`.
pub const KV_WRITE: OpSchema = op(
    OpKind::KV_WRITE,
    &[
        input("k", Compute, Dims(&[Is(T), Is(Hk), Is(Dk)])),
        input("v", Compute, Dims(&[Is(T), Is(Hk), Is(Dv)])),
        input("slots", Ty(DType::I64), Dims(&[Is(T)])).packed(),
        inout("k_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dk)])).opaque(),
        inout("v_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dv)])).opaque().optional(),
        input("k_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
        input("v_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
    ],
    &[],
);

/// Attention of each new token over its sequence's cached keys and values; one call mixes prefill and decode.
///
/// Query `i` of sequence `b` is at `p = kv_len[b] - q_len[b] + i`, `q_len[b] = cu_q[b + 1] - cu_q[b]`, and sees
/// `j` in `max(0, p - WINDOW) ..= p` (not CAUSAL: every `j < kv_len[b]`). `z_j = SCALE q·k_j` with KV head `h / (Hq / Hk)`; with
/// SOFTCAP `c`: `z = c tanh(z / c)`; `a = softmax(z)`, a sink's logit added to the denominator; `o = Σ a_j v_j`;
/// `lse = ln Σ e^z` (sink included). An empty range gives `o = 0`, `lse = -inf`. Tokens at or after `cu_q[B]` are padding:
/// `o = 0`, `lse = -inf`.
///
/// Scalars: largest q_len, largest kv_len, number of leading sequences with q_len 1. Host mirrors: `cu_q`, `kv_len`.
pub const PAGED_ATTENTION: OpSchema = OpSchema {
    scalars: &["max_q", "max_kv", "num_decodes"],
    host: &["cu_q", "kv_len"],
    ..op(
        OpKind::PAGED_ATTENTION,
        &[
            input("q", Compute, Dims(&[Is(T), Is(Hq), Is(Dk)])),
            input("k_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dk)])).opaque(),
            input("v_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dv)]))
                .opaque()
                .optional(),
            input("block_table", Ty(DType::I32), Dims(&[Is(B), Is(M)])),
            input("cu_q", Ty(DType::I32), Dims(&[PlusOne(B)])).packed(),
            input("kv_len", Ty(DType::I32), Dims(&[Is(B)])).packed(),
            output("o", Compute, Dims(&[Is(T), Is(Hq), Is(Dv)])),
            output("lse", Ty(DType::F32), Dims(&[Is(T), Is(Hq)])).optional(),
            input("k_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
            input("v_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
            input("sinks", Ty(DType::F32), Dims(&[Is(Hq)])).packed().optional(),
        ],
        &[],
    )
};

/// `cache[pairs[p][1]] = cache[pairs[p][0]]`, whole blocks, both caches; a pair with a negative member is skipped. No block is
/// written twice, none is both source and destination.
pub const KV_COPY_BLOCKS: OpSchema = op(
    OpKind::KV_COPY_BLOCKS,
    &[
        inout("k_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dk)])).opaque(),
        inout("v_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dv)])).opaque().optional(),
        input("pairs", Ty(DType::I32), Dims(&[Is(P), Const(2)])).packed(),
    ],
    &[],
);

/// `s = score(logits)`; `c = s + bias` (for the choice only). With N_GROUP > 1: a group's score is the best (GROUP_SCORE 0) or the
/// sum of the best two (1) of its `c`; all but the TOPK_GROUP best groups are dropped. `ids` are the TOPK largest `c`, descending,
/// ties to the lower index; `weight = s[ids]`; NORM: `weight /= Σ weight + 1e-20`; `weight *= SCALE`.
pub const MOE_ROUTER: OpSchema = op(
    OpKind::MOE_ROUTER,
    &[
        input("logits", Ty(DType::F32), Dims(&[Is(T), Is(E)])),
        input("bias", Ty(DType::F32), Dims(&[Is(E)])).packed().optional(),
        output("ids", Ty(DType::I32), Dims(&[Is(T), Is(Top)])),
        output("weight", Ty(DType::F32), Dims(&[Is(T), Is(Top)])),
    ],
    &[],
);

/// `y = add + Σ_j weight_j W1_e act_mul(W0_e x)`, `e = ids_j - EXPERT_START`; ids outside the slice (negative ones too) add
/// nothing. The sum is in f32, ascending `j`, `add` first. WEIGHT_ON_INPUT multiplies `x` instead. `y` may be `add`.
pub const MOE_EXPERTS: OpSchema = OpSchema {
    may_alias: &[(3, 4)],
    ..op(
        OpKind::MOE_EXPERTS,
        &[
            input("x", Compute, Dims(&[Is(T), Is(H)])),
            input("ids", Ty(DType::I32), Dims(&[Is(T), Is(Top)])),
            input("weight", Ty(DType::F32), Dims(&[Is(T), Is(Top)])),
            output("y", Compute, Dims(&[Is(T), Is(H)])),
            input("add", Compute, Dims(&[Is(T), Is(H)])).optional(),
        ],
        &[
            WeightSlot { name: "w0", groups: Some(Is(E)), n: Twice(I), k: Is(H) },
            WeightSlot { name: "w1", groups: Some(Is(E)), n: Is(H), k: Is(I) },
        ],
    )
};

/// `ids[b]` is the largest logit's index; ties to the lowest, NaN counts as -inf; a row of nothing but -inf gives 0.
pub const ARGMAX: OpSchema = op(
    OpKind::ARGMAX,
    &[
        input("logits", Float, Dims(&[Is(B), Is(V)])),
        output("ids", Ty(DType::I32), Dims(&[Is(B)])).packed(),
    ],
    &[],
);

/// The `Top` largest logits of each row and their ids, in the order of ARGMAX.
pub const TOPK: OpSchema = op(
    OpKind::TOPK,
    &[
        input("logits", Float, Dims(&[Is(B), Is(V)])),
        output("values", Ty(DType::F32), Dims(&[Is(B), Is(Top)])),
        output("ids", Ty(DType::I32), Dims(&[Is(B), Is(Top)])),
    ],
    &[],
);

/// `out[b, m] = logits[b, ids[b, m]] - ln Σ_v e^logits[b, v]`; a negative id gives 0.
pub const LOGPROBS: OpSchema = op(
    OpKind::LOGPROBS,
    &[
        input("logits", Float, Dims(&[Is(B), Is(V)])),
        input("ids", Ty(DType::I32), Dims(&[Is(B), Is(M)])),
        output("out", Ty(DType::F32), Dims(&[Is(B), Is(M)])),
    ],
    &[],
);

/// In place on logits: (1) `l[bias_ids] += bias`; (2) for each listed id with `count_all > 0`: `l = l > 0 ? l / r : l r`, then
/// `l -= frequency count_out + (count_out > 0 ? presence : 0)`, with `params[b] = [r, presence, frequency]`; (3) ids whose bit of
/// `mask` (1 allowed, least significant first) is 0 become -inf. Negative ids are padding; an id is listed at most once a row in
/// `ids` and in `bias_ids`. `ids`, `count_all`, `count_out` and `params` come together, as do `bias_ids` and `bias`.
pub const LOGITS_PROCESS: OpSchema = op(
    OpKind::LOGITS_PROCESS,
    &[
        inout("logits", Ty(DType::F32), Dims(&[Is(B), Is(V)])),
        input("mask", Ty(DType::U32), Dims(&[Is(B), Is(Words)])).optional(),
        input("ids", Ty(DType::I32), Dims(&[Is(B), Is(M)])).optional(),
        input("count_all", Ty(DType::I32), Dims(&[Is(B), Is(M)])).optional(),
        input("count_out", Ty(DType::I32), Dims(&[Is(B), Is(M)])).optional(),
        input("params", Ty(DType::F32), Dims(&[Is(B), Const(3)])).optional(),
        input("bias_ids", Ty(DType::I32), Dims(&[Is(B), Is(Mb)])).optional(),
        input("bias", Ty(DType::F32), Dims(&[Is(B), Is(Mb)])).optional(),
    ],
    &[],
);

/// Draws a token a row. Temperature 0 is ARGMAX. Else: `l / temperature`, sorted descending (ties: lower id first); keep `top_k`
/// (0: all); `p = softmax(kept)`; keep the shortest prefix with sum `>= top_p`; drop `p < min_p p_0`;
/// `u = (philox4x32_10(key = seed, counter = offset)[0] >> 8) 2^-24`; the first `i` with `Σ_{..=i} p > u Σ p`.
/// Key and counter are the 64-bit values as two little-endian words, the counter's upper words 0. `logprob` is the log-softmax of
/// `l / temperature` over all ids (temperature 0: of `l`) at the chosen id.
pub const SAMPLE: OpSchema = op(
    OpKind::SAMPLE,
    &[
        input("logits", Float, Dims(&[Is(B), Is(V)])),
        input("temperature", Ty(DType::F32), Dims(&[Is(B)])).packed(),
        input("top_k", Ty(DType::I32), Dims(&[Is(B)])).packed(),
        input("top_p", Ty(DType::F32), Dims(&[Is(B)])).packed(),
        input("min_p", Ty(DType::F32), Dims(&[Is(B)])).packed(),
        input("seed", Ty(DType::U64), Dims(&[Is(B)])).packed(),
        input("offset", Ty(DType::U64), Dims(&[Is(B)])).packed(),
        output("ids", Ty(DType::I32), Dims(&[Is(B)])).packed(),
        output("logprob", Ty(DType::F32), Dims(&[Is(B)])).packed().optional(),
    ],
    &[],
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_sorted_and_self_consistent() {
        assert!(CATALOGUE.windows(2).all(|w| w[0].kind < w[1].kind));
        for op in CATALOGUE {
            assert!(op.kind.name().is_some());
            for &(out, inp) in op.may_alias {
                assert!(op.slots[out].access != super::super::Access::In, "{}", op.kind);
                assert!(inp < op.slots.len());
            }
        }
    }
}
