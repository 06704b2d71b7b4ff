// PAGED_ATTENTION, VARLEN_ATTENTION and MLA_ATTENTION of f16 on matrix units.
#include "flash.h"

FLASH_EACH(f16, f16)
