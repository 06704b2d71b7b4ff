// Rows of logits, read 16 bytes at a time wherever they begin.
#pragma once
#include "order.h"

// A block of this many threads takes a row.
constexpr u32 THREADS = 1024, WARPS = THREADS / WARP;

template <class T> DEVICE float element(const Words4& words, u32 i);
template <> DEVICE float element<float>(const Words4& words, u32 i) { return __builtin_bit_cast(float, words.v[i]); }
template <> DEVICE float element<f16>(const Words4& words, u32 i) {
    return to_float(__builtin_bit_cast(f16, u16(words.v[i / 2] >> (i % 2 * 16))));
}
template <> DEVICE float element<bf16>(const Words4& words, u32 i) {
    return to_float(bf16{u16(words.v[i / 2] >> (i % 2 * 16))});
}

// Calls f(number, column) for the columns of a row, each in one thread of the block.
template <class T, class F> DEVICE void each(const T* row, u32 columns, F f) {
    constexpr u32 PER = sizeof(Words4) / sizeof(T);
    u32 head = least(columns, u32(-reinterpret_cast<u64>(row) % sizeof(Words4) / sizeof(T)));
    u32 vectors = (columns - head) / PER;
    const Words4* body = reinterpret_cast<const Words4*>(row + head);
#pragma unroll 1
    for (u32 vector = thread_index(); vector < vectors; vector += THREADS) {
        Words4 words = body[vector];
#pragma unroll
        for (u32 i = 0; i < PER; i++) f(element<T>(words, i), head + vector * PER + i);
    }
    // What is before and after the vectors.
    u32 edge = thread_index() < head ? thread_index() : vectors * PER + thread_index();
    if (edge < columns) f(to_float(row[edge]), edge);
}

struct Total { DEVICE u64 operator()(u64 a, u64 b) const { return a + b; } };

// As reduce_block, of whole numbers.
template <class Op> DEVICE u64 reduce_whole(u64 x, Op op, u64* scratch) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) x = op(x, shuffle_xor(x, lanes));
    if (lane_index() == 0) scratch[warp_index()] = x;
    __syncthreads();
    x = scratch[0];
#pragma unroll
    for (u32 warp = 1; warp < WARPS; warp++) x = op(x, scratch[warp]);
    return x;
}

// The first place of a row's order; ~0 of a row without columns.
template <class T> DEVICE u64 first_place(const T* row, u32 columns, u64* scratch) {
    u64 best = ~u64(0);
    each(row, columns, [&](float logit, u32 id) { best = least(best, place_of(logit, id)); });
    return reduce_whole(best, First(), scratch);
}
