// COPY, ADD, MUL and ACT_MUL: a block takes 1024 columns of a row.
#include "columns.h"
#include "gate.h"

// ---- COPY: y = x, any steps ----

struct Copy {
    Rows x, y;
    // Steps of the last dim in elements.
    i64 x_step, y_step;
    u32 cols;
};

template <class X, class Y> DEVICE Y converted(X x) { return narrow<Y>(to_float(x)); }
template <> DEVICE u8 converted<u8, u8>(u8 x) { return x; }
template <> DEVICE u16 converted<u16, u16>(u16 x) { return x; }
template <> DEVICE u32 converted<u32, u32>(u32 x) { return x; }
template <> DEVICE u64 converted<u64, u64>(u64 x) { return x; }

template <class X, class Y> DEVICE void copy(const Copy& a) {
    const X* x = row_of<X>(a.x, block_x());
    Y* y = row_of<Y>(a.y, block_x());
    FOR_COLUMNS(column, a.cols) y[column * a.y_step] = converted<X, Y>(x[column * a.x_step]);
}

#define COPY(name, X, Y) KERNEL __launch_bounds__(THREADS) copy_##name(Copy a) { copy<X, Y>(a); }
COPY(b8, u8, u8)
COPY(b16, u16, u16)
COPY(b32, u32, u32)
COPY(b64, u64, u64)
COPY(f32_f16, float, f16)
COPY(f32_bf16, float, bf16)
COPY(f16_f32, f16, float)
COPY(f16_bf16, f16, bf16)
COPY(bf16_f32, bf16, float)
COPY(bf16_f16, bf16, f16)

// ---- ADD: y = a + alpha b; MUL: y = a b ----

struct Binary {
    Rows a, b, y;
    u32 cols;
    float alpha;
};

template <class T, bool ADD> DEVICE void binary(const Binary& p) {
    const T *a = row_of<T>(p.a, block_x()), *b = row_of<T>(p.b, block_x());
    T* y = row_of<T>(p.y, block_x());
    FOR_COLUMNS(column, p.cols) {
        float left = to_float(a[column]), right = to_float(b[column]);
        y[column] = narrow<T>(ADD ? fused(p.alpha, right, left) : left * right);
    }
}

#define BINARY(suffix, T) \
    KERNEL __launch_bounds__(THREADS) add_##suffix(Binary p) { binary<T, true>(p); } \
    KERNEL __launch_bounds__(THREADS) mul_##suffix(Binary p) { binary<T, false>(p); }
EACH_FLOAT(BINARY)

// ---- ACT_MUL: y = act(min(g, limit)) clamp(u, -limit, limit) ----

struct ActMul {
    Rows gu, y;
    u32 cols;
    Gate gate;
};

template <class T> DEVICE void act_mul(const ActMul& p) {
    const T* gate = row_of<T>(p.gu, block_x());
    T* y = row_of<T>(p.y, block_x());
    FOR_COLUMNS(column, p.cols) y[column] = narrow<T>(gated(p.gate, to_float(gate[column]), to_float(gate[p.cols + column])));
}

#define ACT_MUL(suffix, T) KERNEL __launch_bounds__(THREADS) act_mul_##suffix(ActMul p) { act_mul<T>(p); }
EACH_FLOAT(ACT_MUL)
