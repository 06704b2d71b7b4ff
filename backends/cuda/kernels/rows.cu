// GATHER_ROWS and EMBEDDING: a block takes 1024 columns of a row.
#include "columns.h"
#include "quant.h"

struct GatherRows {
    const void* x;
    void* y;
    const i32* index;
    i64 x_stride, y_stride;
    u32 x_rows, cols;
};

template <class T> DEVICE void gather_rows(const GatherRows& p) {
    i32 row = p.index[block_x()];
    T* y = static_cast<T*>(p.y) + block_x() * p.y_stride;
    if (row < 0) {
        FOR_COLUMNS(column, p.cols) y[column] = T(0);
    } else if (u32(row) < p.x_rows) {
        const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
        FOR_COLUMNS(column, p.cols) y[column] = x[column];
    }
}

KERNEL __launch_bounds__(THREADS) gather_rows_b16(GatherRows p) { gather_rows<u16>(p); }
KERNEL __launch_bounds__(THREADS) gather_rows_b32(GatherRows p) { gather_rows<u32>(p); }

struct Embedding {
    const void* weight;
    void* y;
    const i32* ids;
    // Bytes from row to row of the weight, elements of y.
    i64 weight_pitch, y_stride;
    // The ids that there are rows for begin here.
    i64 first;
    u32 rows, cols;
    float scale;
};

template <class W, class Y> DEVICE void embedding(const Embedding& p) {
    i64 row = p.ids[block_x()] - p.first;
    Y* y = static_cast<Y*>(p.y) + block_x() * p.y_stride;
    bool there = row >= 0 && row < p.rows;
    const W* weight = reinterpret_cast<const W*>(static_cast<const u8*>(p.weight) + (there ? row * p.weight_pitch : 0));
    FOR_COLUMNS(column, p.cols) y[column] = narrow<Y>(there ? to_float(weight[column]) * p.scale : 0.0f);
}

#define EMBEDDING(name, W, Y) KERNEL __launch_bounds__(THREADS) embedding_##name(Embedding p) { embedding<W, Y>(p); }
EMBEDDING(f32_f32, float, float)
EMBEDDING(f32_f16, float, f16)
EMBEDDING(f32_bf16, float, bf16)
EMBEDDING(f16_f32, f16, float)
EMBEDDING(f16_f16, f16, f16)
EMBEDDING(f16_bf16, f16, bf16)
EMBEDDING(bf16_f32, bf16, float)
EMBEDDING(bf16_f16, bf16, f16)
EMBEDDING(bf16_bf16, bf16, bf16)

// ---- Rows of quantised weights ----

struct EmbeddingQuant {
    Matrix weight;
    // Null, or where each of the weight's columns goes.
    const i32* order;
    void* y;
    const i32* ids;
    i64 y_stride, first;
    u32 rows, cols, y_type;
    float scale;
};

template <class W> DEVICE void embedding_quant(const EmbeddingQuant& p) {
    const i64 row = p.ids[block_x()] - p.first;
    const bool there = row >= 0 && row < p.rows;
    const u32 k = (block_y() * THREADS + thread_index()) * 8;
    if (k >= p.cols) return;
    float w[8] = {};
    if (there) Stored<W>::eight(p.weight, row, k, w);
#pragma unroll
    for (u32 j = 0; j < 8; j++)
        if (k + j < p.cols) {
            u32 column = p.order ? p.order[k + j] : k + j;
            if (column < p.cols) store_float(p.y, p.y_type, block_x() * p.y_stride + column, there ? w[j] * p.scale : 0.0f);
        }
}

#define EMBEDDING_QUANT(suffix, W) KERNEL __launch_bounds__(THREADS) embedding_##suffix(EmbeddingQuant p) { embedding_quant<W>(p); }
EACH_QUANTISED(EMBEDDING_QUANT)
