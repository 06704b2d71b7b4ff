// Linear layers on few rows, with weights of floats.
#include "gemv.h"

#define GEMV(x, X, w, W) \
    KERNEL __launch_bounds__(THREADS) gemv_1_##x##_##w(Linear p) { gemv<X, W, 1, 4>(p); } \
    KERNEL __launch_bounds__(THREADS, 4) gemv_4_##x##_##w(Linear p) { gemv<X, W, 4, 4>(p); }
#define GEMV_DENSE(x, X) GEMV(x, X, f32, float) GEMV(x, X, f16, f16) GEMV(x, X, bf16, bf16)
EACH_FLOAT(GEMV_DENSE)
