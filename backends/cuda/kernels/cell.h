// The elements of a paged cache: floats, and codes of 8 bits that a scale a head multiplies.
#pragma once
#include "fp8.h"

DEVICE float to_float(i8 x) { return float(x); }

// To nearest even, saturating; NaN gives 0.
template <> struct Narrow<i8> {
    DEVICE static i8 of(float x) {
        x = x < -128.0f ? -128.0f : x;
        x = x > 127.0f ? 127.0f : x;
        return x == x ? i8(i32(__builtin_rintf(x))) : i8(0);
    }
};

// Instantiates M(suffixes, type of activations, type of the cache).
#define EACH_CACHE_OF(M, suffix, T) \
    M(suffix##_f32, T, float) M(suffix##_f16, T, f16) M(suffix##_bf16, T, bf16) M(suffix##_e4m3, T, e4m3) M(suffix##_i8, T, i8)
#define EACH_CACHE(M) EACH_CACHE_OF(M, f32, float) EACH_CACHE_OF(M, f16, f16) EACH_CACHE_OF(M, bf16, bf16)

// Rows of keys or values: a cache [block][KV head][token][dim] whose rows begin at multiples of 16 bytes, or (no blocks) a tensor
// [token][KV head][dim].
struct Plane {
    u8* data;
    // From block to block, from head to head and from token to token.
    i64 block_bytes, head_bytes, token_bytes;
    u32 dim;
    // Blocks of the cache; 0 of a tensor.
    u32 blocks;
    // Tokens a block are 2 to this power.
    u32 block_shift;
    // Rows of the tensor.
    u32 rows;
};

// Where the keys of a sequence are.
struct Where {
    // Its row of the block table, or its first row of the tensor.
    const i32* table;
    u32 columns, first;
};

// The row of key `key`; null if there is no such block or row.
DEVICE u8* row_of_key(const Plane& p, const Where& at, u32 head, u32 key) {
    u8* rows = p.data + head * p.head_bytes;
    if (p.blocks == 0) return at.first + key < p.rows ? rows + i64(at.first + key) * p.token_bytes : nullptr;
    u32 column = key >> p.block_shift;
    if (column >= at.columns) return nullptr;
    u32 block = u32(at.table[column]);
    if (block >= p.blocks) return nullptr;
    return rows + block * p.block_bytes + i64(key & ((1u << p.block_shift) - 1)) * p.token_bytes;
}

// The last of `count` rising starts that is not above `place`.
DEVICE u32 find_start(const i32* starts, u32 count, u32 place) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (u32(starts[middle]) <= place) low = middle;
        else high = middle;
    }
    return low;
}
