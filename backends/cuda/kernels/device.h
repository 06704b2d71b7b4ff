// What kernels need of a CUDA device header, for clang's CUDA mode without any SDK. `cargo xtask ptx` compiles them.
//
// A kernel takes one struct, whose twin in Rust is in the op's file under ../src/ops; the host compares their sizes.
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define DEVICE __device__ inline __attribute__((always_inline))
#define KERNEL extern "C" __global__ void

using i8 = signed char;
using u8 = unsigned char;
using i32 = int;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

// ---- Where a thread is ----

DEVICE u32 thread_index() { return __nvvm_read_ptx_sreg_tid_x(); }
DEVICE u32 block_threads() { return __nvvm_read_ptx_sreg_ntid_x(); }
DEVICE u32 block_x() { return __nvvm_read_ptx_sreg_ctaid_x(); }
DEVICE u32 block_y() { return __nvvm_read_ptx_sreg_ctaid_y(); }
DEVICE u32 block_z() { return __nvvm_read_ptx_sreg_ctaid_z(); }
DEVICE u32 blocks_x() { return __nvvm_read_ptx_sreg_nctaid_x(); }
DEVICE u32 lane_index() { return thread_index() & 31; }
DEVICE u32 warp_index() { return thread_index() >> 5; }

constexpr u32 FULL = 0xffffffffu;
constexpr u32 WARP = 32;

DEVICE void sync_warp() { __nvvm_bar_warp_sync(FULL); }
DEVICE float shuffle_xor(float x, int lanes) { return __nvvm_shfl_sync_bfly_f32(FULL, x, lanes, 31); }
DEVICE i32 shuffle_xor(i32 x, int lanes) { return __nvvm_shfl_sync_bfly_i32(FULL, x, lanes, 31); }
DEVICE float shuffle(float x, int lane) { return __nvvm_shfl_sync_idx_f32(FULL, x, lane, 31); }
DEVICE i32 shuffle(i32 x, int lane) { return __nvvm_shfl_sync_idx_i32(FULL, x, lane, 31); }

// ---- Numbers ----

// bf16 is held as its bits: the compiler's own type is widened by an instruction that compute capability 8.0 lacks.
struct bf16 { u16 bits; };
using f16 = _Float16;

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(f16 x) { return float(x); }
DEVICE float to_float(bf16 x) { return __builtin_bit_cast(float, u32(x.bits) << 16); }

template <class T> struct Narrow;
template <> struct Narrow<float> { DEVICE static float of(float x) { return x; } };
template <> struct Narrow<f16> { DEVICE static f16 of(float x) { return f16(x); } };
template <> struct Narrow<bf16> {
    DEVICE static bf16 of(float x) {
        bf16 r;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
        return r;
    }
};
// The nearest number of type T, ties to even.
template <class T> DEVICE T narrow(float x) { return Narrow<T>::of(x); }

// Instantiates M(suffix, type) for the types that activations have.
#define EACH_FLOAT(M) M(f32, float) M(f16, f16) M(bf16, bf16)

// A float slot whose type is known at launch only: vectors that are read once a block.
enum FloatType : u32 { F32 = 0, F16 = 1, BF16 = 2 };
DEVICE float load_float(const void* data, u32 type, u64 index) {
    switch (type) {
        case F32: return static_cast<const float*>(data)[index];
        case F16: return to_float(static_cast<const f16*>(data)[index]);
        default: return to_float(static_cast<const bf16*>(data)[index]);
    }
}

DEVICE void store_float(void* data, u32 type, u64 index, float value) {
    switch (type) {
        case F32: static_cast<float*>(data)[index] = value; break;
        case F16: static_cast<f16*>(data)[index] = narrow<f16>(value); break;
        default: static_cast<bf16*>(data)[index] = narrow<bf16>(value);
    }
}

DEVICE float negative_infinity() { return -__builtin_inff(); }
DEVICE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float absolute(float x) { return __builtin_fabsf(x); }
template <class T> DEVICE T least(T a, T b) { return a < b ? a : b; }
template <class T> DEVICE T most(T a, T b) { return a > b ? a : b; }
template <class T> DEVICE T ceil_div(T a, T b) { return (a + b - 1) / b; }

DEVICE float exp2_approx(float x) { return __nvvm_ex2_approx_f(x); }
DEVICE float rsqrt_approx(float x) { return __nvvm_rsqrt_approx_f(x); }

// e^x to a few units in the last place: what rounding x log2(e) loses is put back. NaN gives NaN.
DEVICE float exponential(float x) {
    const float log2e = 1.44269504f, log2e_rest = 1.92596299e-8f, ln2 = 0.69314718f;
    x = x < -150.0f ? -150.0f : x;
    x = x > 150.0f ? 150.0f : x;
    float y = x * log2e;
    float rest = fused(x, log2e_rest, fused(x, log2e, -y));
    float power = exp2_approx(y);
    return power > 3e38f ? power : fused(power, rest * ln2, power);
}

// ln x to a few units in the last place, for positive x; -inf for 0.
DEVICE float logarithm(float x) { return __nvvm_lg2_approx_f(x) * 0.69314718f; }

DEVICE float hyperbolic_tangent(float x) {
    float a = absolute(x);
    if (a < 0.3f) {
        // The quotient below cancels near 0.
        float x2 = x * x, p = -929569.0f / 638512875.0f;
        p = fused(p, x2, 21844.0f / 6081075.0f);
        p = fused(p, x2, -1382.0f / 155925.0f);
        p = fused(p, x2, 62.0f / 2835.0f);
        p = fused(p, x2, -17.0f / 315.0f);
        p = fused(p, x2, 2.0f / 15.0f);
        p = fused(p, x2, -1.0f / 3.0f);
        return fused(p * x2, x, x);
    }
    float e = exponential(-2.0f * a), t = (1.0f - e) / (1.0f + e);
    return x < 0.0f ? -t : t;
}

// ---- Reductions ----

struct Sum { DEVICE float operator()(float a, float b) const { return a + b; } };
// NaN loses.
struct Most { DEVICE float operator()(float a, float b) const { return __nvvm_fmax_f(a, b); } };

// Over the lanes that differ in numbers below 2 FIRST.
template <int FIRST = WARP / 2, class Op> DEVICE float reduce_warp(float x, Op op) {
#pragma unroll
    for (int lanes = FIRST; lanes > 0; lanes >>= 1) x = op(x, shuffle_xor(x, lanes));
    return x;
}

// The sums of N numbers over a warp, sum i in the 32 / N lanes from lane i 32 / N on: lanes exchange halves of what they hold, so that
// N - 1 shuffles and log2(32 / N) more do what takes 5 N of reduce_warp, in the same order of additions.
template <u32 N, int LANES = WARP / 2> DEVICE float sums_of_warp(const float (&x)[N]) {
    if constexpr (N == 1) {
        return reduce_warp<LANES>(x[0], Sum());
    } else {
        const bool upper = lane_index() & LANES;
        float half[N / 2];
#pragma unroll
        for (u32 i = 0; i < N / 2; i++) {
            const float low = x[i], high = x[N / 2 + i];
            half[i] = (upper ? high : low) + shuffle_xor(upper ? low : high, LANES);
        }
        return sums_of_warp<N / 2, LANES / 2>(half);
    }
}

// The reduction over a block of THREADS threads, in every thread. `scratch` holds a float a warp; the block may use it again after
// its next barrier.
template <u32 THREADS, class Op> DEVICE float reduce_block(float x, Op op, float* scratch) {
    x = reduce_warp(x, op);
    if (lane_index() == 0) scratch[warp_index()] = x;
    __syncthreads();
    x = scratch[0];
#pragma unroll
    for (u32 warp = 1; warp < THREADS / WARP; warp++) x = op(x, scratch[warp]);
    return x;
}

// ---- Memory ----

struct __attribute__((aligned(8))) Words2 { u32 v[2]; };
struct __attribute__((aligned(16))) Words4 { u32 v[4]; };

DEVICE u32 shared_address(const void* p) {
    return (u32)(u64)(const __attribute__((address_space(3))) void*)p;
}

// 16 bytes of shared memory at a multiple of 16, in one instruction.
DEVICE Words4 load_shared(const void* p) {
    Words4 r;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3]) : "r"(shared_address(p)) : "memory");
    return r;
}

// A tensor of one to four dims as rows along its last; row `i` counts the leading dims row-major.
struct Rows {
    void* data;
    // Steps of the leading dims in elements, outermost first.
    i64 stride[3];
    // The second and the third leading dim.
    u32 dim[2];
};

template <class T> DEVICE T* row_of(const Rows& rows, u64 row) {
    u64 last = row % rows.dim[1], rest = row / rows.dim[1];
    i64 offset = i64(rest / rows.dim[0]) * rows.stride[0] + i64(rest % rows.dim[0]) * rows.stride[1] + i64(last) * rows.stride[2];
    return static_cast<T*>(rows.data) + offset;
}
