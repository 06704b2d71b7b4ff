// Linear layers on many rows, with weights of floats, where x and W are of different types or of f32.
#include "gemm_simt.h"

#define GEMM(x, X, w, W) KERNEL __launch_bounds__(THREADS) gemm_simt_##x##_##w(Linear p) { gemm<X, W>(p); }
GEMM(f32, float, f32, float)
GEMM(f32, float, f16, f16)
GEMM(f32, float, bf16, bf16)
GEMM(f16, f16, f32, float)
GEMM(f16, f16, bf16, bf16)
GEMM(bf16, bf16, f32, float)
GEMM(bf16, bf16, f16, f16)
