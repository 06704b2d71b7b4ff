// KV_WRITE, MLA_WRITE, KV_GATHER, KV_COPY_BLOCKS.
#include "cell.h"

constexpr u32 THREADS = 128;

// A tensor [tokens, heads, dim] and the plane that it goes to or comes from.
struct Side {
    Plane plane;
    void* rows;
    i64 token_stride, head_stride;
    // One a head, or null.
    const float* scale;
};

struct Write {
    Side keys, values;
    const i64* slots;
    u32 heads;
};

// Threads take 16 bytes of the cache at a time; what pads a row is zeros.
template <class T, class C> DEVICE void write_side(const Side& s, u32 heads, u64 slot) {
    constexpr u32 CELLS = 16 / sizeof(C);
    const Plane& plane = s.plane;
    u64 block = slot >> plane.block_shift, offset = slot & ((1u << plane.block_shift) - 1);
    if (block >= plane.blocks) return;
    u8* to = plane.data + block * plane.block_bytes + offset * plane.token_bytes;
    const T* token = static_cast<const T*>(s.rows) + i64(block_x()) * s.token_stride;
    u32 pieces = u32(plane.token_bytes) / 16;
    for (u32 i = thread_index(); i < heads * pieces; i += THREADS) {
        u32 head = i / pieces, first = i % pieces * CELLS;
        const T* from = token + head * s.head_stride + first;
        float scale = s.scale ? s.scale[head] : 1.0f;
        union { C cells[CELLS]; Words4 words; } piece;
#pragma unroll
        for (u32 cell = 0; cell < CELLS; cell++)
            piece.cells[cell] = narrow<C>(first + cell < plane.dim ? to_float(from[cell]) / scale : 0.0f);
        *reinterpret_cast<Words4*>(to + head * plane.head_bytes + first * sizeof(C)) = piece.words;
    }
}

// A block a token and side.
template <class T, class C> DEVICE void kv_write(const Write& p) {
    i64 slot = p.slots[block_x()];
    if (slot >= 0) write_side<T, C>(block_y() == 0 ? p.keys : p.values, p.heads, u64(slot));
}

#define KV_WRITE(name, T, C) KERNEL __launch_bounds__(THREADS) kv_write_##name(Write p) { kv_write<T, C>(p); }
EACH_CACHE(KV_WRITE)

struct Gather {
    Side keys, values;
    const i32* starts;
    const i32* table;
    i64 table_stride;
    u32 columns, sequences, heads;
};

template <class T, class C> DEVICE void gather_side(const Side& s, u32 heads, const Where& at, bool there, u32 key) {
    T* to = static_cast<T*>(s.rows) + i64(block_x()) * s.token_stride;
    u32 dim = s.plane.dim;
    for (u32 i = thread_index(); i < heads * dim; i += THREADS) {
        u32 head = i / dim, d = i % dim;
        float x = 0.0f;
        if (there) {
            const u8* row = row_of_key(s.plane, at, head, key);
            if (!row) return;
            x = to_float(reinterpret_cast<const C*>(row)[d]) * (s.scale ? s.scale[head] : 1.0f);
        }
        to[head * s.head_stride + d] = narrow<T>(x);
    }
}

// A block a row of the result and side.
template <class T, class C> DEVICE void kv_gather(const Gather& p) {
    u32 row = block_x();
    bool there = i32(row) < p.starts[p.sequences];
    u32 b = there ? find_start(p.starts, p.sequences, row) : 0;
    Where at = {p.table + b * p.table_stride, p.columns, 0};
    u32 key = there ? row - u32(p.starts[b]) : 0;
    gather_side<T, C>(block_y() == 0 ? p.keys : p.values, p.heads, at, there, key);
}

#define KV_GATHER(name, T, C) KERNEL __launch_bounds__(THREADS) kv_gather_##name(Gather p) { kv_gather<T, C>(p); }
EACH_CACHE(KV_GATHER)

struct CopyBlocks {
    Plane keys, values;
    const i32* pairs;
};

constexpr u32 COPY_WORDS = 8;

// A block of threads takes COPY_WORDS 16-byte words a thread of one pair and plane.
KERNEL __launch_bounds__(THREADS) kv_copy_blocks(CopyBlocks p) {
    const Plane& plane = block_z() == 0 ? p.keys : p.values;
    i32 from = p.pairs[2 * block_x()], to = p.pairs[2 * block_x() + 1];
    if (from < 0 || to < 0 || u32(from) >= plane.blocks || u32(to) >= plane.blocks) return;
    const Words4* source = reinterpret_cast<const Words4*>(plane.data + from * plane.block_bytes);
    Words4* target = reinterpret_cast<Words4*>(plane.data + to * plane.block_bytes);
    i64 words = plane.block_bytes / 16, first = i64(block_y()) * COPY_WORDS * THREADS + thread_index();
#pragma unroll
    for (u32 i = 0; i < COPY_WORDS; i++)
        if (first + i * THREADS < words) target[first + i * THREADS] = source[first + i * THREADS];
}
