// QUANT_ACT and RMS_NORM_QUANT: rows as codes of 8 bits and scales.
#include "cell.h"
#include "norm.h"

constexpr u32 THREADS = 256, WARPS = THREADS / WARP;
// Columns that share a scale of f8e4m3 codes.
constexpr u32 GROUP = 128;

struct Codes {
    void* q;
    float* scale;
    i64 q_stride, scale_stride;
    u32 cols;
    // Groups from one of a warp's to its next.
    u32 step;
};

// The larger magnitude; NaN wins.
struct Largest { DEVICE float operator()(float a, float b) const { return a != a || a > b ? a : b; } };

DEVICE float scale_of(float largest, float most) {
    float scale = largest / most;
    return scale == 0.0f ? 1.0f : scale;
}

// What of a row a warp quantises: groups `first`, `first + step`, ...; a scale a row is the whole block's.
struct Part { u32 cols, first, step; };

// One scale a row. `value` gives a column's number, `put` takes its code and scale.
template <class Value, class Put> DEVICE void quantise(const Part& p, i8*, float* scratch, Value value, Put put) {
    float largest = 0.0f;
    for (u32 column = thread_index(); column < p.cols; column += THREADS) largest = Largest()(largest, absolute(value(column)));
    largest = reduce_block<THREADS>(largest, Largest(), scratch);
    const float scale = scale_of(largest, 127.0f);
    for (u32 column = thread_index(); column < p.cols; column += THREADS) put(column, column == 0, narrow<i8>(value(column) / scale), scale);
}

// A scale a group.
template <class Value, class Put> DEVICE void quantise(const Part& p, e4m3*, float*, Value value, Put put) {
    for (u32 group = p.first; group * GROUP < p.cols; group += p.step) {
        float v[GROUP / WARP], largest = 0.0f;
#pragma unroll
        for (u32 i = 0; i < GROUP / WARP; i++) {
            const u32 column = group * GROUP + i * WARP + lane_index();
            v[i] = column < p.cols ? value(column) : 0.0f;
            largest = Largest()(largest, absolute(v[i]));
        }
        const float scale = scale_of(reduce_warp(largest, Largest()), 448.0f);
#pragma unroll
        for (u32 i = 0; i < GROUP / WARP; i++) {
            const u32 column = group * GROUP + i * WARP + lane_index();
            if (column < p.cols) put(column, column % GROUP == 0, narrow<e4m3>(v[i] / scale), scale);
        }
    }
}

// The codes and scales of a block's row.
template <class Q, class Value> DEVICE void store_codes(const Codes& p, float* scratch, Value value) {
    Q* q = static_cast<Q*>(p.q) + block_x() * p.q_stride;
    float* scales = p.scale + block_x() * p.scale_stride;
    quantise({p.cols, block_y() * WARPS + warp_index(), p.step}, static_cast<Q*>(nullptr), scratch, value,
             [&](u32 column, bool first, Q code, float scale) {
                 q[column] = code;
                 if (first) scales[column / GROUP] = scale;
             });
}

struct QuantAct {
    const void* x;
    i64 x_stride;
    Codes codes;
};

template <class T, class Q> DEVICE void quant_act(const QuantAct& p) {
    __shared__ float scratch[WARPS];
    const T* x = static_cast<const T*>(p.x) + block_x() * p.x_stride;
    store_codes<Q>(p.codes, scratch, [&](u32 column) { return to_float(x[column]); });
}

struct NormQuant {
    const void *x, *gamma;
    // Null if there is no residual: r := round(x + r) is normed otherwise.
    void* r;
    i64 x_stride, r_stride;
    u32 gamma_type;
    float eps, gamma_plus;
    Codes codes;
};

template <class T, class Q> DEVICE void norm_quant(const NormQuant& p) {
    __shared__ float scratch[2][WARPS];
    const u32 cols = p.codes.cols;
    const T* x = static_cast<const T*>(p.x) + block_x() * p.x_stride;
    T* r = p.r ? static_cast<T*>(p.r) + block_x() * p.r_stride : nullptr;
    const float factor = norm_factor<THREADS>(x, r, cols, p.eps, scratch[0]);
    const T* normed = r ? r : x;
    store_codes<Q>(p.codes, scratch[1], [&](u32 column) {
        return to_float(normed[column]) * factor * (load_float(p.gamma, p.gamma_type, column) + p.gamma_plus);
    });
}

// Rows for a linear layer that quantises them, in whole eights of columns: codes and scales, or what they stand for. A block row is a
// group.
struct StageQuantised {
    const void* x;
    void* y;
    // Of codes: floats, `scales` a row of the one group that there is.
    float* scale;
    i64 x_stride, x_group, y_stride, y_group;
    u32 cols, padded, scales;
};

template <class T, class Q, class Y> DEVICE void stage(const StageQuantised& p) {
    __shared__ float scratch[WARPS];
    const T* x = static_cast<const T*>(p.x) + block_x() * p.x_stride + block_y() * p.x_group;
    Y* y = static_cast<Y*>(p.y) + block_x() * p.y_stride + block_y() * p.y_group;
    quantise({p.cols, warp_index(), WARPS}, static_cast<Q*>(nullptr), scratch, [&](u32 column) { return to_float(x[column]); },
             [&](u32 column, bool first, Q code, float scale) {
                 // A code has a Y of its own.
                 y[column] = narrow<Y>(p.scales ? to_float(code) : to_float(code) * scale);
                 if (p.scales && first) p.scale[u64(block_x()) * p.scales + column / GROUP] = scale;
             });
    for (u32 column = p.cols + thread_index(); column < p.padded; column += THREADS) y[column] = narrow<Y>(0.0f);
}

#define QUANTISE(suffix, T, name, Q) \
    KERNEL __launch_bounds__(THREADS) stage_##suffix##_##name(StageQuantised p) { stage<T, Q, float>(p); } \
    KERNEL __launch_bounds__(THREADS) stage_##suffix##_##name##_bf16(StageQuantised p) { stage<T, Q, bf16>(p); } \
    KERNEL __launch_bounds__(THREADS) quant_act_##suffix##_##name(QuantAct p) { quant_act<T, Q>(p); } \
    KERNEL __launch_bounds__(THREADS) rms_norm_quant_##suffix##_##name(NormQuant p) { norm_quant<T, Q>(p); }
#define QUANTISE_EACH(suffix, T) \
    KERNEL __launch_bounds__(THREADS) stage_##suffix##_i8_i8(StageQuantised p) { stage<T, i8, i8>(p); } \
    KERNEL __launch_bounds__(THREADS) stage_##suffix##_e4m3_e4m3(StageQuantised p) { stage<T, e4m3, e4m3>(p); } \
    QUANTISE(suffix, T, i8, i8) QUANTISE(suffix, T, e4m3, e4m3)
EACH_FLOAT(QUANTISE_EACH)
