// y = x Wᵀ + bias (+ y): what the kernels for few and for many rows share.
#pragma once
#include "weight.h"

struct Linear {
    // Rows begin at multiples of 16 bytes and are whole eights of columns: others are staged.
    const void* x;
    void* y;
    // Null, or N floats.
    const void* bias;
    // Null, or the first row of each group and the end of the last: rows sorted by group.
    const i32* offsets;
    Matrix weight;
    // Elements from row to row, and from group to group.
    i64 x_stride, y_stride, x_group, y_group;
    u32 rows, n, k, groups;
    u32 bias_type, y_type, accumulate;
    // Scales of a row of x_scale: one, or one for X_SCALE_COLUMNS columns.
    u32 x_scales;
    // Null, or x is codes, which stand for themselves times these floats.
    const float* x_scale;
};

constexpr u32 X_SCALE_COLUMNS = 128;

// The rows that a group multiplies.
struct Span { u32 first, count; };
DEVICE Span rows_of(const Linear& p, u32 group) {
    if (!p.offsets) return {0, p.rows};
    i32 first = p.offsets[group], end = p.offsets[group + 1];
    // Offsets come from device memory: whatever they are, rows stay inside.
    first = first < 0 ? 0 : first > i32(p.rows) ? i32(p.rows) : first;
    end = end < first ? first : end > i32(p.rows) ? i32(p.rows) : end;
    return {u32(first), u32(end - first)};
}

template <class X> DEVICE const X* x_row(const Linear& p, u32 group, u32 row) {
    return static_cast<const X*>(p.x) + group * p.x_group + i64(row) * p.x_stride;
}

template <class Y> DEVICE void store_as(const Linear& p, i64 at, float value) {
    Y* y = static_cast<Y*>(p.y) + at;
    if (p.accumulate) value += to_float(*y);
    *y = narrow<Y>(value);
}

// Stores an output, to which the bias is added already; `row` counts all rows of x.
DEVICE void store_output(const Linear& p, u32 group, u32 row, u32 column, float value) {
    const i64 at = group * p.y_group + i64(row) * p.y_stride + column;
    switch (p.y_type) {
        case F32: return store_as<float>(p, at, value);
        case F16: return store_as<f16>(p, at, value);
        default: return store_as<bf16>(p, at, value);
    }
}

DEVICE float bias_of(const Linear& p, u32 column) {
    return p.bias && column < p.n ? load_float(p.bias, p.bias_type, column) : 0.0f;
}

// Rows after the last group's are zeros.
DEVICE void zero_rest(const Linear& p, u32 threads) {
    i32 end = p.offsets[p.groups];
    u32 first = end < 0 ? 0 : least(u32(end), p.rows);
    for (u64 i = block_x() * threads + thread_index(); i < u64(p.rows - first) * p.n; i += blocks_x() * threads)
        store_output(p, 0, first + i / p.n, i % p.n, 0.0f);
}

// A tile of sums in shared memory, on its way from the threads that summed to stores of neighbouring outputs. Columns are permuted in
// eights so that the rows of a fragment lie in different banks.
template <u32 ROWS, u32 COLUMNS> struct SumTile {
    float* sums;

    DEVICE float* at(u32 row, u32 column) const { return sums + row * COLUMNS + (column ^ (row % 4 * 8)); }

    // Stores the outputs of row0.., column0.., which `value` makes of sums; all of the block's threads have written and wait.
    template <u32 THREADS, class Value> DEVICE void store(const Linear& p, u32 group, Span span, u32 row0, u32 column0, Value value) const {
        const u32 column = thread_index() % COLUMNS;
        if (column0 + column >= p.n) return;
        const float bias = bias_of(p, column0 + column);
        const u32 rows = least(ROWS, span.count - row0);
        for (u32 row = thread_index() / COLUMNS; row < rows; row += THREADS / COLUMNS)
            store_output(p, group, span.first + row0 + row, column0 + column, value(*at(row, column), row, column) + bias);
    }
    template <u32 THREADS> DEVICE void store(const Linear& p, u32 group, Span span, u32 row0, u32 column0) const {
        store<THREADS>(p, group, span, row0, column0, [](float sum, u32, u32) { return sum; });
    }
};
