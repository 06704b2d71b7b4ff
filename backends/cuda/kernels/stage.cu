// Rows for a linear layer as its kernels want them: from multiples of 16 bytes on, whole eights of columns, perhaps in another order.
#include "device.h"

constexpr u32 THREADS = 256;

struct Stage {
    const void* x;
    void* y;
    // Null, or which column of x each of y is.
    const i32* order;
    i64 x_stride, x_group, y_stride, y_group;
    u32 cols, padded;
};

template <class T> DEVICE void stage(const Stage& p) {
    const T* x = static_cast<const T*>(p.x) + block_x() * p.x_stride + block_y() * p.x_group;
    T* y = static_cast<T*>(p.y) + block_x() * p.y_stride + block_y() * p.y_group;
    for (u32 column = thread_index(); column < p.padded; column += THREADS)
        y[column] = column < p.cols ? x[p.order ? p.order[column] : column] : T(0);
}

KERNEL __launch_bounds__(THREADS) stage_b16(Stage p) { stage<u16>(p); }
KERNEL __launch_bounds__(THREADS) stage_b32(Stage p) { stage<u32>(p); }
