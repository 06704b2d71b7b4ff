// PAGED_ATTENTION, VARLEN_ATTENTION and MLA_ATTENTION of bf16 on matrix units.
#include "flash.h"

FLASH_EACH(bf16, bf16)
