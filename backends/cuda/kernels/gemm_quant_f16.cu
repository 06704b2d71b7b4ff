// Linear layers on many rows of f16 with weights quantised with float scales.
#include "gemm_quant.h"

EACH_SCALED(GEMM_F16)
