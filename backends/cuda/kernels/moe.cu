// MOE_PERMUTE and MOE_UNPERMUTE: pairs of a token and an expert, sorted by expert.
#include "weight.h"

// ---- Where pairs go: a block an expert, which counts the pairs of experts before it and numbers its own in their order. The block
// after the last takes those of no expert here ----

constexpr u32 SORT_THREADS = 512, SORT_WARPS = SORT_THREADS / WARP;

struct Sort {
    const i32* ids;
    i32 *offsets, *inverse;
    i64 ids_stride, inverse_stride, first_expert;
    u32 pairs, top, experts;
};

// The expert of a pair, counted from the first one here; `experts` if it is not here.
DEVICE u32 expert_of(const Sort& p, u32 pair) {
    i32 id = p.ids[pair / p.top * p.ids_stride + pair % p.top];
    i64 expert = i64(id) - p.first_expert;
    return id >= 0 && expert >= 0 && expert < p.experts ? u32(expert) : p.experts;
}

KERNEL __launch_bounds__(SORT_THREADS) moe_sort(Sort p) {
    __shared__ u32 counts[2][SORT_WARPS];
    __shared__ u32 earlier[SORT_WARPS];
    const u32 expert = block_x();
    u32 before = 0;
    for (u32 pair = thread_index(); pair < p.pairs; pair += SORT_THREADS) before += expert_of(p, pair) < expert;
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) before += u32(shuffle_xor(i32(before), lanes));
    if (lane_index() == 0) earlier[warp_index()] = before;
    __syncthreads();
    u32 next = 0;
    for (u32 warp = 0; warp < SORT_WARPS; warp++) next += earlier[warp];
    if (thread_index() == 0) p.offsets[expert] = i32(next);
    for (u32 start = 0, turn = 0; start < p.pairs; start += SORT_THREADS, turn ^= 1) {
        const u32 pair = start + thread_index();
        const bool mine = pair < p.pairs && expert_of(p, pair) == expert;
        const u32 matches = __nvvm_vote_ballot_sync(FULL, mine);
        if (lane_index() == 0) counts[turn][warp_index()] = __builtin_popcount(matches);
        // The other half of the counts is written before the next barrier.
        __syncthreads();
        u32 rank = next + __builtin_popcount(matches & ((1u << lane_index()) - 1));
        for (u32 warp = 0; warp < SORT_WARPS; warp++) {
            rank += warp < warp_index() ? counts[turn][warp] : 0;
            next += counts[turn][warp];
        }
        if (mine) p.inverse[pair / p.top * p.inverse_stride + pair % p.top] = expert < p.experts ? i32(rank) : -1;
    }
}

// ---- Rows of pairs: a block a pair ----

constexpr u32 THREADS = 256;

struct Permute {
    const void* x;
    void* xp;
    const i32 *offsets, *inverse;
    // Null, or what rows are multiplied with.
    const float* weight;
    i64 x_stride, xp_stride, inverse_stride, weight_stride;
    u32 top, experts, cols;
};

// Where a pair's row goes, negative if nowhere; the first row of no pair.
struct Destination { i32 row; u32 end; };
DEVICE Destination destination(const Permute& p) {
    return {p.inverse[block_x() / p.top * p.inverse_stride + block_x() % p.top], u32(p.offsets[p.experts])};
}

// Strides and columns are in units of T.
template <class T> DEVICE void permute(const Permute& p) {
    const Destination to = destination(p);
    const T* x = static_cast<const T*>(p.x) + block_x() / p.top * p.x_stride;
    T* xp = static_cast<T*>(p.xp);
    for (u32 column = thread_index(); column < p.cols; column += THREADS) {
        if (to.row >= 0) xp[to.row * p.xp_stride + column] = x[column];
        if (block_x() >= to.end) xp[block_x() * p.xp_stride + column] = T{};
    }
}

KERNEL __launch_bounds__(THREADS) moe_permute_b16(Permute p) { permute<u16>(p); }
KERNEL __launch_bounds__(THREADS) moe_permute_b32(Permute p) { permute<u32>(p); }
KERNEL __launch_bounds__(THREADS) moe_permute_b128(Permute p) { permute<Words4>(p); }

template <class T> DEVICE void permute_weighted(const Permute& p) {
    const Destination to = destination(p);
    const T* x = static_cast<const T*>(p.x) + block_x() / p.top * p.x_stride;
    T* xp = static_cast<T*>(p.xp);
    const float weight = p.weight[block_x() / p.top * p.weight_stride + block_x() % p.top];
    for (u32 column = thread_index(); column < p.cols; column += THREADS) {
        if (to.row >= 0) xp[to.row * p.xp_stride + column] = narrow<T>(weight * to_float(x[column]));
        if (block_x() >= to.end) xp[block_x() * p.xp_stride + column] = T{};
    }
}

#define PERMUTE_WEIGHTED(suffix, T) KERNEL __launch_bounds__(THREADS) moe_permute_weighted_##suffix(Permute p) { permute_weighted<T>(p); }
EACH_FLOAT(PERMUTE_WEIGHTED)

// ---- y = add + Σ weight yp ----

struct Unpermute {
    const void* yp;
    const i32* inverse;
    // Null: all are 1.
    const float* weight;
    void* y;
    // Null, or what the sum begins with.
    const void* add;
    i64 yp_stride, inverse_stride, weight_stride, y_stride, add_stride;
    u32 pairs, top, cols;
    // Rows begin at multiples of 16 bytes and are whole eights of columns.
    u32 by_eights;
};

template <class T> DEVICE void load(const T* from, float (&v)[1]) { v[0] = to_float(*from); }
template <class T> DEVICE void load(const T* from, float (&v)[8]) { eight_floats(from, v); }

template <class T> DEVICE void store(T* to, const float (&v)[1]) { *to = narrow<T>(v[0]); }
template <class T> DEVICE void store(T* to, const float (&v)[8]) {
    struct __attribute__((aligned(16))) Eight { T v[8]; } eight;
#pragma unroll
    for (u32 i = 0; i < 8; i++) eight.v[i] = narrow<T>(v[i]);
    *reinterpret_cast<Eight*>(to) = eight;
}

template <class X, class T, u32 COUNT> DEVICE void unpermute(const Unpermute& p) {
    const u32 column = (block_y() * THREADS + thread_index()) * COUNT;
    if (column >= p.cols) return;
    float sum[COUNT] = {};
    if (p.add) load(static_cast<const T*>(p.add) + block_x() * p.add_stride + column, sum);
    for (u32 j = 0; j < p.top; j++) {
        const i32 row = p.inverse[block_x() * p.inverse_stride + j];
        if (row < 0 || u32(row) >= p.pairs) continue;
        const float weight = p.weight ? p.weight[block_x() * p.weight_stride + j] : 1.0f;
        float v[COUNT];
        load(static_cast<const X*>(p.yp) + row * p.yp_stride + column, v);
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) sum[i] = fused(weight, v[i], sum[i]);
    }
    store(static_cast<T*>(p.y) + block_x() * p.y_stride + column, sum);
}

#define UNPERMUTE(name, X, T) \
    KERNEL __launch_bounds__(THREADS) moe_unpermute_##name(Unpermute p) { \
        if (p.by_eights) unpermute<X, T, 8>(p); \
        else unpermute<X, T, 1>(p); \
    }
#define UNPERMUTE_TO(suffix, T) UNPERMUTE(f32_##suffix, float, T) UNPERMUTE(f16_##suffix, f16, T) UNPERMUTE(bf16_##suffix, bf16, T)
EACH_FLOAT(UNPERMUTE_TO)
