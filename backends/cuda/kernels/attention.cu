// PAGED_ATTENTION, VARLEN_ATTENTION and MLA_ATTENTION of every type and width, without matrix units; MERGE_ATTENTION.
#include "attention.h"

constexpr u32 THREADS = 128, MAX_DIM = 576, VALUES = (MAX_DIM + THREADS - 1) / THREADS;

struct Scratch {
    float query[MAX_DIM];
    float weights[THREADS];
    const u8* rows[THREADS];
    float reduce[2][THREADS / WARP];
};

// q·k over one row; rows of caches are read 16 bytes at a time.
template <class C> DEVICE float dot(const float* query, const Plane& plane, const u8* row) {
    constexpr u32 CELLS = 16 / sizeof(C);
    float sum = 0.0f;
    u32 d = 0;
    if (plane.blocks != 0) {
        for (; d + CELLS <= plane.dim; d += CELLS) {
            union { Words4 words; C cells[CELLS]; } piece = {*reinterpret_cast<const Words4*>(row + d * sizeof(C))};
#pragma unroll
            for (u32 i = 0; i < CELLS; i++) sum = fused(query[d + i], to_float(piece.cells[i]), sum);
        }
    }
    for (; d < plane.dim; d++) sum = fused(query[d], to_float(reinterpret_cast<const C*>(row)[d]), sum);
    return sum;
}

// The running softmax of one query: the weighted values so far of dims thread, thread + THREADS, ...
struct State {
    float sum[VALUES], most, weight;
};

// Adds keys [first, end), at most THREADS. A thread scores one key, then sums dims of the values.
template <class C> DEVICE void add_keys(const Attention& p, State& s, Scratch& scratch, const Where& where, u32 kv_head, i32 first, i32 end) {
    const u32 t = thread_index();
    const i32 key = first + i32(t);
    const u8* row = key < end ? row_of_key(p.k, where, kv_head, u32(key)) : nullptr;
    float z = negative_infinity();
    if (row) {
        z = dot<C>(scratch.query, p.k, row);
        if (p.k2.dim != 0) z += dot<C>(scratch.query + p.k.dim, p.k2, row_of_key(p.k2, where, 0, u32(key)));
        z *= p.scale * (p.k_scale ? p.k_scale[kv_head] : 1.0f);
        z = capped(p, z);
    }
    float chunk = reduce_block<THREADS>(z, Most(), scratch.reduce[0]);
    float most_now = most(s.most, chunk);
    float keep = s.most == negative_infinity() ? 0.0f : exponential(s.most - most_now);
    float weight = row ? exponential(z - most_now) : 0.0f;
    scratch.weights[t] = weight;
    scratch.rows[t] = row ? row_of_key(p.v, where, kv_head, u32(key)) : nullptr;
    s.most = most_now;
    s.weight = s.weight * keep + reduce_block<THREADS>(weight, Sum(), scratch.reduce[1]);
#pragma unroll
    for (u32 i = 0; i < VALUES; i++) {
        u32 d = t + i * THREADS;
        if (d >= p.v.dim) break;
        float sum = 0.0f;
#pragma unroll 1
        for (i32 k = 0; k < end - first; k++)
            if (const u8* value = scratch.rows[k]) sum = fused(scratch.weights[k], to_float(reinterpret_cast<const C*>(value)[d]), sum);
        s.sum[i] = s.sum[i] * keep + sum;
    }
    __syncthreads();
}

template <class T> DEVICE void store(const Attention& p, const State& s, u32 token, u32 head) {
    T* o = row_of<T>(p.o, token, head);
    const End end = finish(p, s.most, s.weight, head);
#pragma unroll
    for (u32 i = 0; i < VALUES; i++) {
        u32 d = thread_index() + i * THREADS;
        if (d < p.v.dim) o[d] = narrow<T>(s.sum[i] * end.share);
    }
    if (thread_index() == 0) store_lse(p, token, head, end.lse);
}

// A block a query and head.
template <class T, class C> DEVICE void attend(const Attention& p) {
    __shared__ Scratch scratch;
    const u32 token = block_x(), head = block_y();
    State s = {{}, negative_infinity(), 0.0f};
    if (i32(token) < p.starts[p.sequences]) {
        const Sequence sequence = sequence_of(p, find_start(p.starts, p.sequences, token));
        const T* q = row_of<T>(p.q, token, head);
        for (u32 d = thread_index(); d < p.k.dim; d += THREADS) scratch.query[d] = to_float(q[d]);
        const T* q2 = row_of<T>(p.q2, token, head);
        for (u32 d = thread_index(); d < p.k2.dim; d += THREADS) scratch.query[p.k.dim + d] = to_float(q2[d]);
        __syncthreads();
        const Seen seen = seen_from(p, sequence.place() + i32(token - sequence.token), sequence.keys);
        for (i32 first = seen.first; first < seen.end; first += THREADS)
            add_keys<C>(p, s, scratch, sequence.where, head / p.group, first, least(first + i32(THREADS), seen.end));
    }
    store<T>(p, s, token, head);
}

#define ATTENTION(name, T, C) KERNEL __launch_bounds__(THREADS, 8) attention_##name(Attention p) { attend<T, C>(p); }
EACH_CACHE(ATTENTION)

// The parts of each query as one, for `flash.h`: a block a query, counted from the first of the launch, and head.
template <class T> DEVICE void merge_parts(const Attention& p) {
    const u32 token = u32(p.starts[p.first_sequence]) + block_x(), head = block_y(), pitch = p.v.dim + 2;
    if (token >= u32(p.starts[p.last_sequence]) || token >= p.tokens) return;
    u32 count = p.parts;
    if (p.long_tiles != 0) {
        const Sequence sequence = sequence_of(p, p.first_sequence + block_x());
        count = parts_of(p, tiles_of(seen_from(p, sequence.place(), sequence.keys)).count());
        // Its block has written the result.
        if (count == 1) return;
    }
    const float* parts = p.partial + (u64(block_x()) * p.parts * p.heads + head) * pitch;
    const u64 step = u64(p.heads) * pitch;
    float top = negative_infinity(), weight = 0.0f;
    for (u32 part = 0; part < count; part++) top = most(top, parts[part * step]);
    const float from = top == negative_infinity() ? 0.0f : top;
    for (u32 part = 0; part < count; part++) weight = fused(parts[part * step + 1], exp2_approx(parts[part * step] - from), weight);
    const End end = finish(p, top * LN2, weight, head);
    T* o = row_of<T>(p.o, token, head);
    for (u32 d = thread_index(); d < p.v.dim; d += THREADS) {
        float sum = 0.0f;
        for (u32 part = 0; part < count; part++) sum = fused(parts[part * step + 2 + d], exp2_approx(parts[part * step] - from), sum);
        o[d] = narrow<T>(sum * end.share);
    }
    if (thread_index() == 0) store_lse(p, token, head, end.lse);
}

// Zeros for the tokens after the last sequence, for `flash.h`: blocks take tokens in turn.
template <class T> DEVICE void pad(const Attention& p) {
    for (u32 token = u32(p.starts[p.sequences]) + block_x(); token < p.tokens; token += blocks_x()) {
        for (u32 i = thread_index(); i < p.heads * p.v.dim; i += THREADS) row_of<T>(p.o, token, i / p.v.dim)[i % p.v.dim] = narrow<T>(0.0f);
        for (u32 head = thread_index(); head < p.heads; head += THREADS) store_lse(p, token, head, negative_infinity());
    }
}

#define AFTER(suffix, T) \
    KERNEL __launch_bounds__(THREADS) attention_parts_##suffix(Attention p) { merge_parts<T>(p); } \
    KERNEL __launch_bounds__(THREADS) attention_padding_##suffix(Attention p) { pad<T>(p); }
AFTER(f16, f16)
AFTER(bf16, bf16)

struct Merge {
    Heads o1, o2, o;
    const float *lse1, *lse2;
    float* lse;
    // Of the three: steps from token to token and from head to head.
    i64 lse1_strides[2], lse2_strides[2], lse_strides[2];
};

DEVICE i64 place_of(const i64 (&strides)[2]) { return i64(block_x()) * strides[0] + i64(block_y()) * strides[1]; }

// A block a query and head.
template <class T> DEVICE void merge(const Merge& p) {
    const u32 token = block_x(), head = block_y();
    float a = p.lse1[place_of(p.lse1_strides)], b = p.lse2[place_of(p.lse2_strides)];
    float top = most(a, b), sum = exponential(a - top) + exponential(b - top);
    bool none = top == negative_infinity();
    float lse = none ? top : top + logarithm(sum);
    float share1 = none ? 0.0f : exponential(a - top) / sum, share2 = none ? 0.0f : exponential(b - top) / sum;
    const T *o1 = row_of<T>(p.o1, token, head), *o2 = row_of<T>(p.o2, token, head);
    T* o = row_of<T>(p.o, token, head);
    for (u32 d = thread_index(); d < p.o.dim; d += THREADS) o[d] = narrow<T>(fused(to_float(o1[d]), share1, to_float(o2[d]) * share2));
    __syncthreads();
    // It may be where lse1 is.
    if (thread_index() == 0) p.lse[place_of(p.lse_strides)] = lse;
}

#define MERGE(suffix, T) KERNEL __launch_bounds__(THREADS) merge_attention_##suffix(Merge p) { merge<T>(p); }
EACH_FLOAT(MERGE)
