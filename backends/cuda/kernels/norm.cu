// RMS_NORM: a block a row.
#include "norm.h"

constexpr u32 THREADS = 256;

struct RmsNorm {
    Rows x, y, r;
    const void* gamma;
    u32 gamma_type, cols;
    // Whether there is a residual: r := round(x + r) is normed then.
    u32 residual;
    float eps, gamma_plus;
};

template <class T> DEVICE void rms_norm(const RmsNorm& p) {
    __shared__ float scratch[THREADS / WARP];
    const T* x = row_of<T>(p.x, block_x());
    T* y = row_of<T>(p.y, block_x());
    T* r = p.residual ? row_of<T>(p.r, block_x()) : nullptr;
    const float factor = norm_factor<THREADS>(x, r, p.cols, p.eps, scratch);
    const T* normed = r ? r : x;
    for (u32 column = thread_index(); column < p.cols; column += THREADS) {
        float gamma = load_float(p.gamma, p.gamma_type, column) + p.gamma_plus;
        y[column] = narrow<T>(to_float(normed[column]) * factor * gamma);
    }
}

#define RMS_NORM(suffix, T) KERNEL __launch_bounds__(THREADS) rms_norm_##suffix(RmsNorm p) { rms_norm<T>(p); }
EACH_FLOAT(RMS_NORM)
