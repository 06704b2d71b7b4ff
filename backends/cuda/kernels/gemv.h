// Linear layers on few rows: a warp takes OUTPUTS outputs, its lanes neighbouring columns, eight a lane, so that a weight is read once.
#pragma once
#include "linear.h"

constexpr u32 WARPS = 4, THREADS = WARPS * WARP;

template <class X, class W, u32 ROWS, u32 OUTPUTS> DEVICE void gemv(const Linear& p) {
    const u32 group = block_z();
    if (group == p.groups) return zero_rest(p, THREADS);
    const Span span = rows_of(p, group);
    const u32 first = (block_x() * WARPS + warp_index()) * OUTPUTS;
    if (span.count == 0 || first >= p.n) return;
    const Matrix weight = group_of(p.weight, group);
    for (u32 row = 0; row < span.count; row += ROWS) {
        float sum[ROWS * OUTPUTS] = {};
#pragma unroll 1
        for (u32 k = lane_index() * 8; k < p.k; k += WARP * 8) {
            float x[ROWS][8];
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) eight_floats(x_row<X>(p, group, span.first + least(row + i, span.count - 1)) + k, x[i]);
#pragma unroll
            for (u32 output = 0; output < OUTPUTS; output++) {
                float w[8];
                Stored<W>::eight(weight, least(first + output, p.n - 1), k, w);
#pragma unroll
                for (u32 i = 0; i < ROWS; i++)
#pragma unroll
                    for (u32 j = 0; j < 8; j++) sum[i * OUTPUTS + output] = fused(x[i][j], w[j], sum[i * OUTPUTS + output]);
            }
        }
        // The first of the lanes that hold a sum stores it.
        constexpr u32 LANES = WARP / (ROWS * OUTPUTS);
        const float total = sums_of_warp(sum);
        const u32 mine = lane_index() / LANES, i = row + mine / OUTPUTS, column = first + mine % OUTPUTS;
        if (lane_index() % LANES == 0 && i < span.count && column < p.n)
            store_output(p, group, span.first + i, column, total + bias_of(p, column));
    }
}
