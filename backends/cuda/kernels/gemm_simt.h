// Linear layers on many rows without tensor cores: what they have no type for. Tiles of 64x64 outputs, of which a thread has 4x4.
#pragma once
#include "linear.h"

constexpr u32 THREADS = 256, TILE = 64, DEPTH = 16;

struct Tiles {
    // By column of x, so that threads read neighbouring rows.
    float x[DEPTH][TILE], w[DEPTH][TILE];
};

union __attribute__((aligned(16))) Shared {
    Tiles tiles;
    float sums[TILE * TILE];
};

template <class X, class W> DEVICE void gemm(const Linear& p) {
    __shared__ Shared shared;
    Tiles& tiles = shared.tiles;
    const u32 group = block_z(), thread = thread_index();
    if (group == p.groups) return zero_rest(p, THREADS);
    const Span span = rows_of(p, group);
    const u32 row0 = block_y() * TILE, column0 = block_x() * TILE;
    if (row0 >= span.count) return;
    const Matrix weight = group_of(p.weight, group);
    // Half of the threads load x, half W: eight numbers each.
    const u32 line = thread % TILE, chunk = thread / TILE % 2 * 8;
    const bool of_x = thread < THREADS / 2;
    const u32 top = thread / 16 * 4, left = thread % 16 * 4;
    float sum[4][4] = {};
    for (u32 k = 0; k < p.k; k += DEPTH) {
        float v[8] = {};
        if (k + chunk < p.k) {
            if (of_x && row0 + line < span.count) eight_floats(x_row<X>(p, group, span.first + row0 + line) + k + chunk, v);
            if (!of_x && column0 + line < p.n) Stored<W>::eight(weight, column0 + line, k + chunk, v);
        }
        __syncthreads();
        float(*tile)[TILE] = of_x ? tiles.x : tiles.w;
#pragma unroll
        for (u32 j = 0; j < 8; j++) tile[chunk + j][line] = v[j];
        __syncthreads();
#pragma unroll
        for (u32 j = 0; j < DEPTH; j++) {
            Words4 a = load_shared(&tiles.x[j][top]), b = load_shared(&tiles.w[j][left]);
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 l = 0; l < 4; l++)
                    sum[i][l] = fused(__builtin_bit_cast(float, a.v[i]), __builtin_bit_cast(float, b.v[l]), sum[i][l]);
        }
    }
    const SumTile<TILE, TILE> sums = {shared.sums};
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 l = 0; l < 4; l++) *sums.at(top + i, left + l) = sum[i][l];
    __syncthreads();
    sums.store<THREADS>(p, group, span, row0, column0);
}
