#include "device.h"

// c[m, n] = a[m, k] · b[n, k]ᵀ; bf16, f32 sums. Tiles of 64×64×32, three stages of cp.async, 4 warps of 32×32 each.
constexpr int TILE = 64, DEPTH = 32, STAGES = 3;

// Element offset of chunk `chunk` (8 elements) of row `row`: chunks are permuted so that eight rows of one column of
// chunks lie in different banks.
DEVICE u32 swizzled(u32 row, u32 chunk) { return row * DEPTH + ((chunk ^ ((row >> 1) & 3)) << 3); }

struct Operands {
    const u16 *a, *b;
    u32 m, n, k, row, column;
};

DEVICE void load_tile(const Operands& o, u32 shared, u32 depth) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 row = (thread_index() + i * 128) >> 2, chunk = thread_index() & 3, k = depth + chunk * 8;
        bool in_a = o.row + row < o.m && k < o.k, in_b = o.column + row < o.n && k < o.k;
        copy_async(shared + swizzled(row, chunk) * 2, in_a ? o.a + usize(o.row + row) * o.k + k : o.a, in_a ? 16 : 0);
        copy_async(shared + (TILE * DEPTH + swizzled(row, chunk)) * 2,
                   in_b ? o.b + usize(o.column + row) * o.k + k : o.b, in_b ? 16 : 0);
    }
}

KERNEL void __launch_bounds__(128) gemm_bf16_nt(u16* c, const u16* a, const u16* b, u32 m, u32 n, u32 k) {
    extern __shared__ __attribute__((aligned(128))) u8 memory[];
    const u32 base = shared_address(memory), stage_bytes = 2 * TILE * DEPTH * 2;
    const u32 lane = lane_index(), warp_row = (warp_index() >> 1) * 32, warp_column = (warp_index() & 1) * 32;
    const Operands o = {a, b, m, n, k, block_index_y() * TILE, block_index() * TILE};
    const u32 steps = (k + DEPTH - 1) / DEPTH;
    float sum[2][4][4] = {};
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (s < steps) load_tile(o, base + s * stage_bytes, s * DEPTH);
        commit_copies();
    }
    for (u32 step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        const u32 tile_a = base + step % STAGES * stage_bytes, tile_b = tile_a + TILE * DEPTH * 2;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 fa[2][4], fb[2][4];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                load_matrix4(fa[i], tile_a + swizzled(warp_row + i * 16 + (lane & 15), half * 2 + (lane >> 4)) * 2);
                u32 row = warp_column + i * 16 + (lane & 7) + ((lane >> 4) << 3);
                load_matrix4(fb[i], tile_b + swizzled(row, half * 2 + ((lane >> 3) & 1)) * 2);
            }
#pragma unroll
            for (u32 i = 0; i < 2; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) multiply_bf16(sum[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
        }
        if (step + STAGES - 1 < steps)
            load_tile(o, base + (step + STAGES - 1) % STAGES * stage_bytes, (step + STAGES - 1) * DEPTH);
        commit_copies();
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++)
#pragma unroll
        for (u32 j = 0; j < 4; j++)
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 row = o.row + warp_row + i * 16 + (lane >> 2) + h * 8;
                u32 column = o.column + warp_column + j * 8 + (lane & 3) * 2;
                if (row < m && column < n)
                    *reinterpret_cast<u32*>(c + usize(row) * n + column) = narrow2(sum[i][j][h * 2], sum[i][j][h * 2 + 1]);
            }
}
