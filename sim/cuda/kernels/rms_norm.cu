#include "device.h"

// out[t, i] = x[t, i] / sqrt(mean(x[t]²) + eps) * weight[i]; bf16, a block a row, n a multiple of 8.
KERNEL void rms_norm_bf16(u16* out, const u16* x, const u16* weight, float eps, u32 n) {
    __shared__ float partial[32];
    const u16* row = x + usize(block_index()) * n;
    float sum = 0;
    for (u32 i = thread_index() * 8; i < n; i += block_threads() * 8) {
        Vec4 v = *reinterpret_cast<const Vec4*>(row + i);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float low = widen(u16(v.v[k])), high = widen(u16(v.v[k] >> 16));
            sum += low * low + high * high;
        }
    }
#pragma unroll
    for (int lanes = 16; lanes; lanes >>= 1) sum += shuffle_xor(sum, lanes);
    if (lane_index() == 0) partial[warp_index()] = sum;
    __syncthreads();
    float total = 0;
    for (u32 w = 0; w < block_threads() / 32; w++) total += partial[w];
    float scale = rsqrt_approx(total / float(n) + eps);
    for (u32 i = thread_index(); i < n; i += block_threads())
        out[usize(block_index()) * n + i] = narrow(widen(row[i]) * scale * widen(weight[i]));
}
