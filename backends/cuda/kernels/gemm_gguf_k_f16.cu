// Linear layers on many rows of f16 with weights of GGUF files in blocks of 256 columns.
#include "gemm_quant.h"

EACH_GGUF_K(GEMM_F16)
