// Floats of 8 bits: f8e4m3 (without infinities) and f8e5m2.
#pragma once
#include "device.h"

struct e4m3 { u8 bits; };

// An f8e4m3 as the f16 that is 256 times smaller: the same fields, a bias of 15 instead of 7.
DEVICE float to_float(e4m3 x) {
    u16 half = u16((x.bits & 0x80) << 8 | (x.bits & 0x7f) << 7);
    return (x.bits & 0x7f) == 0x7f ? __builtin_nanf("") : float(__builtin_bit_cast(f16, half)) * 256.0f;
}

// To nearest even, saturating at 448; NaN stays NaN.
template <> struct Narrow<e4m3> {
    DEVICE static e4m3 of(float x) {
        u32 word = __builtin_bit_cast(u32, x), sign = word >> 24 & 0x80, size = word & 0x7fffffff;
        if (size > 0x7f800000) return {u8(0x7f)};
        u32 code;
        if (size < 0x3c800000) {
            // Below 2^-6 the step is 2^-9.
            code = u32(__builtin_rintf(absolute(x) * 512.0f));
        } else {
            code = (size + 0x7ffff + (size >> 20 & 1)) >> 20;
            code = least(code - (120u << 3), 0x7eu);
        }
        return {u8(sign | code)};
    }
};

struct e5m2 { u8 bits; };

// An f8e5m2 is the upper half of an f16.
DEVICE float to_float(e5m2 x) { return float(__builtin_bit_cast(f16, u16(x.bits << 8))); }

// To nearest even, saturating at 57344; NaN stays NaN.
template <> struct Narrow<e5m2> {
    DEVICE static e5m2 of(float x) {
        u32 word = __builtin_bit_cast(u32, x), sign = word >> 24 & 0x80, size = word & 0x7fffffff;
        if (size > 0x7f800000) return {u8(0x7f)};
        u32 code;
        if (size < 0x38800000) {
            // Below 2^-14 the step is 2^-16.
            code = u32(__builtin_rintf(absolute(x) * 65536.0f));
        } else {
            code = (size + 0xfffff + (size >> 21 & 1)) >> 21;
            code = least(code - (112u << 2), 0x7bu);
        }
        return {u8(sign | code)};
    }
};
