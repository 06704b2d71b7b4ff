// What norms of rows share: a block takes a row.
#pragma once
#include "device.h"

// 1 / the root mean square of a row of x, or of r := round(x + r) if there is a residual. Its barrier lets all threads see the residual.
template <u32 THREADS, class T> DEVICE float norm_factor(const T* x, T* r, u32 cols, float eps, float* scratch) {
    float squares = 0.0f;
    for (u32 column = thread_index(); column < cols; column += THREADS) {
        float v = to_float(x[column]);
        if (r) {
            T sum = narrow<T>(v + to_float(r[column]));
            r[column] = sum;
            v = to_float(sum);
        }
        squares = fused(v, v, squares);
    }
    squares = reduce_block<THREADS>(squares, Sum(), scratch);
    return 1.0f / __builtin_sqrtf(squares / float(cols) + eps);
}
