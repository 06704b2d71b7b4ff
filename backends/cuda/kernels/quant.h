// Quantised weights as floats: codes of some form, times scales of some form.
#pragma once
#include "fp8.h"
#include "weight.h"

// ---- Codes ----

// q - ZERO as a float: the code is put into the mantissa of 2^23.
template <u32 ZERO> DEVICE float code_to_float(u32 q) { return __builtin_bit_cast(float, 0x4b000000u | q) - (8388608.0f + float(ZERO)); }

// Codes of LOW bits, and HIGH bits on top of them in a plane of their own.
template <u32 LOW, u32 HIGH, u32 ZERO> struct Bits {
    DEVICE static void eight(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        u32 low, high = 0;
        if (LOW == 4) low = at<u32>(m.codes, n, k / 2);
        if (LOW == 2) low = at<u16>(m.codes, n, k / 4);
        if (HIGH == 1) high = at<u8>(m.high, n, k / 8);
        if (HIGH == 2) high = at<u16>(m.high, n, k / 4);
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            u32 code = low >> (j * LOW) & ((1u << LOW) - 1);
            if (HIGH) code |= (high >> (j * HIGH) & ((1u << HIGH) - 1)) << LOW;
            q[j] = code_to_float<ZERO>(code);
        }
    }
};

// Nibbles that name one of 16 values: (those of IQ4_NL) + 128.
struct Table {
    DEVICE static void eight(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        constexpr u64 first = 0x766a5d4f3f2d1801ull, second = 0xf1d9c5b5a6998d81ull;
        u32 nibbles = at<u32>(m.codes, n, k / 2);
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            u32 code = nibbles >> (j * 4) & 15;
            q[j] = code_to_float<128>(u32((code < 8 ? first : second) >> (code % 8 * 8)) & 255);
        }
    }
};

struct Signed {
    DEVICE static void eight(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        Words2 words = at<Words2>(m.codes, n, k);
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] = code_to_float<128>((words.v[j / 4] >> (j % 4 * 8) & 255) ^ 128);
    }
};

struct E4m3 {
    DEVICE static void eight(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        Words2 words = at<Words2>(m.codes, n, k);
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] = to_float(e4m3{u8(words.v[j / 4] >> (j % 4 * 8))});
    }
};

// ---- Scales ----

DEVICE float half_to_float(u32 bits) { return float(__builtin_bit_cast(f16, u16(bits))); }

// d for 32 columns: d q.
struct Scale {
    DEVICE static void apply(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        float d = half_to_float(at<u16>(m.blocks, n, k / 32 * 2));
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] *= d;
    }
};

// d and m for 32 columns: d q + m.
struct ScaleMinimum {
    DEVICE static void apply(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        u32 both = at<u32>(m.blocks, n, k / 32 * 4);
        float d = half_to_float(both), minimum = half_to_float(both >> 16);
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] = fused(d, q[j], minimum);
    }
};

// d and dmin for 256 columns, s and m for COLUMNS of them: d s q - dmin m.
template <u32 COLUMNS> struct SuperMinimum {
    DEVICE static void apply(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        u32 both = at<u32>(m.blocks, n, k / 256 * 4), part = at<u16>(m.scales, n, k / COLUMNS * 2);
        float scale = half_to_float(both) * code_to_float<0>(part & 255);
        float minimum = half_to_float(both >> 16) * code_to_float<0>(part >> 8);
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] = fused(scale, q[j], -minimum);
    }
};

// d for 256 columns, a signed s for 16 of them: d s q.
struct SuperScale {
    DEVICE static void apply(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        float scale = half_to_float(at<u16>(m.blocks, n, k / 256 * 2)) * code_to_float<128>(at<u8>(m.scales, n, k / 16) ^ 128u);
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] *= scale;
    }
};

// A float for any number of columns (whole eights) and rows, and perhaps a zero point: (q - zero) scale.
template <u32 NO_ZERO> struct Grouped {
    DEVICE static void apply(const Matrix& m, u32 n, u32 k, float (&q)[8]) {
        // Exact: a quotient below 2^22 is further from a whole number than this rounds.
        u32 group = u32((float(k) + 0.5f) * m.columns_inverse), row = n >> m.scale_rows;
        float scale = load_float(m.scales.data + row * m.scales.pitch, m.scale_type, group);
        float zero = m.zeros.data ? float(u32(at<u8>(m.zeros, n, group))) : float(NO_ZERO);
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] = (q[j] - zero) * scale;
    }
};

template <class Codes, class Scales> struct Quantised {};
template <class Codes, class Scales> struct Stored<Quantised<Codes, Scales>> {
    DEVICE static void eight(const Matrix& m, u32 n, u32 k, float (&w)[8]) {
        Codes::eight(m, n, k, w);
        Scales::apply(m, n, k, w);
    }
};

using Q4_0 = Quantised<Bits<4, 0, 8>, Scale>;
using Q5_0 = Quantised<Bits<4, 1, 16>, Scale>;
using Q8_0 = Quantised<Signed, Scale>;
using Iq4Nl = Quantised<Table, Scale>;
using Q4_1 = Quantised<Bits<4, 0, 0>, ScaleMinimum>;
using Q5_1 = Quantised<Bits<4, 1, 0>, ScaleMinimum>;
using Q2K = Quantised<Bits<2, 0, 0>, SuperMinimum<16>>;
using Q4K = Quantised<Bits<4, 0, 0>, SuperMinimum<32>>;
using Q5K = Quantised<Bits<4, 1, 0>, SuperMinimum<32>>;
using Q3K = Quantised<Bits<2, 1, 4>, SuperScale>;
using Q6K = Quantised<Bits<4, 2, 32>, SuperScale>;
using Int4 = Quantised<Bits<4, 0, 0>, Grouped<8>>;
using Int8 = Quantised<Signed, Grouped<0>>;
using Fp8 = Quantised<E4m3, Grouped<0>>;

// Instantiates M(suffix, type) for every form of quantised weights.
#define EACH_QUANTISED(M) \
    M(q4_0, Q4_0) M(q4_1, Q4_1) M(q5_0, Q5_0) M(q5_1, Q5_1) M(q8_0, Q8_0) M(iq4_nl, Iq4Nl) \
    M(q2_k, Q2K) M(q3_k, Q3K) M(q4_k, Q4K) M(q5_k, Q5K) M(q6_k, Q6K) M(int4, Int4) M(int8, Int8) M(fp8, Fp8)
