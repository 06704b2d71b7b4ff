// Kernels of which a block takes 1024 columns of a row.
#pragma once
#include "device.h"

constexpr u32 THREADS = 256, COLUMNS = 1024;

#define FOR_COLUMNS(column, cols) \
    for (u32 column = block_y() * COLUMNS + thread_index(); column < least(block_y() * COLUMNS + COLUMNS, cols); column += THREADS)
