// Linear layers on few rows, with quantised weights: x is staged as f32.
#include "gemv.h"
#include "quant.h"

#define GEMV(suffix, W) \
    KERNEL __launch_bounds__(THREADS, 4) gemv_1_##suffix(Linear p) { gemv<float, W, 1, 4>(p); } \
    KERNEL __launch_bounds__(THREADS, 4) gemv_4_##suffix(Linear p) { gemv<float, W, 4, 2>(p); }
EACH_QUANTISED(GEMV)
