// ROPE: a block a token; threads take pairs of all heads.
#include "device.h"

constexpr u32 THREADS = 128;

struct Heads {
    void* data;
    i64 token_stride, head_stride;
    u32 heads;
};

struct Rope {
    // k has no heads if it is absent.
    Heads q, k;
    const i32* positions;
    const float* table;
    i64 table_stride;
    u32 table_rows;
    // Pairs a head, and the first rotated dim.
    u32 half, offset;
    // Pairs are (2i, 2i + 1) instead of (i, i + half).
    u32 interleaved;
};

template <class T> DEVICE void rotate(const Heads& t, const Rope& p, const float* table) {
    T* token = static_cast<T*>(t.data) + i64(block_x()) * t.token_stride + p.offset;
    for (u32 i = thread_index(); i < t.heads * p.half; i += THREADS) {
        u32 head = i / p.half, pair = i % p.half;
        T* first = token + head * t.head_stride + (p.interleaved ? 2 * pair : pair);
        T* second = first + (p.interleaved ? 1 : p.half);
        float a = to_float(*first), b = to_float(*second), cosine = table[pair], sine = table[p.half + pair];
        *first = narrow<T>(fused(a, cosine, -(b * sine)));
        *second = narrow<T>(fused(b, cosine, a * sine));
    }
}

template <class T> DEVICE void rope(const Rope& p) {
    i32 position = p.positions[block_x()];
    // Negative: padding. Beyond the table: there is nothing to rotate by.
    if (position < 0 || u32(position) >= p.table_rows) return;
    const float* table = p.table + position * p.table_stride;
    rotate<T>(p.q, p, table);
    rotate<T>(p.k, p, table);
}

#define ROPE(suffix, T) KERNEL __launch_bounds__(THREADS) rope_##suffix(Rope p) { rope<T>(p); }
EACH_FLOAT(ROPE)
