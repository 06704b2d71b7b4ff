// Rows for a linear layer as its kernels want them: from multiples of 16 bytes on, whole eights of columns, perhaps in another order and
// as f32.
#include "device.h"

constexpr u32 THREADS = 256;

struct Stage {
    const void* x;
    void* y;
    // Null, or which column of x each of y is; and elements from group to group.
    const i32* order;
    i64 order_group;
    // Null, or the first row of each group and the end of the last: rows sorted by group. Otherwise each block row is a group.
    const i32* offsets;
    i64 x_stride, x_group, y_stride, y_group;
    u32 cols, padded, groups;
};

// The group of a row: the last that begins at or before it.
DEVICE u32 group_of_row(const Stage& p) {
    if (!p.offsets) return block_y();
    u32 group = 0;
    for (u32 g = 1; g < p.groups; g++) group = p.offsets[g] <= i32(block_x()) ? g : group;
    return group;
}

template <class X, class Y> DEVICE Y staged(X x) { return to_float(x); }
template <> DEVICE u16 staged<u16, u16>(u16 x) { return x; }
template <> DEVICE u32 staged<u32, u32>(u32 x) { return x; }

template <class X, class Y> DEVICE void stage(const Stage& p) {
    const X* x = static_cast<const X*>(p.x) + block_x() * p.x_stride + block_y() * p.x_group;
    Y* y = static_cast<Y*>(p.y) + block_x() * p.y_stride + block_y() * p.y_group;
    const i32* order = p.order ? p.order + group_of_row(p) * p.order_group : nullptr;
    for (u32 column = thread_index(); column < p.padded; column += THREADS)
        y[column] = column < p.cols ? staged<X, Y>(x[order ? least(u32(order[column]), p.cols - 1) : column]) : Y(0);
}

KERNEL __launch_bounds__(THREADS) stage_b16(Stage p) { stage<u16, u16>(p); }
KERNEL __launch_bounds__(THREADS) stage_b32(Stage p) { stage<u32, u32>(p); }
KERNEL __launch_bounds__(THREADS) stage_f16(Stage p) { stage<f16, float>(p); }
KERNEL __launch_bounds__(THREADS) stage_bf16(Stage p) { stage<bf16, float>(p); }
