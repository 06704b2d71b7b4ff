// QKV_POST: a warp a head of a token's queries, keys and values.
#include "cell.h"

constexpr u32 HEADS = 4, THREADS = HEADS * WARP, MAX_DIM = 576;

struct Norm {
    // Null: there is none.
    const void* gamma;
    u32 gamma_type;
};

struct Qkv {
    const void* qkv;
    Norm q_norm, k_norm;
    const i32* positions;
    const float* table;
    const i64* slots;
    void* q;
    Plane keys, values;
    // One a head, or null.
    const float *key_scale, *value_scale;
    i64 qkv_stride, table_stride, q_stride, q_head_stride;
    u32 q_heads, kv_heads, table_rows;
    // Pairs a head, the first rotated dim, and whether pairs are (2i, 2i + 1) instead of (i, i + half).
    u32 half, offset, interleaved;
    float eps, gamma_plus;
};

// Loads a head to shared memory and norms it.
template <class T> DEVICE void load_head(const T* from, u32 dim, const Norm& norm, const Qkv& p, float* v) {
    float squares = 0.0f;
    for (u32 d = lane_index(); d < dim; d += WARP) {
        v[d] = to_float(from[d]);
        squares = fused(v[d], v[d], squares);
    }
    if (norm.gamma) {
        const float factor = 1.0f / __builtin_sqrtf(reduce_warp(squares, Sum()) / float(dim) + p.eps);
        for (u32 d = lane_index(); d < dim; d += WARP) v[d] *= factor * (load_float(norm.gamma, norm.gamma_type, d) + p.gamma_plus);
    }
    sync_warp();
}

DEVICE void rotate(const Qkv& p, i32 position, float* v) {
    // Negative: padding. Beyond the table: there is nothing to rotate by.
    if (position < 0 || u32(position) >= p.table_rows) return;
    const float* angles = p.table + position * p.table_stride;
    for (u32 pair = lane_index(); pair < p.half; pair += WARP) {
        float* first = v + p.offset + (p.interleaved ? 2 * pair : pair);
        float* second = first + (p.interleaved ? 1 : p.half);
        const float a = *first, b = *second, cosine = angles[pair], sine = angles[p.half + pair];
        *first = fused(a, cosine, -(b * sine));
        *second = fused(b, cosine, a * sine);
    }
    sync_warp();
}

// Lanes take 16 bytes of the cache at a time; what pads a row is zeros.
template <class C> DEVICE void write_head(const float* v, const Plane& plane, u32 index, u64 slot, float scale) {
    constexpr u32 CELLS = 16 / sizeof(C);
    const u64 block = slot >> plane.block_shift, offset = slot & ((1u << plane.block_shift) - 1);
    if (block >= plane.blocks) return;
    u8* to = plane.data + block * plane.block_bytes + index * plane.head_bytes + offset * plane.token_bytes;
    for (u32 piece = lane_index(); piece < u32(plane.token_bytes) / 16; piece += WARP) {
        union { C cells[CELLS]; Words4 words; } out;
#pragma unroll
        for (u32 cell = 0; cell < CELLS; cell++) {
            const u32 d = piece * CELLS + cell;
            out.cells[cell] = narrow<C>(d < plane.dim ? v[d] / scale : 0.0f);
        }
        reinterpret_cast<Words4*>(to)[piece] = out.words;
    }
}

template <class T, class C> DEVICE void qkv_post(const Qkv& p) {
    __shared__ float memory[HEADS][MAX_DIM];
    const u32 token = block_x(), head = block_y() * HEADS + warp_index(), dim = p.keys.dim;
    if (head >= p.q_heads + 2 * p.kv_heads) return;
    float* v = memory[warp_index()];
    const bool query = head < p.q_heads, value = head >= p.q_heads + p.kv_heads;
    const u32 index = query ? head : (head - p.q_heads) % p.kv_heads;
    const i64 slot = p.slots[token];
    if (!query && slot < 0) return;
    const T* row = static_cast<const T*>(p.qkv) + token * p.qkv_stride;
    const T* from = row + (value ? (p.q_heads + p.kv_heads) * dim + index * p.values.dim : head * dim);
    load_head(from, value ? p.values.dim : dim, query ? p.q_norm : value ? Norm{} : p.k_norm, p, v);
    if (!value) rotate(p, p.positions[token], v);
    if (query) {
        T* q = static_cast<T*>(p.q) + token * p.q_stride + index * p.q_head_stride;
        for (u32 d = lane_index(); d < dim; d += WARP) q[d] = narrow<T>(v[d]);
    } else {
        const float* scales = value ? p.value_scale : p.key_scale;
        write_head<C>(v, value ? p.values : p.keys, index, u64(slot), scales ? scales[index] : 1.0f);
    }
}

#define QKV_POST(name, T, C) KERNEL __launch_bounds__(THREADS) qkv_post_##name(Qkv p) { qkv_post<T, C>(p); }
EACH_CACHE(QKV_POST)
