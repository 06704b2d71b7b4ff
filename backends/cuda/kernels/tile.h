// Tiles of x and W in shared memory and their products on tensor cores.
#pragma once
#include "linear.h"
#include "mma.h"

// The tile of outputs that a block computes.
struct Place {
    Span span;
    u32 group, row0, column0;
};

// A block has TILE_M x TILE_N outputs, a warp WARP_M x WARP_N; DEPTH columns of x and W are in shared memory at a time.
template <class T, u32 TILE_M, u32 TILE_N, u32 WARP_M, u32 WARP_N, u32 COLUMNS> struct Tile {
    // Chunks are of 16 bytes.
    static constexpr u32 DEPTH = COLUMNS, CHUNK = 16 / sizeof(T), CHUNKS = DEPTH / CHUNK;
    static constexpr u32 WARPS_N = TILE_N / WARP_N, THREADS = TILE_M / WARP_M * WARPS_N * WARP;
    static constexpr u32 BYTES_M = TILE_M * CHUNKS * 16, BYTES_N = TILE_N * CHUNKS * 16, BYTES_SUMS = TILE_M * TILE_N * 4;
    // Chunks that a thread copies of each tile, one a line.
    static constexpr u32 LINES_M = TILE_M * CHUNKS / THREADS, LINES_N = TILE_N * CHUNKS / THREADS;
    static constexpr u32 ROWS = WARP_M / 16, PAIRS = WARP_N / 16;
    static_assert(CHUNKS <= 8 && LINES_M > 0 && LINES_N > 0 && TILE_M * CHUNKS % THREADS == 0 && TILE_N * CHUNKS % THREADS == 0, "whole lines");

    // What a warp multiplies at once are PARTS of DEPTH columns, 32 bytes of each row.
    static constexpr u32 PARTS = CHUNKS / 2;

    // Of a warp's outputs, as fragments.
    using Sums = typename Multiply<T>::Sum[ROWS][PAIRS * 2][4];

    // Blocks of one tile of W follow each other, so that it stays in the cache.
    DEVICE static Place place(const Linear& p) { return {rows_of(p, block_z()), block_z(), block_y() * TILE_M, block_x() * TILE_N}; }

    // Byte offset in a tile of chunk `chunk` of row `row`: chunks are permuted so that eight rows of one column of chunks lie in
    // different banks.
    DEVICE static u32 swizzled(u32 row, u32 chunk) { return (row * CHUNKS + (chunk ^ (row / (8 / CHUNKS) % CHUNKS))) * 16; }

    // The chunk and the lines that a thread copies.
    DEVICE static u32 chunk() { return thread_index() % CHUNKS; }
    DEVICE static u32 line(u32 i) { return (thread_index() + i * THREADS) / CHUNKS; }

    // Starts the copies of columns depth.. of x.
    DEVICE static void load_x(const Linear& p, const Place& place, u32 depth, u32 tile) {
        const u32 k = depth + chunk() * CHUNK;
#pragma unroll
        for (u32 i = 0; i < LINES_M; i++) {
            const u32 row = place.row0 + line(i);
            const bool in = row < place.span.count && k < p.k;
            copy_async(tile + swizzled(line(i), chunk()), x_row<T>(p, place.group, place.span.first + (in ? row : 0)) + (in ? k : 0), in ? 16 : 0);
        }
    }

    // Starts the copies of columns depth.. of x, and of W behind it, whose rows are numbers or codes of T.
    DEVICE static void load(const Linear& p, const Place& place, const Matrix& weight, u32 depth, u32 tile) {
        const u32 k = depth + chunk() * CHUNK;
        load_x(p, place, depth, tile);
#pragma unroll
        for (u32 i = 0; i < LINES_N; i++) {
            const u32 n = place.column0 + line(i);
            const bool in = n < p.n && k < p.k;
            const u8* row = weight.codes.data + (in ? n * weight.codes.pitch + k * sizeof(T) : 0);
            copy_async(tile + BYTES_M + swizzled(line(i), chunk()), row, in ? 16 : 0);
        }
    }

    // Where a warp's outputs begin.
    DEVICE static u32 warp_row() { return warp_index() / WARPS_N * WARP_M; }
    DEVICE static u32 warp_column() { return warp_index() % WARPS_N * WARP_N; }

    // A part of a warp's rows of x and W.
    struct Fragments {
        u32 a[ROWS][4], b[PAIRS][4];

        DEVICE void load(u32 tile_x, u32 tile_w, u32 part) {
            const u32 lane = lane_index();
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) load_matrices(a[i], tile_x + swizzled(warp_row() + i * 16 + (lane & 15), part * 2 + (lane >> 4)));
#pragma unroll
            for (u32 j = 0; j < PAIRS; j++)
                load_matrices(b[j], tile_w + swizzled(warp_column() + j * 16 + (lane & 7) + ((lane >> 4) << 3), part * 2 + ((lane >> 3) & 1)));
        }

        DEVICE void multiply(Sums& sum) const {
#pragma unroll
            for (u32 i = 0; i < ROWS; i++)
#pragma unroll
                for (u32 j = 0; j < PAIRS * 2; j++) Multiply<T>::add(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    };

    // Stores the outputs by way of `memory`, that of the tiles; `value` makes them of sums, rows and columns of the tile.
    template <class Value> DEVICE static void store(const Linear& p, const Place& place, const Sums& sum, float* memory, Value value) {
        const SumTile<TILE_M, TILE_N> sums = {memory};
        wait_copies<0>();
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < ROWS * 2; i++)
#pragma unroll
            for (u32 j = 0; j < PAIRS * 2; j++) {
                float* at = sums.at(warp_row() + i * 8 + lane_index() / 4, warp_column() + j * 8 + lane_index() % 4 * 2);
                at[0] = float(sum[i / 2][j][i % 2 * 2]);
                at[1] = float(sum[i / 2][j][i % 2 * 2 + 1]);
            }
        __syncthreads();
        sums.template store<THREADS>(p, place.group, place.span, place.row0, place.column0, value);
    }
    DEVICE static void store(const Linear& p, const Place& place, const Sums& sum, float* memory) {
        store(p, place, sum, memory, [](float sum, u32, u32) { return sum; });
    }
};
