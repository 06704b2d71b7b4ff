#include "device.h"

// out[s, h] = softmax(scale · q[s, h] · Kᵀ) · V over the `lens[s]` keys of sequence s; bf16, heads of 128.
// q, out: [seqs, heads, 128]; keys, values: [pages, page, kv_heads, 128]; table: [seqs, max_pages].
// A block a (sequence, head) of 4 warps; a warp takes every fourth key, with a running maximum and sum (online softmax).
struct Shape { u32 heads, kv_heads, max_pages, page; };

DEVICE void load_row(float (&x)[4], const u16* row) {
    Vec2 v = *reinterpret_cast<const Vec2*>(row + lane_index() * 4);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = widen(u16(v.v[i >> 1] >> (i & 1) * 16));
}

KERNEL void __launch_bounds__(128) paged_decode_bf16(u16* out, const u16* q, const u16* keys, const u16* values,
                                                     const int* table, const int* lens, float scale, Shape s) {
    __shared__ float sums[4][128], maxima[4], weights[4];
    const u32 seq = block_index(), head = block_index_y(), kv = head / (s.heads / s.kv_heads), warp = warp_index();
    const u32 len = lens[seq];
    float query[4], sum[4] = {}, maximum = negative_infinity(), weight = 0;
    load_row(query, q + (usize(seq) * s.heads + head) * 128);
    for (u32 t = warp; t < len; t += 4) {
        usize slot = usize(table[seq * s.max_pages + t / s.page]) * s.page + t % s.page;
        float x[4], score = 0;
        load_row(x, keys + (slot * s.kv_heads + kv) * 128);
#pragma unroll
        for (int i = 0; i < 4; i++) score += query[i] * x[i];
#pragma unroll
        for (int lanes = 16; lanes; lanes >>= 1) score += shuffle_xor(score, lanes);
        score *= scale * 1.44269504f;
        float next = max(maximum, score), keep = exp2_approx(maximum - next), add = exp2_approx(score - next);
        load_row(x, values + (slot * s.kv_heads + kv) * 128);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = sum[i] * keep + add * x[i];
        weight = weight * keep + add;
        maximum = next;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) sums[warp][lane_index() * 4 + i] = sum[i];
    if (lane_index() == 0) maxima[warp] = maximum, weights[warp] = weight;
    __syncthreads();
    float most = max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3])), total = 0, value = 0;
    for (int w = 0; w < 4; w++) {
        float share = maxima[w] == negative_infinity() ? 0.f : exp2_approx(maxima[w] - most);
        total += weights[w] * share;
        value += sums[w][thread_index()] * share;
    }
    out[(usize(seq) * s.heads + head) * 128 + thread_index()] = narrow(total > 0 ? value / total : 0.f);
}
