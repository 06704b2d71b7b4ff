// COPY between types that elementwise.cu has no kernel for: integers and floats of 8 bits on one side. A block takes 1024 columns of a row.
#include "cell.h"
#include "columns.h"

// After FloatType.
enum Type : u32 { E4M3 = 3, E5M2, I8, U8, I32, U32, I64, U64 };

struct Convert {
    Rows x, y;
    // Steps of the last dim in elements.
    i64 x_step, y_step;
    u32 cols, from, to;
};

// A number: a float, or a whole number of which that of a u64 may be beyond an i64.
struct Number {
    bool whole, beyond;
    float real;
    i64 value;
};

template <class T> DEVICE T cell(const Convert& p, u64 row, u32 column) { return row_of<T>(p.x, row)[column * p.x_step]; }
DEVICE Number real(float x) { return {false, false, x, 0}; }
DEVICE Number whole(i64 x) { return {true, false, 0.0f, x}; }

DEVICE Number load(const Convert& p, u64 row, u32 column) {
    switch (p.from) {
        case F32: return real(cell<float>(p, row, column));
        case F16: return real(to_float(cell<f16>(p, row, column)));
        case BF16: return real(to_float(cell<bf16>(p, row, column)));
        case E4M3: return real(to_float(cell<e4m3>(p, row, column)));
        case E5M2: return real(to_float(cell<e5m2>(p, row, column)));
        case I8: return whole(cell<i8>(p, row, column));
        case U8: return whole(cell<u8>(p, row, column));
        case I32: return whole(cell<i32>(p, row, column));
        case U32: return whole(cell<u32>(p, row, column));
        case I64: return whole(cell<i64>(p, row, column));
        default: {
            i64 value = i64(cell<u64>(p, row, column));
            return {true, value < 0, 0.0f, value};
        }
    }
}

// A whole number, the nearest of a float with ties to even, at the ends of [low, high] if it is beyond; NaN gives 0.
DEVICE i64 whole_of(const Number& n, i64 low, i64 high) {
    if (n.beyond) return high;
    if (n.whole) return n.value < low ? low : n.value > high ? high : n.value;
    if (n.real != n.real) return 0;
    if (n.real >= 9223372036854775808.0f) return high;
    if (n.real <= -9223372036854775808.0f) return low;
    i64 value = __nvvm_f2ll_rn(n.real);
    return value < low ? low : value > high ? high : value;
}

DEVICE u64 unsigned_of(const Number& n) {
    if (n.whole) return n.beyond || n.value > 0 ? u64(n.value) : 0;
    if (!(n.real > 0.0f)) return 0;
    return n.real >= 18446744073709551616.0f ? ~u64(0) : __nvvm_f2ull_rn(n.real);
}

// A float that rounds to a narrower one as the number does: a whole number that is none is rounded to an odd last bit.
DEVICE float real_of(const Number& n) {
    if (!n.whole) return n.real;
    u64 size = n.beyond || n.value > 0 ? u64(n.value) : u64(-n.value);
    float near = __nvvm_ull2f_rz(size);
    u32 bits = __builtin_bit_cast(u32, near) | (__nvvm_f2ull_rz(near) != size);
    float odd = __builtin_bit_cast(float, bits);
    return n.beyond || n.value >= 0 ? odd : -odd;
}
DEVICE float f32_of(const Number& n) {
    return !n.whole ? n.real : n.beyond ? __nvvm_ull2f_rn(u64(n.value)) : __nvvm_ll2f_rn(n.value);
}

template <class T> DEVICE void put(const Convert& p, u64 row, u32 column, T value) { row_of<T>(p.y, row)[column * p.y_step] = value; }

DEVICE void store(const Convert& p, u64 row, u32 column, const Number& n) {
    constexpr i64 most = 0x7fffffffffffffff;
    switch (p.to) {
        case F32: return put(p, row, column, f32_of(n));
        case F16: return put(p, row, column, narrow<f16>(real_of(n)));
        case BF16: return put(p, row, column, narrow<bf16>(real_of(n)));
        case E4M3: return put(p, row, column, narrow<e4m3>(real_of(n)));
        case E5M2: return put(p, row, column, narrow<e5m2>(real_of(n)));
        case I8: return put(p, row, column, i8(whole_of(n, -128, 127)));
        case U8: return put(p, row, column, u8(whole_of(n, 0, 255)));
        case I32: return put(p, row, column, i32(whole_of(n, -0x80000000ll, 0x7fffffff)));
        case U32: return put(p, row, column, u32(whole_of(n, 0, 0xffffffffll)));
        case I64: return put(p, row, column, whole_of(n, -most - 1, most));
        default: return put(p, row, column, unsigned_of(n));
    }
}

KERNEL __launch_bounds__(THREADS) convert(Convert p) {
    FOR_COLUMNS(column, p.cols) store(p, block_x(), column, load(p, block_x(), column));
}
