// What the attentions take, and which keys a query sees.
#pragma once
#include "cell.h"

// A tensor [tokens, heads, dim].
struct Heads {
    void* data;
    i64 token_stride, head_stride;
    u32 dim;
};

struct Attention {
    // A key is a row of k and, for latents, one of k2 behind it; queries likewise.
    Heads q, q2, o;
    Plane k, k2, v;
    // One a KV head, or null.
    const float *k_scale, *v_scale;
    // One a query head, or null.
    const float* sinks;
    // Null, or [tokens, heads].
    float* lse;
    i64 lse_token_stride, lse_head_stride;
    // Tokens starts[b] .. starts[b + 1] are sequence b's.
    const i32* starts;
    // Keys of each sequence; of contiguous ones, where they begin, with the end of the last.
    const i32* lengths;
    // Null if keys are contiguous.
    const i32* table;
    i64 table_stride;
    u32 columns, sequences, tokens;
    // Query heads, and those that share a KV head.
    u32 heads, group;
    float scale, softcap;
    // Left reach; negative is all.
    i32 window;
    u32 causal;
    // What follows is of the kernels on matrix units.
    // Elements of caches are of the type of the activations (0), e4m3 (1) or i8 (2).
    u32 code;
    // Queries can be read, and results written, 16 bytes at a time.
    u32 aligned;
    // The sequences of a launch, and into how many parts their keys are split: of decodes at most.
    u32 first_sequence, last_sequence, parts;
    // Of decodes: as many parts as fill the device, and from how many tiles a part may cost what its result does. Otherwise 0.
    u32 few_parts, long_tiles;
    // Partial results [query][part][query head]: the largest score times log2(e), the sum of weights, and the sums of values.
    float* partial;
};

constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

// Keys [first, end) of a sequence.
struct Seen {
    i32 first, end;
    DEVICE bool has(i32 key) const { return key >= first && key < end; }
};

// What the query at position `place` sees of `length` keys.
DEVICE Seen seen_from(const Attention& p, i32 place, i32 length) {
    if (!p.causal) return {0, length};
    i32 first = p.window >= 0 && place > p.window ? place - p.window : 0;
    return {first, least(place + 1, length)};
}

// Keys of a tile, and fewest tiles that are worth a part.
constexpr u32 KEYS = 64, SHORT_TILES = 4;

// Tiles [first, end) of keys.
struct Tiles {
    u32 first, end;
    DEVICE u32 count() const { return end - first; }
};

DEVICE Tiles tiles_of(const Seen& keys) {
    const u32 first = u32(keys.first) / KEYS;
    return {first, keys.end > keys.first ? ceil_div(u32(keys.end), KEYS) : first};
}

// Into how many parts a sequence is split of which so many tiles are seen; `Split` in flash.rs says the same of the longest.
DEVICE u32 parts_of(const Attention& p, u32 tiles) {
    if (p.long_tiles == 0) return p.parts;
    const u32 wanted = least(most(p.few_parts, tiles / p.long_tiles), ceil_div(tiles, SHORT_TILES));
    return most(least(wanted, p.parts), 1u);
}

// Where a sequence's queries and keys are.
struct Sequence {
    u32 token, queries;
    i32 keys;
    Where where;
    // The position of its first query.
    DEVICE i32 place() const { return keys - i32(queries); }
};

DEVICE Sequence sequence_of(const Attention& p, u32 b) {
    Sequence s;
    s.token = u32(p.starts[b]);
    s.queries = u32(p.starts[b + 1]) - s.token;
    if (p.table) {
        s.keys = most(p.lengths[b], 0);
        s.where = {p.table + b * p.table_stride, p.columns, 0};
    } else {
        s.keys = p.lengths[b + 1] - p.lengths[b];
        s.where = {nullptr, 0, u32(p.lengths[b])};
    }
    return s;
}

// A score as the softmax takes it, from q·k times the scale.
DEVICE float capped(const Attention& p, float z) {
    return p.softcap > 0.0f ? p.softcap * hyperbolic_tangent(z / p.softcap) : z;
}

template <class T> DEVICE T* row_of(const Heads& t, u32 token, u32 head) {
    return static_cast<T*>(t.data) + i64(token) * t.token_stride + i64(head) * t.head_stride;
}

DEVICE void store_lse(const Attention& p, u32 token, u32 head, float lse) {
    if (p.lse) p.lse[i64(token) * p.lse_token_stride + i64(head) * p.lse_head_stride] = lse;
}

// What a sum of weighted values is multiplied by, and the logarithm of the denominator.
struct End { float share, lse; };

// The end of a softmax whose largest score is `top`, with this sum of weights.
DEVICE End finish(const Attention& p, float top, float weight, u32 head) {
    if (weight == 0.0f) return {0.0f, negative_infinity()};
    float keep = 1.0f;
    if (p.sinks) {
        const float sink = p.sinks[head], above = most(top, sink);
        keep = exponential(top - above);
        weight = weight * keep + exponential(sink - above);
        top = above;
    }
    return {keep / weight * (p.v_scale ? p.v_scale[head / p.group] : 1.0f), top + logarithm(weight)};
}
