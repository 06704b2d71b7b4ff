// Linear layers on many rows with tensor cores: quantised weights, x of a 16-bit type or of codes.
//
// Codes are exact in 16 bits, so what is multiplied is x times (code - zero). Products of columns that share a scale are summed apart and
// then scaled; a minimum multiplies the sum of x over the same columns, which is a product with ones.
#pragma once
#include "quant.h"
#include "tile.h"

// Two numbers that T has, as its bits.
template <class T> DEVICE u32 pair_of(float low, float high);
template <> DEVICE u32 pair_of<bf16>(float low, float high) {
    return __nvvm_prmt(__builtin_bit_cast(u32, low), __builtin_bit_cast(u32, high), 0x7632);
}
template <> DEVICE u32 pair_of<f16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <class T, class W, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N> struct Gemm {
    using Tiles = Tile<T, TILE_M, TILE_N, WARP_M, WARP_N, 64>;
    using Codes = typename W::Codes;
    using Scales = typename W::Scales;
    static constexpr u32 THREADS = Tiles::THREADS, STAGES = 3;
    // Parts of a tile's columns with scales of their own, and how many scales of them a thread computes.
    static constexpr u32 PARTS = Tiles::DEPTH / Scales::COLUMNS, FACTORS = PARTS * TILE_N / THREADS;
    static_assert(FACTORS > 0 && PARTS * TILE_N % THREADS == 0 && TILE_M <= THREADS, "whole threads");
    static constexpr u32 BYTES_FACTORS = PARTS * TILE_N * 4;
    // Of x stages; of W, scales, minima and scales of x what is multiplied and what comes next.
    static constexpr u32 W_AT = STAGES * Tiles::BYTES_M, SCALES_AT = W_AT + 2 * Tiles::BYTES_N, MINIMA_AT = SCALES_AT + 2 * BYTES_FACTORS;
    static constexpr u32 X_SCALES_AT = MINIMA_AT + (Scales::MINIMUM ? 2 * BYTES_FACTORS : 0), BYTES = X_SCALES_AT + 2 * TILE_M * 4;
    static_assert(Tiles::BYTES_SUMS <= X_SCALES_AT, "the sums take the tiles' place");

    using Sums = typename Tiles::Sums;

    const Linear& p;
    Matrix weight;
    Place place;
    u8* memory;
    u32 shared;

    DEVICE float* floats(u32 at) const { return reinterpret_cast<float*>(memory + at); }

    // What a thread has read of W and of the scales for the next step.
    struct Ahead {
        typename Codes::Raw codes[Tiles::LINES_N];
        u32 zeros[Tiles::LINES_N];
        typename Scales::Raw factors[FACTORS];
        float x_scale;
    };

    DEVICE void read(Ahead& ahead, u32 depth) const {
        const u32 k = depth + Tiles::chunk() * 8;
#pragma unroll
        for (u32 i = 0; i < Tiles::LINES_N; i++) {
            const u32 n = place.column0 + Tiles::line(i);
            const bool in = n < p.n && k < p.k;
            ahead.codes[i] = in ? Codes::load(weight, n, k) : typename Codes::Raw{};
            ahead.zeros[i] = in ? Scales::zero(weight, n, k) : 0;
        }
#pragma unroll
        for (u32 i = 0; i < FACTORS; i++) {
            const u32 at = thread_index() + i * THREADS, n = place.column0 + at % TILE_N, first = depth + at / TILE_N * Scales::COLUMNS;
            ahead.factors[i] = n < p.n && first < p.k ? Scales::load(weight, n, first) : typename Scales::Raw{};
        }
        const u32 row = place.row0 + thread_index();
        if (p.x_scale && thread_index() < TILE_M && row < place.span.count)
            ahead.x_scale = p.x_scale[u64(place.span.first + row) * p.x_scales + (p.x_scales > 1 ? depth / X_SCALE_COLUMNS : 0)];
    }

    DEVICE void write(const Ahead& ahead, u32 buffer) const {
#pragma unroll
        for (u32 i = 0; i < Tiles::LINES_N; i++) {
            float q[8];
            Codes::eight(ahead.codes[i], q);
            const float zero = float(ahead.zeros[i]);
            Words4 words;
#pragma unroll
            for (u32 j = 0; j < 4; j++) words.v[j] = pair_of<T>(q[2 * j] - zero, q[2 * j + 1] - zero);
            *reinterpret_cast<Words4*>(memory + W_AT + buffer * Tiles::BYTES_N + Tiles::swizzled(Tiles::line(i), Tiles::chunk())) = words;
        }
#pragma unroll
        for (u32 i = 0; i < FACTORS; i++) {
            const u32 at = buffer * PARTS * TILE_N + thread_index() + i * THREADS;
            const Factor factor = Scales::factor(weight, ahead.factors[i]);
            floats(SCALES_AT)[at] = factor.scale;
            if (Scales::MINIMUM) floats(MINIMA_AT)[at] = factor.minimum;
        }
        if (p.x_scale && thread_index() < TILE_M) floats(X_SCALES_AT)[buffer * TILE_M + thread_index()] = ahead.x_scale;
    }

    // Multiplies what x's codes stand for.
    DEVICE void scale_rows(Sums& part, float (&rows)[Tiles::ROWS][4], u32 buffer) const {
#pragma unroll
        for (u32 i = 0; i < Tiles::ROWS * 2; i++) {
            const float scale = floats(X_SCALES_AT)[buffer * TILE_M + Tiles::warp_row() + i * 8 + lane_index() / 4];
#pragma unroll
            for (u32 j = 0; j < Tiles::PAIRS * 2; j++) {
                part[i / 2][j][i % 2 * 2] *= scale;
                part[i / 2][j][i % 2 * 2 + 1] *= scale;
            }
            rows[i / 2][i % 2 * 2] *= scale;
        }
    }

    // Adds the products of columns that share a scale.
    DEVICE void add_scaled(Sums& sum, const Sums& part, const float (&rows)[Tiles::ROWS][4], u32 at) const {
#pragma unroll
        for (u32 j = 0; j < Tiles::PAIRS * 2; j++) {
            const u32 column = at + Tiles::warp_column() + j * 8 + lane_index() % 4 * 2;
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                const float scale = floats(SCALES_AT)[column + e], minimum = Scales::MINIMUM ? floats(MINIMA_AT)[column + e] : 0.0f;
#pragma unroll
                for (u32 i = 0; i < Tiles::ROWS * 2; i++) {
                    float& to = sum[i / 2][j][i % 2 * 2 + e];
                    to = fused(scale, part[i / 2][j][i % 2 * 2 + e], to);
                    if (Scales::MINIMUM) to = fused(minimum, rows[i / 2][i % 2 * 2], to);
                }
            }
        }
    }

    DEVICE void multiply(Sums& sum, u32 stage, u32 buffer) const {
        constexpr u32 STEPS = Tiles::PARTS / PARTS;
        const u32 ones = pair_of<T>(1.0f, 1.0f);
#pragma unroll 1
        for (u32 part = 0; part < PARTS; part++) {
            Sums products = {};
            float rows[Tiles::ROWS][4] = {};
#pragma unroll
            for (u32 step = 0; step < STEPS; step++) {
                typename Tiles::Fragments fragments;
                fragments.load(shared + stage * Tiles::BYTES_M, shared + W_AT + buffer * Tiles::BYTES_N, part * STEPS + step);
                fragments.multiply(products);
                if (Scales::MINIMUM) {
#pragma unroll
                    for (u32 i = 0; i < Tiles::ROWS; i++) Multiply<T>::add(rows[i], fragments.a[i], ones, ones);
                }
            }
            if (p.x_scale) scale_rows(products, rows, buffer);
            add_scaled(sum, products, rows, (buffer * PARTS + part) * TILE_N);
        }
    }

    DEVICE void run() const {
        const u32 steps = ceil_div(p.k, Tiles::DEPTH);
        Sums sum = {};
        Ahead ahead = {};
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; stage++) {
            if (stage < steps) Tiles::load_x(p, place, stage * Tiles::DEPTH, shared + stage * Tiles::BYTES_M);
            commit_copies();
        }
        read(ahead, 0);
        write(ahead, 0);
        for (u32 step = 0; step < steps; step++) {
            wait_copies<STAGES - 2>();
            __syncthreads();
            const u32 next = step + STAGES - 1, depth = (step + 1) * Tiles::DEPTH;
            // The stage and the buffer that were multiplied before the barrier are free.
            if (next < steps) Tiles::load_x(p, place, next * Tiles::DEPTH, shared + next % STAGES * Tiles::BYTES_M);
            commit_copies();
            if (depth < p.k) read(ahead, depth);
            multiply(sum, step % STAGES, step % 2);
            if (depth < p.k) write(ahead, (step + 1) % 2);
        }
        Tiles::store(p, place, sum, floats(0));
    }
};

template <class T, class W, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N> DEVICE void gemm(const Linear& p) {
    using Product = Gemm<T, W, TILE_M, TILE_N, WARP_M, WARP_N>;
    extern __shared__ __attribute__((aligned(128))) u8 memory[];
    if (block_z() == p.groups) return zero_rest(p, Product::THREADS);
    const Place place = Product::Tiles::place(p);
    if (place.row0 < place.span.count) Product{p, group_of(p.weight, place.group), place, memory, shared_address(memory)}.run();
}

#define GEMM(type, T, suffix, W) \
    KERNEL __launch_bounds__(128, 4) gemm_16_##type##_##suffix(Linear p) { gemm<T, W, 16, 64, 16, 16>(p); } \
    KERNEL __launch_bounds__(128, 3) gemm_64_##type##_##suffix(Linear p) { gemm<T, W, 64, 64, 32, 32>(p); } \
    KERNEL __launch_bounds__(256, 1) gemm_128_##type##_##suffix(Linear p) { gemm<T, W, 128, 128, 64, 32>(p); }
#define GEMM_F16(suffix, W) GEMM(f16, f16, suffix, W)
#define GEMM_BF16(suffix, W) GEMM(bf16, bf16, suffix, W)
