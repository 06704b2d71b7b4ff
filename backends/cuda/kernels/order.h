// The order of logits and scores: larger ones first, ties to the lower id.
#pragma once
#include "device.h"

// A logit as it counts: NaN as -inf.
DEVICE float counted(float logit) { return logit == logit ? logit : negative_infinity(); }

// A number that is smaller for a larger logit, equal for zeros of either sign.
DEVICE u32 key_of(float logit) {
    u32 bits = __builtin_bit_cast(u32, counted(logit) + 0.0f);
    return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}
// The logit of a key.
DEVICE float logit_of(u32 key) { return __builtin_bit_cast(float, key >> 31 ? key : ~key & 0x7fffffffu); }

// Where a column comes in the order: larger logits first, ties to the lower id.
DEVICE u64 place_of(float logit, u32 id) { return u64(key_of(logit)) << 32 | id; }

DEVICE u64 shuffle_xor(u64 x, int lanes) {
    u32 low = shuffle_xor(i32(x), lanes), high = shuffle_xor(i32(x >> 32), lanes);
    return u64(high) << 32 | low;
}

struct First { DEVICE u64 operator()(u64 a, u64 b) const { return least(a, b); } };
