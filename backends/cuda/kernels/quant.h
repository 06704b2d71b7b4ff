// Quantised weights as floats: codes of some form, times scales of some form.
#pragma once
#include "fp8.h"
#include "weight.h"

// ---- Codes ----

// q - ZERO as a float: the code is put into the mantissa of 2^23.
template <u32 ZERO> DEVICE float code_to_float(u32 q) { return __builtin_bit_cast(float, 0x4b000000u | q) - (8388608.0f + float(ZERO)); }

// Codes of LOW bits, and HIGH bits on top of them in a plane of their own.
template <u32 LOW, u32 HIGH, u32 ZERO> struct Bits {
    struct Raw { u32 low, high; };
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) {
        Raw raw = {};
        if (LOW == 4) raw.low = at<u32>(m.codes, n, k / 2);
        if (LOW == 2) raw.low = at<u16>(m.codes, n, k / 4);
        if (HIGH == 1) raw.high = at<u8>(m.high, n, k / 8);
        if (HIGH == 2) raw.high = at<u16>(m.high, n, k / 4);
        return raw;
    }
    DEVICE static void eight(const Raw& raw, float (&q)[8]) {
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            u32 code = raw.low >> (j * LOW) & ((1u << LOW) - 1);
            if (HIGH) code |= (raw.high >> (j * HIGH) & ((1u << HIGH) - 1)) << LOW;
            q[j] = code_to_float<ZERO>(code);
        }
    }
};

// Nibbles that name one of 16 values: (those of IQ4_NL) + 128.
struct Table {
    using Raw = u32;
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) { return at<u32>(m.codes, n, k / 2); }
    DEVICE static void eight(Raw nibbles, float (&q)[8]) {
        constexpr u64 first = 0x766a5d4f3f2d1801ull, second = 0xf1d9c5b5a6998d81ull;
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            u32 code = nibbles >> (j * 4) & 15;
            q[j] = code_to_float<128>(u32((code < 8 ? first : second) >> (code % 8 * 8)) & 255);
        }
    }
};

struct Signed {
    using Raw = Words2;
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) { return at<Words2>(m.codes, n, k); }
    DEVICE static void eight(const Raw& raw, float (&q)[8]) {
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] = code_to_float<128>((raw.v[j / 4] >> (j % 4 * 8) & 255) ^ 128);
    }
};

struct E4m3 {
    using Raw = Words2;
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) { return at<Words2>(m.codes, n, k); }
    DEVICE static void eight(const Raw& raw, float (&q)[8]) {
#pragma unroll
        for (u32 j = 0; j < 8; j++) q[j] = to_float(e4m3{u8(raw.v[j / 4] >> (j % 4 * 8))});
    }
};

// ---- Scales: what eight codes have in common. `COLUMNS` share it in any matrix that kernels of tiles take ----

// A weight is (code - zero) scale + minimum.
struct Factor { float scale, minimum; };

// Without zero points in memory.
struct NoZeros {
    DEVICE static u32 zero(const Matrix&, u32, u32) { return 0; }
};

DEVICE float half_to_float(u32 bits) { return float(__builtin_bit_cast(f16, u16(bits))); }

// d for 32 columns: d q.
struct Scale : NoZeros {
    static constexpr u32 COLUMNS = 32;
    static constexpr bool MINIMUM = false;
    using Raw = u32;
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) { return at<u16>(m.blocks, n, k / 32 * 2); }
    DEVICE static Factor factor(const Matrix&, Raw raw) { return {half_to_float(raw), 0.0f}; }
};

// d and m for 32 columns: d q + m.
struct ScaleMinimum : NoZeros {
    static constexpr u32 COLUMNS = 32;
    static constexpr bool MINIMUM = true;
    using Raw = u32;
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) { return at<u32>(m.blocks, n, k / 32 * 4); }
    DEVICE static Factor factor(const Matrix&, Raw both) { return {half_to_float(both), half_to_float(both >> 16)}; }
};

struct SuperRaw { u32 block, part; };

// d and dmin for 256 columns, s and m for PART of them: d s q - dmin m.
template <u32 PART> struct SuperMinimum : NoZeros {
    static constexpr u32 COLUMNS = PART;
    static constexpr bool MINIMUM = true;
    using Raw = SuperRaw;
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) { return {at<u32>(m.blocks, n, k / 256 * 4), at<u16>(m.scales, n, k / PART * 2)}; }
    DEVICE static Factor factor(const Matrix&, const Raw& raw) {
        float scale = half_to_float(raw.block) * code_to_float<0>(raw.part & 255);
        return {scale, -(half_to_float(raw.block >> 16) * code_to_float<0>(raw.part >> 8))};
    }
};

// d for 256 columns, a signed s for 16 of them: d s q.
struct SuperScale : NoZeros {
    static constexpr u32 COLUMNS = 16;
    static constexpr bool MINIMUM = false;
    using Raw = SuperRaw;
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) { return {at<u16>(m.blocks, n, k / 256 * 2), at<u8>(m.scales, n, k / 16)}; }
    DEVICE static Factor factor(const Matrix&, const Raw& raw) {
        return {half_to_float(raw.block) * code_to_float<128>(raw.part ^ 128u), 0.0f};
    }
};

// A float for any number of columns (whole eights) and rows, and perhaps a zero point: (q - zero) scale.
template <u32 NO_ZERO> struct Grouped {
    static constexpr u32 COLUMNS = 32;
    static constexpr bool MINIMUM = false;
    using Raw = u32;
    // Exact: a quotient below 2^22 is further from a whole number than this rounds.
    DEVICE static u32 group(const Matrix& m, u32 k) { return u32((float(k) + 0.5f) * m.columns_inverse); }
    DEVICE static Raw load(const Matrix& m, u32 n, u32 k) {
        const u32 row = n >> m.scale_rows, g = group(m, k);
        return m.scale_type == F32 ? at<u32>(m.scales, row, g * 4) : at<u16>(m.scales, row, g * 2);
    }
    DEVICE static Factor factor(const Matrix& m, Raw raw) {
        switch (m.scale_type) {
            case F32: return {__builtin_bit_cast(float, raw), 0.0f};
            case F16: return {half_to_float(raw), 0.0f};
            default: return {to_float(bf16{u16(raw)}), 0.0f};
        }
    }
    DEVICE static u32 zero(const Matrix& m, u32 n, u32 k) { return m.zeros.data ? u32(at<u8>(m.zeros, n, group(m, k))) : NO_ZERO; }
};

template <class C, class S> struct Quantised {
    using Codes = C;
    using Scales = S;
};
template <class C, class S> struct Stored<Quantised<C, S>> {
    DEVICE static void eight(const Matrix& m, u32 n, u32 k, float (&w)[8]) {
        C::eight(C::load(m, n, k), w);
        const float zero = float(S::zero(m, n, k));
        const Factor f = S::factor(m, S::load(m, n, k));
#pragma unroll
        for (u32 j = 0; j < 8; j++) w[j] = S::MINIMUM ? fused(f.scale, w[j] - zero, f.minimum) : (w[j] - zero) * f.scale;
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

// Instantiates M(suffix, type) for every form of quantised weights: with float scales, and those of GGUF files, in blocks of 32 columns and
// of 256.
#define EACH_SCALED(M) M(int4, Int4) M(int8, Int8) M(fp8, Fp8)
#define EACH_GGUF(M) M(q4_0, Q4_0) M(q4_1, Q4_1) M(q5_0, Q5_0) M(q5_1, Q5_1) M(q8_0, Q8_0) M(iq4_nl, Iq4Nl)
#define EACH_GGUF_K(M) M(q2_k, Q2K) M(q3_k, Q3K) M(q4_k, Q4K) M(q5_k, Q5K) M(q6_k, Q6K)
#define EACH_QUANTISED(M) EACH_SCALED(M) EACH_GGUF(M) EACH_GGUF_K(M)
