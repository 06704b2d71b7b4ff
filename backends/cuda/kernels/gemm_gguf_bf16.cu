// Linear layers on many rows of bf16, or of codes, with weights of GGUF files in blocks of 32 columns.
#include "gemm_quant.h"

EACH_GGUF(GEMM_BF16)
