// What the test kernels need of a CUDA device header, for clang's CUDA mode without any SDK:
//   clang-19 -x cuda -nocudainc -nocudalib --cuda-device-only --cuda-gpu-arch=sm_80 -O3 -S kernel.cu -o kernel.ptx
#pragma once

#define __global__ __attribute__((global))
#define __device__ __attribute__((device))
#define __shared__ __attribute__((shared))
#define __launch_bounds__(...) __attribute__((launch_bounds(__VA_ARGS__)))
#define DEVICE __device__ inline __attribute__((always_inline))
#define KERNEL extern "C" __global__

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using usize = unsigned long;

DEVICE u32 thread_index() { return __nvvm_read_ptx_sreg_tid_x(); }
DEVICE u32 block_index() { return __nvvm_read_ptx_sreg_ctaid_x(); }
DEVICE u32 block_index_y() { return __nvvm_read_ptx_sreg_ctaid_y(); }
DEVICE u32 block_threads() { return __nvvm_read_ptx_sreg_ntid_x(); }
DEVICE u32 lane_index() { return thread_index() & 31; }
DEVICE u32 warp_index() { return thread_index() >> 5; }

constexpr u32 FULL = 0xffffffffu;
DEVICE void sync_warp() { __nvvm_bar_warp_sync(FULL); }
DEVICE float shuffle_xor(float x, int lanes) { return __nvvm_shfl_sync_bfly_f32(FULL, x, lanes, 31); }
DEVICE float exp2_approx(float x) { return __nvvm_ex2_approx_f(x); }
DEVICE float rsqrt_approx(float x) { return __nvvm_rsqrt_approx_f(x); }
DEVICE float max(float a, float b) { return __nvvm_fmax_f(a, b); }
DEVICE float negative_infinity() { return -__builtin_inff(); }

// bf16 as its bits.
DEVICE float widen(u16 x) { return __builtin_bit_cast(float, u32(x) << 16); }
DEVICE u16 narrow(float x) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DEVICE u32 narrow2(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

struct __attribute__((aligned(8))) Vec2 { u32 v[2]; };
struct __attribute__((aligned(16))) Vec4 { u32 v[4]; };

DEVICE u32 shared_address(const void* p) { return (u32)(usize)(const __attribute__((address_space(3))) void*)p; }

// 16 bytes to shared memory, or zeros where `bytes` is 0.
DEVICE void copy_async(u32 shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> DEVICE void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"); }

DEVICE void load_matrix4(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared) : "memory");
}
DEVICE void multiply_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
