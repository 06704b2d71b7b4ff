// Linear layers on many rows of bf16, or of codes, with weights of GGUF files in blocks of 256 columns.
#include "gemm_quant.h"

EACH_GGUF_K(GEMM_BF16)
