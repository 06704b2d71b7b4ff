#include "device.h"

// out[i] = a[i] + b[i]; f32, n elements.
KERNEL void vector_add_f32(float* out, const float* a, const float* b, u32 n) {
    u32 i = block_index() * block_threads() + thread_index();
    if (i < n) out[i] = a[i] + b[i];
}
