// Linear layers on many rows of f16 with weights of GGUF files in blocks of 32 columns.
#include "gemm_quant.h"

EACH_GGUF(GEMM_F16)
