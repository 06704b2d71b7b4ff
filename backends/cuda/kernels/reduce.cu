// The combining of collectives: `out[i] = op over ranks of parts[rank][i]`, in the order of ranks, in f32, with one rounding. Every rank
// so gets the same bits. A thread an element, or 16 bytes where all is aligned.
#include "fp8.h"

constexpr u32 THREADS = 256;

enum ReduceOp : u32 { SUM = 1, PROD = 2, MIN = 3, MAX = 4, AVG = 5 };

struct Reduce {
    // `ranks` parts of `count` elements, one after the other.
    const void* parts;
    void* out;
    u64 count;
    u32 ranks, op;
    // Whether every part and `out` begin at a multiple of 16 bytes.
    u32 aligned;
    u32 pad;
};

// NaN wins.
DEVICE float smaller(float a, float b) { return !(a == a) || a <= b ? a : b; }
DEVICE float larger(float a, float b) { return !(a == a) || a >= b ? a : b; }

DEVICE float combined(float a, float b, u32 op) {
    switch (op) {
        case PROD: return a * b;
        case MIN: return smaller(a, b);
        case MAX: return larger(a, b);
        default: return a + b;
    }
}

template <class T> struct Pack { T v[16 / sizeof(T)]; };

template <class T> DEVICE Pack<T> pack_at(const T* part, u64 index) {
    return __builtin_bit_cast(Pack<T>, reinterpret_cast<const Words4*>(part)[index]);
}

template <class T> DEVICE void reduce(const Reduce& p) {
    constexpr u32 SIZE = 16 / sizeof(T);
    const T* parts = static_cast<const T*>(p.parts);
    T* out = static_cast<T*>(p.out);
    u64 first = u64(block_x()) * THREADS + thread_index(), step = u64(blocks_x()) * THREADS;
    float ranks = float(p.ranks);
    u64 packs = p.aligned ? p.count / SIZE : 0;
    for (u64 i = first; i < packs; i += step) {
        float sum[SIZE];
        Pack<T> pack = pack_at(parts, i);
#pragma unroll
        for (u32 j = 0; j < SIZE; j++) sum[j] = to_float(pack.v[j]);
        for (u32 rank = 1; rank < p.ranks; rank++) {
            pack = pack_at(parts + rank * p.count, i);
#pragma unroll
            for (u32 j = 0; j < SIZE; j++) sum[j] = combined(sum[j], to_float(pack.v[j]), p.op);
        }
#pragma unroll
        for (u32 j = 0; j < SIZE; j++) pack.v[j] = narrow<T>(p.op == AVG ? sum[j] / ranks : sum[j]);
        reinterpret_cast<Words4*>(out)[i] = __builtin_bit_cast(Words4, pack);
    }
    for (u64 i = packs * SIZE + first; i < p.count; i += step) {
        float sum = to_float(parts[i]);
        for (u32 rank = 1; rank < p.ranks; rank++) sum = combined(sum, to_float(parts[rank * p.count + i]), p.op);
        out[i] = narrow<T>(p.op == AVG ? sum / ranks : sum);
    }
}

#define REDUCE(suffix, T) KERNEL __launch_bounds__(THREADS) reduce_##suffix(Reduce p) { reduce<T>(p); }
EACH_FLOAT(REDUCE)
REDUCE(f8e4m3, e4m3)
REDUCE(f8e5m2, e5m2)
