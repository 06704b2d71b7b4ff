// Linear layers on many rows of bf16, or of codes, with weights quantised with float scales.
#include "gemm_quant.h"

EACH_SCALED(GEMM_BF16)
