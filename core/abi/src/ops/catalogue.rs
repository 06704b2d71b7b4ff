//! Every op of this opset: slots in order, shapes, and the formula.
//!
//! `!` marks a written slot, `?` an optional one. Symbols are those of [`Sym`](super::Sym).

use super::schema::{
    Dim::{Const, Is, PlusOne, Twice},
    OpSchema,
    Shape::{Dims, Same, Trailing},
    Sym::{
        B, Block, Blocks, C, Dk, Dv, E, G, H, Hk, Hq, I, K, M, Mb, N, P, Qkv, R, Scales, T, Tk,
        Top, V, Words,
    },
    Types::{Any, Cache, Compute, Float, FloatCache, Is as Ty, Quantised},
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
    BATCHED_LINEAR,
    QUANT_ACT,
    KV_WRITE,
    PAGED_ATTENTION,
    MLA_WRITE,
    MLA_ATTENTION,
    VARLEN_ATTENTION,
    MERGE_ATTENTION,
    KV_GATHER,
    KV_COPY_BLOCKS,
    MOE_ROUTER,
    MOE_EXPERTS,
    MOE_PERMUTE,
    GROUPED_LINEAR,
    MOE_UNPERMUTE,
    ARGMAX,
    TOPK,
    LOGPROBS,
    LOGITS_PROCESS,
    SAMPLE,
    QKV_POST,
    LINEAR_ACT_MUL,
    LINEAR_ALL_REDUCE,
    RMS_NORM_QUANT,
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

/// `y[t, g] = W_g x[t, g]`, one matrix a group (the absorption of latent attention). `y` may be f32 whatever `x` is.
pub const BATCHED_LINEAR: OpSchema = op(
    OpKind::BATCHED_LINEAR,
    &[
        input("x", Compute, Dims(&[Is(T), Is(G), Is(K)])),
        output("y", Float, Dims(&[Is(T), Is(G), Is(N)])),
    ],
    &[WeightSlot { name: "w", groups: Some(Is(G)), n: Is(N), k: Is(K) }],
);

/// `q = round(x / scale)`, to nearest even, saturating. MODE 1: `q` is i8, one scale a row (`Scales = 1`),
/// `scale = max |x| / 127`. MODE 2: `q` is f8e4m3, one scale a row and 128 columns (`Scales = ceil(K / 128)`, the last group may be
/// shorter), `scale = max |x| / 448`. `scale` is rounded to f32 before it divides; where that is 0 (all of a group is), it is 1.
pub const QUANT_ACT: OpSchema = op(
    OpKind::QUANT_ACT,
    &[
        input("x", Compute, Dims(&[Is(T), Is(K)])),
        output("q", Quantised, Dims(&[Is(T), Is(K)])),
        output("scale", Ty(DType::F32), Dims(&[Is(T), Is(Scales)])),
    ],
    &[],
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

/// Token `t`'s latent `c` and rotated part `r` go to `slots[t] = block * BLOCK + offset`; a negative slot is skipped. A backend whose
/// layout fuses both into cache 0 gets no cache 1.
pub const MLA_WRITE: OpSchema = op(
    OpKind::MLA_WRITE,
    &[
        input("c", Compute, Dims(&[Is(T), Is(C)])),
        input("r", Compute, Dims(&[Is(T), Is(R)])),
        input("slots", Ty(DType::I64), Dims(&[Is(T)])).packed(),
        inout("c_cache", FloatCache, Dims(&[Is(Blocks), Is(Block), Is(C)])).opaque(),
        inout("r_cache", FloatCache, Dims(&[Is(Blocks), Is(Block), Is(R)])).opaque().optional(),
    ],
    &[],
);

/// Absorbed latent attention: all query heads share one key `(c_j, r_j)` and one value `c_j`.
/// `z_j = SCALE (qc·c_j + qr·r_j)`; masks, soft-cap, `o = Σ a_j c_j`, `lse`, scalars, host mirrors and padding as [`PAGED_ATTENTION`].
/// Absorbing `W_UK` before and applying `W_UV` after are [`BATCHED_LINEAR`]s.
pub const MLA_ATTENTION: OpSchema = OpSchema {
    scalars: &["max_q", "max_kv", "num_decodes"],
    host: &["cu_q", "kv_len"],
    ..op(
        OpKind::MLA_ATTENTION,
        &[
            input("qc", Compute, Dims(&[Is(T), Is(Hq), Is(C)])),
            input("qr", Compute, Dims(&[Is(T), Is(Hq), Is(R)])),
            input("c_cache", FloatCache, Dims(&[Is(Blocks), Is(Block), Is(C)])).opaque(),
            input("r_cache", FloatCache, Dims(&[Is(Blocks), Is(Block), Is(R)])).opaque().optional(),
            input("block_table", Ty(DType::I32), Dims(&[Is(B), Is(M)])),
            input("cu_q", Ty(DType::I32), Dims(&[PlusOne(B)])).packed(),
            input("kv_len", Ty(DType::I32), Dims(&[Is(B)])).packed(),
            output("o", Compute, Dims(&[Is(T), Is(Hq), Is(C)])),
            output("lse", Ty(DType::F32), Dims(&[Is(T), Is(Hq)])).optional(),
        ],
        &[],
    )
};

/// [`PAGED_ATTENTION`] over contiguous keys and values: sequence `b` has rows `cu_k[b]..cu_k[b + 1]` of `k` and `v`, so
/// `kv_len[b] = cu_k[b + 1] - cu_k[b]`. Query `i` is at `p = kv_len - q_len + i`, which may be negative: it sees nothing then if CAUSAL.
///
/// Scalars: largest q_len, largest kv_len. Host mirrors: `cu_q`, `cu_k`.
pub const VARLEN_ATTENTION: OpSchema = OpSchema {
    scalars: &["max_q", "max_kv"],
    host: &["cu_q", "cu_k"],
    ..op(
        OpKind::VARLEN_ATTENTION,
        &[
            input("q", Compute, Dims(&[Is(T), Is(Hq), Is(Dk)])),
            input("k", Compute, Dims(&[Is(Tk), Is(Hk), Is(Dk)])),
            input("v", Compute, Dims(&[Is(Tk), Is(Hk), Is(Dv)])),
            input("cu_q", Ty(DType::I32), Dims(&[PlusOne(B)])).packed(),
            input("cu_k", Ty(DType::I32), Dims(&[PlusOne(B)])).packed(),
            output("o", Compute, Dims(&[Is(T), Is(Hq), Is(Dv)])),
            output("lse", Ty(DType::F32), Dims(&[Is(T), Is(Hq)])).optional(),
            input("sinks", Ty(DType::F32), Dims(&[Is(Hq)])).packed().optional(),
        ],
        &[],
    )
};

/// Two attentions over disjoint keys as one: `lse = ln(e^lse1 + e^lse2)`, `o = e^(lse1 - lse) o1 + e^(lse2 - lse) o2`; both empty
/// (`-inf`): `o = 0`, `lse = -inf`. `o` may be `o1`, `lse` may be `lse1`.
pub const MERGE_ATTENTION: OpSchema = OpSchema {
    may_alias: &[(4, 0), (5, 1)],
    ..op(
        OpKind::MERGE_ATTENTION,
        &[
            input("o1", Compute, Dims(&[Is(T), Is(Hq), Is(Dv)])),
            input("lse1", Ty(DType::F32), Dims(&[Is(T), Is(Hq)])),
            input("o2", Compute, Dims(&[Is(T), Is(Hq), Is(Dv)])),
            input("lse2", Ty(DType::F32), Dims(&[Is(T), Is(Hq)])),
            output("o", Compute, Dims(&[Is(T), Is(Hq), Is(Dv)])),
            output("lse", Ty(DType::F32), Dims(&[Is(T), Is(Hq)])),
        ],
        &[],
    )
};

/// The first `cu_k[b + 1] - cu_k[b]` cached keys and values of sequence `b` into rows `cu_k[b]..` of `k` and `v`, in the compute type
/// (an f8e4m3 or i8 cache times its scale). Rows at or after `cu_k[B]` are zeros. LATENT: a cache of `C` and `R` dims, with `Hk = 1`.
///
/// Scalar: largest number of rows of a sequence. Host mirror: `cu_k`.
pub const KV_GATHER: OpSchema = OpSchema {
    scalars: &["max_kv"],
    host: &["cu_k"],
    ..op(
        OpKind::KV_GATHER,
        &[
            input("k_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dk)])).opaque(),
            input("v_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dv)]))
                .opaque()
                .optional(),
            input("block_table", Ty(DType::I32), Dims(&[Is(B), Is(M)])),
            input("cu_k", Ty(DType::I32), Dims(&[PlusOne(B)])).packed(),
            output("k", Compute, Dims(&[Is(Tk), Is(Hk), Is(Dk)])),
            output("v", Compute, Dims(&[Is(Tk), Is(Hk), Is(Dv)])),
            input("k_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
            input("v_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
        ],
        &[],
    )
};

/// `cache[pairs[p][1]] = cache[pairs[p][0]]`, whole blocks, both caches; a pair with a negative member is skipped. No block is
/// written twice, none is both source and destination. LATENT: as [`KV_GATHER`].
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

/// Rows sorted by expert, for [`GROUPED_LINEAR`]: with `e = ids[t, j] - EXPERT_START`, the pairs `(t, j)` with `0 <= e < E` are sorted
/// by `e`, then `t`, then `j`; pair `p` of that order has `xp[p] = x[t]` and `inverse[t, j] = p`; `offsets[e]` is the first pair of
/// `e`, `offsets[E]` their number. Other pairs have `inverse = -1`; rows of `xp` at or after `offsets[E]` are zeros. `P = T Top`.
pub const MOE_PERMUTE: OpSchema = op(
    OpKind::MOE_PERMUTE,
    &[
        input("x", Compute, Dims(&[Is(T), Is(H)])),
        input("ids", Ty(DType::I32), Dims(&[Is(T), Is(Top)])),
        output("xp", Compute, Dims(&[Is(P), Is(H)])),
        output("offsets", Ty(DType::I32), Dims(&[PlusOne(E)])).packed(),
        output("inverse", Ty(DType::I32), Dims(&[Is(T), Is(Top)])),
    ],
    &[],
);

/// `y[p] = W_e x[p]` for `offsets[e] <= p < offsets[e + 1]`; rows at or after `offsets[E]` are zeros. `y` may be f32 whatever `x` is.
pub const GROUPED_LINEAR: OpSchema = op(
    OpKind::GROUPED_LINEAR,
    &[
        input("x", Compute, Dims(&[Is(P), Is(K)])),
        input("offsets", Ty(DType::I32), Dims(&[PlusOne(E)])).packed(),
        output("y", Float, Dims(&[Is(P), Is(N)])),
    ],
    &[WeightSlot { name: "w", groups: Some(Is(E)), n: Is(N), k: Is(K) }],
);

/// `y[t] = add[t] + Σ_j weight[t, j] yp[inverse[t, j]]`; a negative `inverse` adds nothing. The sum is in f32, ascending `j`, `add`
/// first. `y` may be `add`.
pub const MOE_UNPERMUTE: OpSchema = OpSchema {
    may_alias: &[(3, 4)],
    ..op(
        OpKind::MOE_UNPERMUTE,
        &[
            input("yp", Float, Dims(&[Is(P), Is(H)])),
            input("inverse", Ty(DType::I32), Dims(&[Is(T), Is(Top)])),
            input("weight", Ty(DType::F32), Dims(&[Is(T), Is(Top)])),
            output("y", Compute, Dims(&[Is(T), Is(H)])),
            input("add", Compute, Dims(&[Is(T), Is(H)])).optional(),
        ],
        &[],
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

/// Fusion of [`RMS_NORM`] (q and k a head, where their gamma is there), [`ROPE`] and [`KV_WRITE`]. A row of `qkv` is `Hq` queries of
/// `Dk`, `Hk` keys of `Dk`, `Hk` values of `Dv`, so `Qkv = Hq Dk + Hk Dk + Hk Dv`. The rotated queries go to `q`, keys and values to
/// the cache only. What lies between the steps may or may not be rounded to the compute type.
pub const QKV_POST: OpSchema = op(
    OpKind::QKV_POST,
    &[
        input("qkv", Compute, Dims(&[Is(T), Is(Qkv)])),
        input("q_gamma", Float, Dims(&[Is(Dk)])).optional(),
        input("k_gamma", Float, Dims(&[Is(Dk)])).optional(),
        input("pos", Ty(DType::I32), Dims(&[Is(T)])).packed(),
        input("table", Ty(DType::F32), Dims(&[Is(P), Is(R)])),
        input("slots", Ty(DType::I64), Dims(&[Is(T)])).packed(),
        output("q", Compute, Dims(&[Is(T), Is(Hq), Is(Dk)])),
        inout("k_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dk)])).opaque(),
        inout("v_cache", Cache, Dims(&[Is(Blocks), Is(Block), Is(Hk), Is(Dv)])).opaque().optional(),
        input("k_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
        input("v_scale", Ty(DType::F32), Dims(&[Is(Hk)])).packed().optional(),
    ],
    &[],
);

/// Fusion of [`LINEAR`] and [`ACT_MUL`]: `y = act_mul(x Wᵀ + bias)`; the rows of `w` are the gates, then the ups. What lies between may
/// or may not be rounded to the compute type.
pub const LINEAR_ACT_MUL: OpSchema = op(
    OpKind::LINEAR_ACT_MUL,
    &[
        input("x", Compute, Dims(&[Is(T), Is(K)])),
        input("bias", Float, Dims(&[Twice(I)])).optional(),
        output("y", Compute, Dims(&[Is(T), Is(I)])),
    ],
    &[WeightSlot { name: "w", groups: None, n: Twice(I), k: Is(K) }],
);

/// Fusion of [`LINEAR`] and a sum over the ranks of the communicator that the host created with the same COMM:
/// `y = Σ_ranks (x Wᵀ + bias)`. All ranks launch it in the same order.
pub const LINEAR_ALL_REDUCE: OpSchema = op(
    OpKind::LINEAR_ALL_REDUCE,
    &[
        input("x", Compute, Dims(&[Is(T), Is(K)])),
        input("bias", Float, Dims(&[Is(N)])).optional(),
        output("y", Float, Dims(&[Is(T), Is(N)])),
    ],
    &[WeightSlot { name: "w", groups: None, n: Is(N), k: Is(K) }],
);

/// Fusion of [`RMS_NORM`] and [`QUANT_ACT`]; what lies between may or may not be rounded to the compute type.
pub const RMS_NORM_QUANT: OpSchema = op(
    OpKind::RMS_NORM_QUANT,
    &[
        input("x", Compute, Dims(&[Is(T), Is(K)])),
        input("gamma", Float, Dims(&[Is(K)])),
        output("q", Quantised, Dims(&[Is(T), Is(K)])),
        output("scale", Ty(DType::F32), Dims(&[Is(T), Is(Scales)])),
        inout("r", Compute, Dims(&[Is(T), Is(K)])).optional(),
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
