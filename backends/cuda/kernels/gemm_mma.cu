// Linear layers on many rows with tensor cores: x and W of the same 16-bit type. Tiles go through stages of shared memory that
// cp.async fills ahead.
#include "linear.h"
#include "mma.h"

constexpr u32 DEPTH = 32;

// Byte offset in a tile of chunk `chunk` (8 elements) of row `row`: chunks are permuted so that eight rows of one column of chunks lie in
// different banks.
DEVICE u32 swizzled(u32 row, u32 chunk) { return (row * DEPTH + ((chunk ^ ((row >> 1) & 3)) << 3)) * 2; }

// A block has TILE_M x TILE_N outputs, a warp WARP_M x WARP_N.
template <class T, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N, u32 STAGES> struct Gemm {
    static constexpr u32 WARPS_N = TILE_N / WARP_N, THREADS = TILE_M / WARP_M * WARPS_N * WARP;
    static constexpr u32 BYTES_M = TILE_M * DEPTH * 2, STAGE = BYTES_M + TILE_N * DEPTH * 2;
    static constexpr u32 ROWS = WARP_M / 16, PAIRS = WARP_N / 16;
    static_assert(TILE_M * TILE_N * 4 <= STAGES * STAGE, "the sums take the stages' place");

    const Linear& p;
    Matrix weight;
    Span span;
    u32 group, row0, column0, shared;

    // Starts the copies of columns depth.. of both tiles.
    DEVICE void load(u32 stage, u32 depth) const {
        const u32 tile = shared + stage * STAGE, chunk = thread_index() % 4, k = depth + chunk * 8;
#pragma unroll
        for (u32 i = 0; i < TILE_M * 4 / THREADS; i++) {
            u32 line = (thread_index() + i * THREADS) / 4;
            bool in = row0 + line < span.count && k < p.k;
            copy_async(tile + swizzled(line, chunk), x_row<T>(p, group, span.first + (in ? row0 + line : 0)) + (in ? k : 0), in ? 16 : 0);
        }
#pragma unroll
        for (u32 i = 0; i < TILE_N * 4 / THREADS; i++) {
            u32 line = (thread_index() + i * THREADS) / 4;
            bool in = column0 + line < p.n && k < p.k;
            const u8* row = weight.codes.data + (in ? (column0 + line) * weight.codes.pitch + k * 2 : 0);
            copy_async(tile + BYTES_M + swizzled(line, chunk), row, in ? 16 : 0);
        }
    }

    DEVICE void multiply(float (&sum)[ROWS][PAIRS * 2][4], u32 stage, u32 row, u32 column) const {
        const u32 tile_x = shared + stage * STAGE, tile_w = tile_x + BYTES_M, lane = lane_index();
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 a[ROWS][4], b[PAIRS][4];
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) load_matrices(a[i], tile_x + swizzled(row + i * 16 + (lane & 15), half * 2 + (lane >> 4)));
#pragma unroll
            for (u32 j = 0; j < PAIRS; j++)
                load_matrices(b[j], tile_w + swizzled(column + j * 16 + (lane & 7) + ((lane >> 4) << 3), half * 2 + ((lane >> 3) & 1)));
#pragma unroll
            for (u32 i = 0; i < ROWS; i++)
#pragma unroll
                for (u32 j = 0; j < PAIRS * 2; j++) Multiply<T>::add(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }

    DEVICE void store(const float (&sum)[ROWS][PAIRS * 2][4], u32 row, u32 column, float* memory) const {
        const SumTile<TILE_M, TILE_N> sums = {memory};
        // The stages' memory is used again.
        wait_copies<0>();
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < ROWS * 2; i++)
#pragma unroll
            for (u32 j = 0; j < PAIRS * 2; j++) {
                float* at = sums.at(row + i * 8 + lane_index() / 4, column + j * 8 + lane_index() % 4 * 2);
                at[0] = sum[i / 2][j][i % 2 * 2];
                at[1] = sum[i / 2][j][i % 2 * 2 + 1];
            }
        __syncthreads();
        sums.template store<THREADS>(p, group, span, row0, column0);
    }

    DEVICE void run(u8* memory) const {
        const u32 steps = ceil_div(p.k, DEPTH), row = warp_index() / WARPS_N * WARP_M, column = warp_index() % WARPS_N * WARP_N;
        float sum[ROWS][PAIRS * 2][4] = {};
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; stage++) {
            if (stage < steps) load(stage, stage * DEPTH);
            commit_copies();
        }
        for (u32 step = 0; step < steps; step++) {
            wait_copies<STAGES - 2>();
            __syncthreads();
            multiply(sum, step % STAGES, row, column);
            // The stage that was multiplied before the barrier is free.
            if (step + STAGES - 1 < steps) load((step + STAGES - 1) % STAGES, (step + STAGES - 1) * DEPTH);
            commit_copies();
        }
        store(sum, row, column, reinterpret_cast<float*>(memory));
    }
};

template <class T, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N, u32 STAGES> DEVICE void gemm(const Linear& p) {
    using Tiled = Gemm<T, TILE_M, TILE_N, WARP_M, WARP_N, STAGES>;
    extern __shared__ __attribute__((aligned(128))) u8 memory[];
    const u32 group = block_z();
    if (group == p.groups) return zero_rest(p, Tiled::THREADS);
    const Span span = rows_of(p, group);
    // Blocks of one tile of W follow each other, so that it stays in the cache.
    const u32 row0 = block_y() * TILE_M, column0 = block_x() * TILE_N;
    if (row0 >= span.count) return;
    Tiled{p, group_of(p.weight, group), span, group, row0, column0, shared_address(memory)}.run(memory);
}

#define GEMM(suffix, T) \
    KERNEL __launch_bounds__(128) gemm_64_##suffix(Linear p) { gemm<T, 64, 64, 32, 32, 4>(p); } \
    KERNEL __launch_bounds__(256) gemm_128_##suffix(Linear p) { gemm<T, 128, 128, 64, 32, 4>(p); }
GEMM(f16, f16)
GEMM(bf16, bf16)

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
