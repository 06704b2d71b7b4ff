// Linear layers on many rows, x and W both codes of f8e4m3, which mma.sync takes from compute capability 8.9 on. For older ones the module is
// empty. Tiles go through stages of shared memory that cp.async fills ahead.
//
// Tensor cores may keep fewer bits of sums of such products than f32 has: about 14 were found on an H100 (DeepSeek-V3's report, section
// 3.3.2). So they sum 128 columns only, which have one scale a row of x and of W; those sums are scaled and added up in f32.
//
// 8.9 has units for these products (QMMA). For 9.0 the vendor's assembler makes f16 of the codes in registers and multiplies that, at the
// rate of 16 bits: what is saved there is half of the bytes that go through memory, and the widening of codes in software.
#include "quant.h"
#include "tile.h"

#if __CUDA_ARCH__ >= 890

template <u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N, u32 DEPTH, u32 STAGES> struct Gemm {
    using Tiles = Tile<e4m3, TILE_M, TILE_N, WARP_M, WARP_N, DEPTH>;
    using Sums = typename Tiles::Sums;
    using Scales = Fp8::Scales;
    static constexpr u32 STAGE = Tiles::BYTES_M + Tiles::BYTES_N, SCALES_AT = STAGES * STAGE;
    // Steps of columns with one scale.
    static constexpr u32 TOGETHER = X_SCALE_COLUMNS / DEPTH;
    static_assert(Tiles::BYTES_SUMS <= SCALES_AT, "the sums take the stages' place");
    static_assert(TILE_M <= Tiles::THREADS && TILE_N <= Tiles::THREADS, "a thread has a scale of each at most");

    const Linear& p;
    Matrix weight;
    Place place;
    u8* memory;
    u32 shared;

    DEVICE void load(u32 stage, u32 depth) const { Tiles::load(p, place, weight, depth, shared + stage * STAGE); }

    // What a thread has read for the next columns: a scale of a row of x and of W.
    struct Ahead {
        float x;
        typename Scales::Raw w;
    };

    DEVICE Ahead read(u32 depth) const {
        Ahead ahead = {};
        const u32 row = place.row0 + thread_index(), n = place.column0 + thread_index();
        if (thread_index() < TILE_M && row < place.span.count && depth < p.k)
            ahead.x = p.x_scale[u64(place.span.first + row) * p.x_scales + depth / X_SCALE_COLUMNS];
        if (thread_index() < TILE_N && n < p.n && depth < p.k) ahead.w = Scales::load(weight, n, depth);
        return ahead;
    }

    // Scales of x, then of W.
    DEVICE float* scales(u32 buffer) const { return reinterpret_cast<float*>(memory + SCALES_AT) + buffer * (TILE_M + TILE_N); }

    DEVICE void write(const Ahead& ahead, u32 buffer) const {
        if (thread_index() < TILE_M) scales(buffer)[thread_index()] = ahead.x;
        if (thread_index() < TILE_N) scales(buffer)[TILE_M + thread_index()] = Scales::factor(weight, ahead.w).scale;
    }

    // Adds the products of columns that share scales.
    DEVICE void add_scaled(Sums& sum, const Sums& part, u32 buffer) const {
        const float *x = scales(buffer) + Tiles::warp_row() + lane_index() / 4, *w = scales(buffer) + TILE_M + Tiles::warp_column() + lane_index() % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < Tiles::ROWS * 2; i++) {
            const float of_row = x[i * 8];
#pragma unroll
            for (u32 j = 0; j < Tiles::PAIRS * 2; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float& to = sum[i / 2][j][i % 2 * 2 + e];
                    to = fused(w[j * 8 + e], part[i / 2][j][i % 2 * 2 + e] * of_row, to);
                }
        }
    }

    DEVICE void multiply(Sums& part, u32 tile) const {
#pragma unroll 1
        for (u32 i = 0; i < Tiles::PARTS; i++) {
            typename Tiles::Fragments fragments;
            fragments.load(tile, tile + Tiles::BYTES_M, i);
            fragments.multiply(part);
        }
    }

    DEVICE void run() const {
        const u32 steps = ceil_div(p.k, DEPTH);
        Sums sum = {}, part = {};
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; stage++) {
            if (stage < steps) load(stage, stage * DEPTH);
            commit_copies();
        }
        write(read(0), 0);
        Ahead ahead = {};
        for (u32 step = 0; step < steps; step++) {
            wait_copies<STAGES - 2>();
            __syncthreads();
            const u32 next = step + STAGES - 1, group = step / TOGETHER;
            // The stage that was multiplied before the barrier is free.
            if (next < steps) load(next % STAGES, next * DEPTH);
            commit_copies();
            if (step % TOGETHER == 0) ahead = read((group + 1) * X_SCALE_COLUMNS);
            multiply(part, shared + step % STAGES * STAGE);
            if (step % TOGETHER == TOGETHER - 1 || step + 1 == steps) {
                add_scaled(sum, part, group % 2);
#pragma unroll
                for (u32 i = 0; i < Tiles::ROWS; i++)
#pragma unroll
                    for (u32 j = 0; j < Tiles::PAIRS * 2; j++)
#pragma unroll
                        for (u32 e = 0; e < 4; e++) part[i][j][e] = 0.0f;
                // Read last before the barrier.
                write(ahead, (group + 1) % 2);
            }
        }
        Tiles::store(p, place, sum, reinterpret_cast<float*>(memory));
    }
};

template <u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N, u32 DEPTH, u32 STAGES> DEVICE void gemm(const Linear& p) {
    using Product = Gemm<TILE_M, TILE_N, WARP_M, WARP_N, DEPTH, STAGES>;
    extern __shared__ __attribute__((aligned(128))) u8 memory[];
    if (block_z() == p.groups) return zero_rest(p, Product::Tiles::THREADS);
    const Place place = Product::Tiles::place(p);
    if (place.row0 < place.span.count) Product{p, group_of(p.weight, place.group), place, memory, shared_address(memory)}.run();
}

KERNEL __launch_bounds__(128) gemm_16_fp8(Linear p) { gemm<16, 64, 16, 16, 128, 3>(p); }
KERNEL __launch_bounds__(128) gemm_64_fp8(Linear p) { gemm<64, 64, 32, 32, 64, 4>(p); }
KERNEL __launch_bounds__(256) gemm_128_fp8(Linear p) { gemm<128, 128, 64, 32, 64, 4>(p); }

#endif
