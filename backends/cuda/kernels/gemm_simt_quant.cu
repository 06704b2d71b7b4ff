// Linear layers on many rows, with quantised weights: x is staged as f32.
#include "gemm_simt.h"
#include "quant.h"

#define GEMM(suffix, W) KERNEL __launch_bounds__(THREADS) gemm_simt_##suffix(Linear p) { gemm<float, W>(p); }
EACH_QUANTISED(GEMM)
