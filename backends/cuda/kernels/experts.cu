// MOE_EXPERTS on few tokens, with weights of the type that x has: each pair of a token and an expert on its own, without sorting. Warps take
// neighbouring rows of a weight, lanes neighbouring columns, eight a lane.
#include "gate.h"
#include "weight.h"

constexpr u32 WARPS = 4, THREADS = WARPS * WARP, OUTPUTS = 2, LANES = WARP / OUTPUTS;

struct Experts {
    // Rows of x begin at multiples of 16 bytes and are whole eights of columns.
    const void* x;
    const i32* ids;
    const float* weight;
    // A row for each pair, in whole eights of columns.
    float* gated;
    void* y;
    // Null, or what the sum begins with.
    const void* add;
    Matrix w0, w1;
    i64 x_stride, ids_stride, weight_stride, gated_stride, y_stride, add_stride, first_expert;
    u32 top, experts, h, i;
    u32 weight_on_input;
    Gate gate;
};

// The expert of a token's choice, counted from the first one here; `experts` if it is not here.
DEVICE u32 expert_of(const Experts& p, u32 token, u32 choice) {
    const i32 id = p.ids[token * p.ids_stride + choice];
    const i64 expert = i64(id) - p.first_expert;
    return id >= 0 && expert >= 0 && expert < p.experts ? u32(expert) : p.experts;
}

template <class T> DEVICE float product(const float (&x)[8], const Matrix& weight, u32 row, u32 column, float sum) {
    float w[8];
    Stored<T>::eight(weight, row, column, w);
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum = fused(x[i], w[i], sum);
    return sum;
}

// gated = act(gate) up of a pair.
template <class T> DEVICE void gates(const Experts& p) {
    const u32 pair = block_y(), token = pair / p.top, choice = pair % p.top, expert = expert_of(p, token, choice);
    const u32 first = (block_x() * WARPS + warp_index()) * OUTPUTS;
    if (expert == p.experts || first >= p.gated_stride) return;
    const Matrix weight = group_of(p.w0, expert);
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride;
    const float factor = p.weight_on_input ? p.weight[token * p.weight_stride + choice] : 1.0f;
    float gate[OUTPUTS] = {}, up[OUTPUTS] = {};
    for (u32 column = lane_index() * 8; column < p.h; column += WARP * 8) {
        float v[8];
        eight_floats(x + column, v);
#pragma unroll
        for (u32 o = 0; o < OUTPUTS; o++) {
            const u32 row = least(first + o, p.i - 1);
            gate[o] = product<T>(v, weight, row, column, gate[o]);
            up[o] = product<T>(v, weight, p.i + row, column, up[o]);
        }
    }
    // The first of the lanes that hold sums stores what they give.
    const float g = sums_of_warp(gate) * factor, u = sums_of_warp(up) * factor;
    const u32 row = first + lane_index() / LANES;
    // What pads a row is zeros.
    if (lane_index() % LANES == 0 && row < p.gated_stride) p.gated[pair * p.gated_stride + row] = row < p.i ? gated(p.gate, g, u) : 0.0f;
}

// y = add + Σ weight W1 gated of a token.
template <class T> DEVICE void sums(const Experts& p) {
    const u32 token = block_y(), first = (block_x() * WARPS + warp_index()) * OUTPUTS;
    if (first >= p.h) return;
    float sum[OUTPUTS] = {};
    for (u32 choice = 0; choice < p.top; choice++) {
        const u32 expert = expert_of(p, token, choice);
        if (expert == p.experts) continue;
        const Matrix weight = group_of(p.w1, expert);
        const float* gated = p.gated + (token * p.top + choice) * p.gated_stride;
        const float factor = p.weight_on_input ? 1.0f : p.weight[token * p.weight_stride + choice];
        float part[OUTPUTS] = {};
        for (u32 column = lane_index() * 8; column < p.i; column += WARP * 8) {
            float v[8];
            eight_floats(gated + column, v);
#pragma unroll
            for (u32 o = 0; o < OUTPUTS; o++) part[o] = product<T>(v, weight, least(first + o, p.h - 1), column, part[o]);
        }
#pragma unroll
        for (u32 o = 0; o < OUTPUTS; o++) sum[o] = fused(factor, part[o], sum[o]);
    }
    float total = sums_of_warp(sum);
    const u32 row = first + lane_index() / LANES;
    if (lane_index() % LANES != 0 || row >= p.h) return;
    if (p.add) total += to_float(static_cast<const T*>(p.add)[token * p.add_stride + row]);
    static_cast<T*>(p.y)[token * p.y_stride + row] = narrow<T>(total);
}

#define EXPERTS(suffix, T) \
    KERNEL __launch_bounds__(THREADS) experts_gates_##suffix(Experts p) { gates<T>(p); } \
    KERNEL __launch_bounds__(THREADS) experts_sums_##suffix(Experts p) { sums<T>(p); }
EACH_FLOAT(EXPERTS)
