// Attention on matrix units, for activations of 16 bits. `flash_bf16.cu` and `flash_f16.cu` instantiate it.
//
// A block takes ROWS rows: queries that share a KV head, token by token and head by head, so that keys and values are read once for all
// heads of a group. It goes over the keys in tiles of KEYS with an online softmax. For the scores each of the four warps takes a quarter of
// the tile's keys, for the values a quarter of their dims; the weights go from one to the other through shared memory.
//
//     wait for K(t)                      | barrier A: all are done with V(t - 1) and the weights
//     start V(t); scores; maxima         | barrier B: all are done with K(t); maxima, and where the rows of t + 1 are, are there
//     start K(t + 1); weights; wait V(t) | barrier C: weights and V(t) are there
//     sum of values
//
// Rows in shared memory are an odd number of 16-byte chunks apart, so that eight rows of a matrix lie in different banks.
#pragma once
#include "attention.h"
#include "mma.h"

constexpr u32 THREADS = 128, WARPS = 4;

constexpr u32 pitch_of(u32 dims) { return (dims / 8 | 1) * 16; }

// DK and DV: dims of keys and values, padded to multiples of 16. LATENT: a key is a latent of DV dims and a rotated part, its value the
// latent. DECODE: sequences have one query, and a block knows its sequence; otherwise it looks for it.
template <class T_, u32 DK_, u32 DV_, u32 ROW_TILES_, bool LATENT_, bool DECODE_> struct Flash {
    using T = T_;
    static constexpr u32 DK = DK_, DV = DV_, ROW_TILES = ROW_TILES_, ROWS = 16 * ROW_TILES;
    static constexpr bool LATENT = LATENT_, DECODE = DECODE_;
    // Pairs of 8 dims of the values, and how many a warp has.
    static constexpr u32 ALL_PAIRS = DV / 16, PAIRS = (ALL_PAIRS + WARPS - 1) / WARPS;
    static constexpr u32 K_PITCH = pitch_of(DK), V_PITCH = LATENT ? K_PITCH : pitch_of(DV), WEIGHT_PITCH = pitch_of(KEYS);
    // Places in shared memory; the host knows the sum.
    static constexpr u32 Q = 0, K = ROWS * K_PITCH, V = LATENT ? K : K + KEYS * K_PITCH;
    static constexpr u32 WEIGHTS = V + KEYS * V_PITCH, STATS = WEIGHTS + ROWS * WEIGHT_PITCH, PLACES = STATS + ROWS * 16;
};

template <class T> DEVICE u32 pack(float low, float high);
template <> DEVICE u32 pack<bf16>(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <> DEVICE u32 pack<f16>(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// The exponents of two numbers: all ones are no numbers.
template <class T> constexpr u32 EXPONENT = 0x7f80;
template <> constexpr u32 EXPONENT<f16> = 0x7c00;
template <class T> DEVICE bool is_finite(u32 bits) { return (bits & EXPONENT<T>) != EXPONENT<T>; }
// Two numbers, with zeros for what is not finite.
template <class T> DEVICE u32 finite(u32 pair) {
    return (is_finite<T>(pair) ? pair & 0xffff : 0) | (is_finite<T>(pair >> 16) ? pair & 0xffff0000 : 0);
}

DEVICE Words4 shared_words(u32 at) {
    Words4 w;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.v[0]), "=r"(w.v[1]), "=r"(w.v[2]), "=r"(w.v[3]) : "r"(at) : "memory");
    return w;
}
DEVICE void store_shared(u32 at, const Words4& w) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(w.v[0]), "r"(w.v[1]), "r"(w.v[2]), "r"(w.v[3]) : "memory");
}
DEVICE void store_shared(u32 at, u32 w) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(w) : "memory"); }
DEVICE void store_shared(u32 at, float x) { store_shared(at, __builtin_bit_cast(u32, x)); }
DEVICE float shared_float(u32 at) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
    return x;
}
DEVICE void store_shared(u32 at, const u8* x) { asm volatile("st.shared.u64 [%0], %1;" ::"r"(at), "l"(x) : "memory"); }
DEVICE const u8* shared_pointer(u32 at) {
    const u8* x;
    asm volatile("ld.shared.u64 %0, [%1];" : "=l"(x) : "r"(at) : "memory");
    return x;
}
DEVICE u32 shared_half(u32 at) {
    u16 h;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(h) : "r"(at) : "memory");
    return h;
}

// What a block works on.
struct Job {
    Sequence sequence;
    u32 kv_head;
    // Its first row, and the rows of the sequence.
    u32 row, rows;
    // What any row sees, and what every row sees.
    Seen any, every;
    // Tiles of keys, and the parts of the sequence's.
    u32 tile, last_tile, parts;
    // Rows see different keys.
    bool mixed;
};

// The first block of sequence `b`: each has as many as it needs, or one more.
template <class F> DEVICE u32 first_block(const Attention& p, u32 b) {
    return u32(p.starts[b] - p.starts[p.first_sequence]) * p.group / F::ROWS + (b - p.first_sequence);
}

template <class F> DEVICE u32 find_sequence(const Attention& p, u32 block) {
    u32 low = p.first_sequence, high = p.last_sequence;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (first_block<F>(p, middle) <= block) low = middle;
        else high = middle;
    }
    return low;
}

// False if there is nothing to do.
template <class F> DEVICE bool find_job(const Attention& p, Job& job) {
    const u32 tiles = F::DECODE ? ceil_div(p.group, F::ROWS) : 1;
    // Later rows see more keys: the longest work first.
    const u32 block = blocks_x() - 1 - block_x();
    const u32 b = F::DECODE ? p.first_sequence + block_x() : find_sequence<F>(p, block);
    job.kv_head = block_y() / tiles;
    job.sequence = sequence_of(p, b);
    job.rows = job.sequence.queries * p.group;
    job.row = (F::DECODE ? block_y() % tiles : block - first_block<F>(p, b)) * F::ROWS;
    if (job.row >= job.rows || job.sequence.token + job.sequence.queries > p.tokens) return false;
    const u32 first = job.row / p.group, last = (least(job.row + F::ROWS, job.rows) - 1) / p.group;
    const Seen a = seen_from(p, job.sequence.place() + i32(first), job.sequence.keys);
    const Seen z = seen_from(p, job.sequence.place() + i32(last), job.sequence.keys);
    job.any = {a.first, z.end};
    job.every = {z.first, a.end};
    job.mixed = last != first;
    const Tiles seen = tiles_of(job.any);
    const u32 part = block_z();
    job.parts = parts_of(p, seen.count());
    job.tile = seen.first + seen.count() * part / job.parts;
    job.last_tile = seen.first + seen.count() * (part + 1) / job.parts;
    return part < job.parts;
}

// The partial result of a row, for `attention_parts`.
DEVICE float* part_of(const Attention& p, const Job& job, u32 row) {
    const u32 token = job.sequence.token + row / p.group - u32(p.starts[p.first_sequence]), head = job.kv_head * p.group + row % p.group;
    return p.partial + (u64(token * p.parts + block_z()) * p.heads + head) * (p.v.dim + 2);
}

// Two numbers each: a b + c.
template <class T> DEVICE u32 fused_pair(u32 a, u32 b, u32 c);
template <> DEVICE u32 fused_pair<bf16>(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
template <> DEVICE u32 fused_pair<f16>(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// Codes as numbers of a type, two at a time: the low bytes of both halves of a word. All are exact.
template <class T, class C> struct Codes;
// 128 more than the low seven bits by putting those into the mantissa of 128; then 128 or, of negative ones, 256 are taken off.
template <> struct Codes<bf16, i8> {
    DEVICE static u32 widen(u32 x) { return fused_pair<bf16>((x & 0x007f007f) | 0x43004300, 0x3f803f80, (x & 0x00800080) | 0xc300c300); }
};
// The same with all eight bits and 1024: 128 more than the code is an unsigned byte.
template <> struct Codes<f16, i8> {
    DEVICE static u32 widen(u32 x) { return fused_pair<f16>((x ^ 0x00800080) | 0x64006400, 0x3c003c00, 0xe480e480); }
};
// An e4m3's fields in those of T, which has another bias: 2^120 or 2^8 times too small.
template <> struct Codes<bf16, e4m3> {
    DEVICE static u32 widen(u32 x) { return fused_pair<bf16>((x & 0x00800080) << 8 | (x & 0x007f007f) << 4, 0x7b807b80, 0x80008000); }
};
template <> struct Codes<f16, e4m3> {
    DEVICE static u32 widen(u32 x) { return fused_pair<f16>((x & 0x00800080) << 8 | (x & 0x007f007f) << 7, 0x5c005c00, 0x80008000); }
};

// NaN in each half of a word whose low byte is the e4m3 that is none.
DEVICE u32 with_nan(u32 pair, u32 codes) {
    return pair | ((codes & 0x7f) == 0x7f ? 0x7fff : 0) | ((codes >> 16 & 0x7f) == 0x7f ? 0x7fff0000 : 0);
}

// Eight codes as numbers of type T; their scale comes later.
template <class T, class C> DEVICE Words4 widened(const u8* codes) {
    const Words2& words = *reinterpret_cast<const Words2*>(codes);
    const u32 low = words.v[0], high = words.v[1];
    const u32 pairs[4] = {__nvvm_prmt(low, 0, 0x4140), __nvvm_prmt(low, 0, 0x4342), __nvvm_prmt(high, 0, 0x4140), __nvvm_prmt(high, 0, 0x4342)};
    Words4 w;
#pragma unroll
    for (u32 i = 0; i < 4; i++) w.v[i] = Codes<T, C>::widen(pairs[i]);
    const bool nan = (((low & 0x7f7f7f7f) + 0x01010101) | ((high & 0x7f7f7f7f) + 0x01010101)) & 0x80808080;
    if (__is_same(C, e4m3) && nan) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) w.v[i] = with_nan(w.v[i], pairs[i]);
    }
    return w;
}

// Where a thread's row of a tile is, null where no row of the block sees: half of the threads have the keys, the others the values, or
// the rotated parts.
template <class F> DEVICE const u8* find_row(const Attention& p, const Job& job, u32 tile) {
    const Plane& plane = thread_index() < KEYS ? p.k : F::LATENT ? p.k2 : p.v;
    const i32 key = i32(tile * KEYS + thread_index() % KEYS);
    return job.any.has(key) ? row_of_key(plane, job.sequence.where, job.kv_head, u32(key)) : nullptr;
}

// The place of that in shared memory; tiles take turns with two of them.
template <class F> DEVICE u32 place_of_row(u32 base, u32 tile, u32 row) { return base + F::PLACES + (tile % 2 * THREADS + row) * 8; }

// Brings rows of up to DIMS codes.
template <class F, u32 DIMS> DEVICE void load_codes(u32 places, u32 dim, u32 code, u32 to, u32 pitch) {
    using T = typename F::T;
    constexpr u32 CHUNKS = DIMS / 8;
#pragma unroll 1
    for (u32 i = thread_index(); i < KEYS * CHUNKS; i += THREADS) {
        const u32 key = i / CHUNKS, chunk = i % CHUNKS;
        const u8* row = shared_pointer(places + key * 8);
        Words4 w = {};
        if (row && chunk * 8 < dim) w = code == 1 ? widened<T, e4m3>(row + chunk * 8) : widened<T, i8>(row + chunk * 8);
        store_shared(to + key * pitch + chunk * 16, w);
    }
}

// Starts to bring rows of up to DIMS dims; `any` is some address.
template <class F, u32 DIMS> DEVICE void load_rows(u32 places, u32 dim, const u8* any, u32 to, u32 pitch) {
    constexpr u32 CHUNKS = DIMS / 8, COPIES = KEYS * CHUNKS / THREADS, BATCH = COPIES % 4 == 0 ? 4 : COPIES % 3 == 0 ? 3 : COPIES;
#pragma unroll 1
    for (u32 n = 0; n < COPIES; n += BATCH) {
#pragma unroll
        for (u32 j = 0; j < BATCH; j++) {
            const u32 i = thread_index() + (n + j) * THREADS, key = i / CHUNKS, chunk = i % CHUNKS;
            const u8* row = shared_pointer(places + key * 8);
            const bool there = row && chunk * 8 < dim;
            copy_async(to + key * pitch + chunk * 16, there ? row + chunk * 16 : any, there ? 16 : 0);
        }
    }
}

// Starts to bring a tile of keys.
template <class F> DEVICE void load_keys(const Attention& p, u32 tile, u32 base) {
    const u32 places = place_of_row<F>(base, tile, 0), to = base + F::K;
    if constexpr (F::LATENT) {
        load_rows<F, F::DV>(places, p.k.dim, p.k.data, to, F::K_PITCH);
        load_rows<F, F::DK - F::DV>(places + KEYS * 8, p.k2.dim, p.k.data, to + F::DV * 2, F::K_PITCH);
    } else if (p.code == 0) {
        load_rows<F, F::DK>(places, p.k.dim, p.k.data, to, F::K_PITCH);
    } else {
        load_codes<F, F::DK>(places, p.k.dim, p.code, to, F::K_PITCH);
    }
    commit_copies();
}

// Starts to bring a tile of values that are not the keys.
template <class F> DEVICE void load_values(const Attention& p, u32 tile, u32 base) {
    const u32 places = place_of_row<F>(base, tile, KEYS), to = base + F::V;
    if (p.code == 0) load_rows<F, F::DV>(places, p.v.dim, p.v.data, to, F::V_PITCH);
    else load_codes<F, F::DV>(places, p.v.dim, p.code, to, F::V_PITCH);
    commit_copies();
}

// Eight dims of a query; those that it lacks are zeros.
template <class T> DEVICE Words4 query_chunk(const Attention& p, const Heads& q, u32 token, u32 head, u32 first) {
    Words4 w = {};
    const u16* row = row_of<u16>(q, token, head) + first;
    if (p.aligned && first + 8 <= q.dim) return *reinterpret_cast<const Words4*>(row);
#pragma unroll
    for (u32 i = 0; i < 8; i++)
        if (first + i < q.dim) w.v[i / 2] |= u32(row[i]) << i % 2 * 16;
    return w;
}

template <class F> DEVICE void load_queries(const Attention& p, const Job& job, u32 to) {
    constexpr u32 CHUNKS = F::DK / 8;
    for (u32 i = thread_index(); i < F::ROWS * CHUNKS; i += THREADS) {
        const u32 row = job.row + i / CHUNKS, chunk = i % CHUNKS;
        Words4 w = {};
        if (row < job.rows) {
            const u32 token = job.sequence.token + row / p.group, head = job.kv_head * p.group + row % p.group;
            const bool rotated = F::LATENT && chunk >= F::DV / 8;
            w = query_chunk<typename F::T>(p, rotated ? p.q2 : p.q, token, head, (rotated ? chunk - F::DV / 8 : chunk) * 8);
        }
        store_shared(to + i / CHUNKS * F::K_PITCH + chunk * 16, w);
    }
}

// What a thread knows of its rows (two a row tile), and its part of the result.
template <class F> struct State {
    float o[F::ROW_TILES][2 * F::PAIRS][4];
    // The largest score so far times log2(e), and this thread's part of the sum of weights.
    float most[F::ROW_TILES][2], weight[F::ROW_TILES][2];
    // The rows' positions.
    i32 place[F::ROW_TILES][2];
};

// Row `half` of row tile `tile` of this thread, in the block.
DEVICE u32 own_row(u32 tile, u32 half) { return tile * 16 + half * 8 + lane_index() / 4; }

template <class F> DEVICE void clear(const Attention& p, const Job& job, State<F>& s) {
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            s.most[r][half] = negative_infinity();
            s.weight[r][half] = 0.0f;
            s.place[r][half] = job.sequence.place() + i32((job.row + own_row(r, half)) / p.group);
        }
#pragma unroll
        for (u32 n = 0; n < 2 * F::PAIRS; n++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) s.o[r][n][e] = 0.0f;
    }
}

// q·k of all rows with the warp's 16 keys.
template <class F> DEVICE void multiply_keys(float (&z)[F::ROW_TILES][2][4], u32 base) {
    const u32 lane = lane_index(), key = warp_index() * 16 + (lane & 7) + (lane >> 4) * 8;
    const u32 keys = base + F::K + key * F::K_PITCH + (lane >> 3 & 1) * 16;
    const u32 queries = base + F::Q + (lane & 15) * F::K_PITCH + (lane >> 4) * 16;
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 e = 0; e < 8; e++) z[r][e / 4][e % 4] = 0.0f;
#pragma unroll 4
    for (u32 step = 0; step < F::DK / 16; step++) {
        u32 b[4], a[4];
        load_matrices(b, keys + step * 32);
#pragma unroll
        for (u32 r = 0; r < F::ROW_TILES; r++) {
            load_matrices(a, queries + r * 16 * F::K_PITCH + step * 32);
            Multiply<typename F::T>::add(z[r][0], a, b[0], b[1]);
            Multiply<typename F::T>::add(z[r][1], a, b[2], b[3]);
        }
    }
}

// tanh(x / 2 log2(e)), off by some 1e-7.
DEVICE float tanh_approx(float x) { return 1.0f - 2.0f * __nvvm_rcp_approx_ftz_f(1.0f + exp2_approx(x)); }

// -inf where a row does not see a key.
template <class F> DEVICE void mask(const Attention& p, const Job& job, const State<F>& s, float (&z)[F::ROW_TILES][2][4]) {
    const i32 key = i32(job.tile * KEYS + warp_index() * 16 + lane_index() % 4 * 2);
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const Seen seen = seen_from(p, s.place[r][half], job.sequence.keys);
#pragma unroll
            for (u32 e = 0; e < 4; e++)
                if (!seen.has(key + i32(e / 2 * 8 + e % 2))) z[r][e / 2][half * 2 + e % 2] = negative_infinity();
        }
}

// Products to scores times log2(e), and the largest of each row among the warp's keys.
template <class F> DEVICE void score(const Attention& p, const Job& job, const State<F>& s, float (&z)[F::ROW_TILES][2][4], float scale, bool partial, u32 base) {
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 e = 0; e < 8; e++) z[r][e / 4][e % 4] *= scale;
    if (p.softcap > 0.0f) {
#pragma unroll
        for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
            for (u32 e = 0; e < 8; e++) z[r][e / 4][e % 4] = p.softcap * LOG2E * tanh_approx(z[r][e / 4][e % 4]);
    }
    if (partial) mask(p, job, s, z);
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float x = most(most(z[r][0][half * 2], z[r][0][half * 2 + 1]), most(z[r][1][half * 2], z[r][1][half * 2 + 1]));
            x = most(x, shuffle_xor(x, 1));
            x = most(x, shuffle_xor(x, 2));
            if (lane_index() % 4 == 0) store_shared(base + F::STATS + own_row(r, half) * 16 + warp_index() * 4, x);
        }
}

// Scores to weights, for the sum of values and to the sum of weights; brings what was summed so far to the new maxima.
template <class F> DEVICE void weigh(State<F>& s, float (&z)[F::ROW_TILES][2][4], u32 base) {
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const Words4 all = shared_words(base + F::STATS + own_row(r, half) * 16);
            float top = s.most[r][half];
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) top = most(top, __builtin_bit_cast(float, all.v[w]));
            const float from = top == negative_infinity() ? 0.0f : top, keep = exp2_approx(s.most[r][half] - from);
            float sum = 0.0f;
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                const float x = exp2_approx(z[r][n][half * 2] - from), y = exp2_approx(z[r][n][half * 2 + 1] - from);
                sum += x + y;
                const u32 key = warp_index() * 16 + n * 8 + lane_index() % 4 * 2;
                store_shared(base + F::WEIGHTS + own_row(r, half) * F::WEIGHT_PITCH + key * 2, pack<typename F::T>(x, y));
            }
            s.most[r][half] = top;
            s.weight[r][half] = s.weight[r][half] * keep + sum;
#pragma unroll
            for (u32 n = 0; n < 2 * F::PAIRS; n++) {
                s.o[r][n][half * 2] *= keep;
                s.o[r][n][half * 2 + 1] *= keep;
            }
        }
}

// The warp's pair of 8 dims number `i`.
DEVICE u32 own_pair(u32 i) { return i * WARPS + warp_index(); }
// The first of the two dims side by side in `o[..][n]`.
DEVICE u32 own_dim(u32 n) { return own_pair(n / 2) * 16 + n % 2 * 8 + lane_index() % 4 * 2; }

template <class F> DEVICE void add_values(State<F>& s, u32 base) {
    const u32 lane = lane_index();
    const u32 weights = base + F::WEIGHTS + (lane & 15) * F::WEIGHT_PITCH + (lane >> 4) * 16;
    const u32 values = base + F::V + (lane & 15) * F::V_PITCH + (lane >> 4) * 16;
#pragma unroll 2
    for (u32 step = 0; step < KEYS / 16; step++) {
        u32 a[F::ROW_TILES][4];
#pragma unroll
        for (u32 r = 0; r < F::ROW_TILES; r++) load_matrices(a[r], weights + r * 16 * F::WEIGHT_PITCH + step * 32);
#pragma unroll
        for (u32 i = 0; i < F::PAIRS; i++) {
            if (F::ALL_PAIRS % WARPS != 0 && own_pair(i) >= F::ALL_PAIRS) break;
            u32 b[4];
            load_matrices_transposed(b, values + step * 16 * F::V_PITCH + own_pair(i) * 32);
#pragma unroll
            for (u32 r = 0; r < F::ROW_TILES; r++) {
                Multiply<typename F::T>::add(s.o[r][2 * i], a[r], b[0], b[1]);
                Multiply<typename F::T>::add(s.o[r][2 * i + 1], a[r], b[2], b[3]);
            }
        }
    }
}

// A weight of 0 times a value that is not finite is NaN, so where rows see different keys such values are taken out of the tile and added
// to the rows that see them. Other tiles have no such weights.
template <class F> DEVICE void take_out(const Attention& p, const Job& job, State<F>& s, u32 base) {
    using T = typename F::T;
    constexpr u32 CHUNKS = F::DV / 8;
    const u32 values = base + F::V, flags = base + F::STATS;
    bool found = false;
    for (u32 i = thread_index(); i < KEYS * CHUNKS; i += THREADS) {
        const Words4 w = shared_words(values + i / CHUNKS * F::V_PITCH + i % CHUNKS * 16);
#pragma unroll
        for (u32 n = 0; n < 4; n++) found |= finite<T>(w.v[n]) != w.v[n];
    }
    found = __nvvm_vote_any_sync(FULL, found);
    if (lane_index() == 0) store_shared(flags + warp_index() * 4, u32(found));
    __syncthreads();
    const Words4 all = shared_words(flags);
    if ((all.v[0] | all.v[1] | all.v[2] | all.v[3]) == 0) return;
    for (u32 k = 0; k < KEYS; k++) {
        const i32 key = i32(job.tile * KEYS + k);
#pragma unroll
        for (u32 n = 0; n < 2 * F::PAIRS; n++) {
            const u32 dim = own_dim(n);
            if (dim >= F::DV) break;
#pragma unroll
            for (u32 e = 0; e < 2; e++) {
                const u32 bits = shared_half(values + k * F::V_PITCH + (dim + e) * 2);
                if (is_finite<T>(bits)) continue;
                const float x = to_float(__builtin_bit_cast(T, u16(bits)));
#pragma unroll
                for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
                    for (u32 half = 0; half < 2; half++)
                        if (seen_from(p, s.place[r][half], job.sequence.keys).has(key)) s.o[r][n][half * 2 + e] += x;
            }
        }
    }
    __syncthreads();
    for (u32 i = thread_index(); i < KEYS * CHUNKS; i += THREADS) {
        const u32 at = values + i / CHUNKS * F::V_PITCH + i % CHUNKS * 16;
        Words4 w = shared_words(at);
#pragma unroll
        for (u32 n = 0; n < 4; n++) w.v[n] = finite<T>(w.v[n]);
        store_shared(at, w);
    }
    __syncthreads();
}

// Ends the softmax of a row, by one thread: gives what its values are multiplied by.
template <class F> DEVICE float end_row(const Attention& p, const Job& job, u32 row, float top, float weight) {
    if (job.parts > 1) {
        float* part = part_of(p, job, row);
        part[0] = top, part[1] = weight;
        return 1.0f;
    }
    const u32 head = job.kv_head * p.group + row % p.group;
    const End end = finish(p, top * LN2, weight, head);
    store_lse(p, job.sequence.token + row / p.group, head, end.lse);
    return end.share;
}

// Ends the softmax of all rows. Where the weights were are the largest scores now, then what values are multiplied by.
template <class F> DEVICE void end_rows(const Attention& p, const Job& job, State<F>& s, u32 base) {
    const u32 tops = base + F::WEIGHTS, shares = tops + F::ROWS * 4;
    __syncthreads();
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float x = s.weight[r][half];
            x += shuffle_xor(x, 1);
            x += shuffle_xor(x, 2);
            if (lane_index() % 4 != 0) continue;
            store_shared(base + F::STATS + own_row(r, half) * 16 + warp_index() * 4, x);
            if (warp_index() == 0) store_shared(tops + own_row(r, half) * 4, s.most[r][half]);
        }
    __syncthreads();
    const u32 row = job.row + thread_index();
    if (thread_index() < F::ROWS && row < job.rows) {
        const Words4 all = shared_words(base + F::STATS + thread_index() * 16);
        float weight = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) weight += __builtin_bit_cast(float, all.v[w]);
        store_shared(shares + thread_index() * 4, end_row<F>(p, job, row, shared_float(tops + thread_index() * 4), weight));
    }
    __syncthreads();
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            if (job.row + own_row(r, half) >= job.rows) continue;
            const float share = shared_float(shares + own_row(r, half) * 4);
#pragma unroll
            for (u32 n = 0; n < 2 * F::PAIRS; n++) {
                s.o[r][n][half * 2] *= share;
                s.o[r][n][half * 2 + 1] *= share;
            }
        }
}

// Writes the sums of a part.
template <class F> DEVICE void store_part(const Attention& p, const Job& job, const State<F>& s) {
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = job.row + own_row(r, half);
            if (row >= job.rows) continue;
            float* part = part_of(p, job, row);
#pragma unroll
            for (u32 n = 0; n < 2 * F::PAIRS; n++)
#pragma unroll
                for (u32 e = 0; e < 2; e++)
                    if (own_dim(n) + e < p.v.dim) part[2 + own_dim(n) + e] = s.o[r][n][half * 2 + e];
        }
}

// Writes the rows' results.
template <class F> DEVICE void store_rows(const Attention& p, const Job& job, u32 base) {
    constexpr u32 CHUNKS = F::DV / 8;
#pragma unroll 1
    for (u32 i = thread_index(); i < F::ROWS * CHUNKS; i += THREADS) {
        const u32 row = job.row + i / CHUNKS, first = i % CHUNKS * 8;
        if (row >= job.rows || first >= p.v.dim) continue;
        const Words4 w = shared_words(base + F::Q + i / CHUNKS * F::K_PITCH + first * 2);
        u16* o = row_of<u16>(p.o, job.sequence.token + row / p.group, job.kv_head * p.group + row % p.group) + first;
        if (p.aligned && first + 8 <= p.v.dim) {
            *reinterpret_cast<Words4*>(o) = w;
        } else {
#pragma unroll
            for (u32 d = 0; d < 8; d++)
                if (first + d < p.v.dim) o[d] = u16(w.v[d / 2] >> d % 2 * 16);
        }
    }
}

template <class F> DEVICE void store(const Attention& p, const Job& job, const State<F>& s, u32 base) {
    if (job.parts > 1) return store_part(p, job, s);
    // Results go where the queries were, for whole rows to be written.
#pragma unroll
    for (u32 r = 0; r < F::ROW_TILES; r++)
#pragma unroll
        for (u32 half = 0; half < 2; half++)
#pragma unroll
            for (u32 n = 0; n < 2 * F::PAIRS; n++) {
                const u32 to = base + F::Q + own_row(r, half) * F::K_PITCH + own_dim(n) * 2;
                if (own_dim(n) < F::DV) store_shared(to, pack<typename F::T>(s.o[r][n][half * 2], s.o[r][n][half * 2 + 1]));
            }
    __syncthreads();
    store_rows<F>(p, job, base);
}

template <class F> DEVICE void flash(const Attention& p) {
    extern __shared__ __attribute__((aligned(128))) u8 memory[];
    const u32 base = shared_address(memory);
    Job job;
    if (!find_job<F>(p, job)) return;
    State<F> s;
    clear(p, job, s);
    store_shared(place_of_row<F>(base, job.tile, thread_index()), find_row<F>(p, job, job.tile));
    load_queries<F>(p, job, base + F::Q);
    const float scale = p.scale * (p.k_scale ? p.k_scale[job.kv_head] : 1.0f) * (p.softcap > 0.0f ? 2.0f / p.softcap : 1.0f) * LOG2E;
    __syncthreads();
    if (!F::LATENT && job.tile < job.last_tile) load_keys<F>(p, job.tile, base);
    for (; job.tile < job.last_tile; job.tile++) {
        if constexpr (F::LATENT) {
            // The tile before is still read as values.
            __syncthreads();
            load_keys<F>(p, job.tile, base);
        }
        wait_copies<0>();
        __syncthreads();
        if constexpr (!F::LATENT) load_values<F>(p, job.tile, base);
        const u8* next = find_row<F>(p, job, job.tile + 1);
        const i32 first = i32(job.tile * KEYS);
        const bool partial = first < job.every.first || first + i32(KEYS) > job.every.end;
        float z[F::ROW_TILES][2][4];
        multiply_keys<F>(z, base);
        score<F>(p, job, s, z, scale, partial, base);
        store_shared(place_of_row<F>(base, job.tile + 1, thread_index()), next);
        __syncthreads();
        if constexpr (!F::LATENT) {
            if (job.tile + 1 < job.last_tile) load_keys<F>(p, job.tile + 1, base);
            else commit_copies();
        }
        weigh<F>(s, z, base);
        wait_copies<1>();
        __syncthreads();
        // Decoded sequences have one query, so that all rows see the same keys.
        if (!F::DECODE && partial && job.mixed) take_out<F>(p, job, s, base);
        add_values<F>(s, base);
    }
    end_rows(p, job, s, base);
    store(p, job, s, base);
}

#define FLASH(name, T, DK, DV, TILES, LATENT, DECODE) \
    KERNEL __launch_bounds__(THREADS, 2) flash_##name(Attention p) { flash<Flash<T, DK, DV, TILES, LATENT, DECODE>>(p); }
#define FLASH_OF(suffix, T, D, TILES) \
    FLASH(prefill_##D##_##suffix, T, D, D, TILES, false, false) FLASH(decode_##D##_##suffix, T, D, D, 1, false, true)
#define FLASH_LATENT(name, T, TILES) \
    FLASH(prefill_##name, T, 576, 512, TILES, true, false) FLASH(decode_##name, T, 576, 512, TILES, true, true)
#define FLASH_EACH(suffix, T) \
    FLASH_OF(suffix, T, 64, 4) FLASH_OF(suffix, T, 80, 4) FLASH_OF(suffix, T, 96, 4) FLASH_OF(suffix, T, 128, 4) \
    FLASH_OF(suffix, T, 192, 4) FLASH_OF(suffix, T, 256, 2) \
    FLASH_LATENT(latent_##suffix, T, 1) FLASH_LATENT(latent32_##suffix, T, 2)
