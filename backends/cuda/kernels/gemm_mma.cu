// Linear layers on many rows with tensor cores: x and W of the same 16-bit type, or both codes of i8. Tiles go through stages of shared
// memory that cp.async fills ahead.
#include "tile.h"

// Outputs of sums.
template <class T> struct Output {
    const Linear& p;
    const Matrix& weight;
    const Place& place;
    DEVICE float operator()(float sum, u32, u32) const { return sum; }
};
// Codes have a scale a row of x and a row of W.
template <> DEVICE float Output<i8>::operator()(float sum, u32 row, u32 column) const {
    const u8* scale = weight.scales.data + (place.column0 + column) * weight.scales.pitch;
    return sum * p.x_scale[place.span.first + place.row0 + row] * load_float(scale, weight.scale_type, 0);
}

template <class T, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N, u32 DEPTH, u32 STAGES> struct Gemm {
    using Tiles = Tile<T, TILE_M, TILE_N, WARP_M, WARP_N, DEPTH>;
    static constexpr u32 STAGE = Tiles::BYTES_M + Tiles::BYTES_N;
    static_assert(Tiles::BYTES_SUMS <= STAGES * STAGE, "the sums take the stages' place");

    const Linear& p;
    Matrix weight;
    Place place;
    u32 shared;

    DEVICE void load(u32 stage, u32 depth) const { Tiles::load(p, place, weight, depth, shared + stage * STAGE); }

    DEVICE void run(u8* memory) const {
        const u32 steps = ceil_div(p.k, DEPTH);
        typename Tiles::Sums sum = {};
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; stage++) {
            if (stage < steps) load(stage, stage * DEPTH);
            commit_copies();
        }
        for (u32 step = 0; step < steps; step++) {
            wait_copies<STAGES - 2>();
            __syncthreads();
            const u32 tile = shared + step % STAGES * STAGE;
#pragma unroll
            for (u32 part = 0; part < Tiles::PARTS; part++) {
                typename Tiles::Fragments fragments;
                fragments.load(tile, tile + Tiles::BYTES_M, part);
                fragments.multiply(sum);
            }
            // The stage that was multiplied before the barrier is free.
            if (step + STAGES - 1 < steps) load((step + STAGES - 1) % STAGES, (step + STAGES - 1) * DEPTH);
            commit_copies();
        }
        Tiles::store(p, place, sum, reinterpret_cast<float*>(memory), Output<T>{p, weight, place});
    }
};

template <class T, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N, u32 DEPTH, u32 STAGES> DEVICE void gemm(const Linear& p) {
    using Product = Gemm<T, TILE_M, TILE_N, WARP_M, WARP_N, DEPTH, STAGES>;
    extern __shared__ __attribute__((aligned(128))) u8 memory[];
    if (block_z() == p.groups) return zero_rest(p, Product::Tiles::THREADS);
    const Place place = Product::Tiles::place(p);
    if (place.row0 < place.span.count) Product{p, group_of(p.weight, place.group), place, shared_address(memory)}.run(memory);
}

#define GEMM(suffix, T) \
    KERNEL __launch_bounds__(128) gemm_64_##suffix(Linear p) { gemm<T, 64, 64, 32, 32, 32, 4>(p); } \
    KERNEL __launch_bounds__(256) gemm_128_##suffix(Linear p) { gemm<T, 128, 128, 64, 32, 32, 4>(p); }
GEMM(f16, f16)
GEMM(bf16, bf16)

KERNEL __launch_bounds__(128) gemm_16_i8(Linear p) { gemm<i8, 16, 64, 16, 16, 128, 3>(p); }
KERNEL __launch_bounds__(128) gemm_64_i8(Linear p) { gemm<i8, 64, 64, 32, 32, 64, 4>(p); }
KERNEL __launch_bounds__(256) gemm_128_i8(Linear p) { gemm<i8, 128, 128, 64, 32, 64, 4>(p); }

// ---- At most 16 rows: the weights are read once, so they go straight to registers ----
//
// A lane reads 16 bytes of its row of W and of x: columns 8t..8t+7 of 32, t = lane % 4. The two products over 16 columns take what the lane
// has in an order of their own, the same for both: columns 8t..8t+3 in the first, the others in the second.

constexpr u32 SKINNY_WARPS = 8, SKINNY_ROWS = 16, SKINNY_COLUMNS = 16;

// Sums of neighbouring columns, stored at once: a half of a warp then meets no bank more than twice.
struct alignas(8) Pair {
    float low, high;
};

DEVICE Words4 load_words(const void* from, bool in) { return in ? *static_cast<const Words4*>(from) : Words4{}; }

template <class T> DEVICE void skinny(const Linear& p) {
    __shared__ Pair partial[SKINNY_WARPS][SKINNY_ROWS][SKINNY_COLUMNS / 2];
    const u32 group = block_z(), lane = lane_index(), g = lane / 4, warp = warp_index();
    if (group == p.groups) return zero_rest(p, SKINNY_WARPS * WARP);
    const Span span = rows_of(p, group);
    const u32 row0 = block_y() * SKINNY_ROWS, column0 = block_x() * SKINNY_COLUMNS;
    if (row0 >= span.count) return;
    const Matrix weight = group_of(p.weight, group);
    const u32 last = span.count - 1 - row0;
    const T *low = x_row<T>(p, group, span.first + row0 + least(g, last)), *high = x_row<T>(p, group, span.first + row0 + least(g + 8, last));
    const u8* w[2];
#pragma unroll
    for (u32 j = 0; j < 2; j++) w[j] = weight.codes.data + least(column0 + j * 8 + g, p.n - 1) * weight.codes.pitch;
    float sum[2][4] = {};
    for (u32 k = warp * 32 + lane % 4 * 8; k - lane % 4 * 8 < p.k; k += SKINNY_WARPS * 32) {
        const bool in = k < p.k;
        Words4 a = load_words(low + k, in && g <= last), b = load_words(high + k, in && g + 8 <= last);
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            Words4 c = load_words(w[j] + k * 2, in);
            Multiply<T>::add(sum[j], {a.v[0], b.v[0], a.v[1], b.v[1]}, c.v[0], c.v[1]);
            Multiply<T>::add(sum[j], {a.v[2], b.v[2], a.v[3], b.v[3]}, c.v[2], c.v[3]);
        }
    }
#pragma unroll
    for (u32 j = 0; j < 2; j++)
#pragma unroll
        for (u32 e = 0; e < 2; e++) partial[warp][g + e * 8][j * 4 + lane % 4] = {sum[j][e * 2], sum[j][e * 2 + 1]};
    __syncthreads();
    const u32 row = thread_index() / SKINNY_COLUMNS, column = thread_index() % SKINNY_COLUMNS;
    float total = 0.0f;
#pragma unroll
    for (u32 i = 0; i < SKINNY_WARPS; i++) total += reinterpret_cast<const float*>(partial[i][row])[column];
    if (row <= last && column0 + column < p.n) 
        store_output(p, group, span.first + row0 + row, column0 + column, total + bias_of(p, column0 + column));
}

KERNEL __launch_bounds__(256) gemm_16_f16(Linear p) { skinny<f16>(p); }
KERNEL __launch_bounds__(256) gemm_16_bf16(Linear p) { skinny<bf16>(p); }
