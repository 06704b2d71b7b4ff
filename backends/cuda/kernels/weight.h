// Packed weights: how rows lie in memory (../src/weights packs them), and eight of a row as floats.
#pragma once
#include "device.h"

struct Plane {
    const u8* data;
    // Bytes from row to row, and from group to group.
    i64 pitch, group;
};

struct Matrix {
    // What is multiplied: floats, or codes, of which the low bits and perhaps the high ones.
    Plane codes, high;
    // Scales (and minima) of a few columns, and of blocks of columns.
    Plane scales, blocks;
    // Zero points of a few columns.
    Plane zeros;
    // Of scales that are floats: their type, rows that share them as a power of two, and 1 / columns that share them.
    u32 scale_type, scale_rows;
    float columns_inverse;
};

// The matrix of one group.
DEVICE Matrix group_of(Matrix m, u32 group) {
    m.codes.data += group * m.codes.group;
    m.high.data += group * m.high.group;
    m.scales.data += group * m.scales.group;
    m.blocks.data += group * m.blocks.group;
    m.zeros.data += group * m.zeros.group;
    return m;
}

template <class T> DEVICE T at(const Plane& plane, u32 row, u32 byte) {
    return *reinterpret_cast<const T*>(plane.data + row * plane.pitch + byte);
}

// ---- Eight floats of 16-byte aligned memory ----

template <class T> DEVICE void eight_floats(const T* from, float (&w)[8]);
template <> DEVICE void eight_floats<float>(const float* from, float (&w)[8]) {
    Words4 low = reinterpret_cast<const Words4*>(from)[0], high = reinterpret_cast<const Words4*>(from)[1];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w[i] = __builtin_bit_cast(float, low.v[i]);
        w[4 + i] = __builtin_bit_cast(float, high.v[i]);
    }
}
template <> DEVICE void eight_floats<bf16>(const bf16* from, float (&w)[8]) {
    Words4 words = *reinterpret_cast<const Words4*>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w[2 * i] = __builtin_bit_cast(float, words.v[i] << 16);
        w[2 * i + 1] = __builtin_bit_cast(float, words.v[i] & 0xffff0000u);
    }
}
template <> DEVICE void eight_floats<f16>(const f16* from, float (&w)[8]) {
    Words4 words = *reinterpret_cast<const Words4*>(from);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w[2 * i] = float(__builtin_bit_cast(f16, u16(words.v[i])));
        w[2 * i + 1] = float(__builtin_bit_cast(f16, u16(words.v[i] >> 16)));
    }
}

// ---- Eight consecutive weights of row `n` from column `k` on, a multiple of 8. Columns beyond the matrix multiply zeros. ----

template <class W> struct Stored {
    DEVICE static void eight(const Matrix& m, u32 n, u32 k, float (&w)[8]) {
        eight_floats(reinterpret_cast<const W*>(m.codes.data + n * m.codes.pitch) + k, w);
    }
};
