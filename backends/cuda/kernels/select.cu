// TOPK and SAMPLE: a block a row. Where the order of a row reaches a mass is found without sorting it, digit by digit of the logits'
// bits. Masses are whole numbers, so that sums are the same in any order.
#include "vocabulary.h"

DEVICE u32 atomic_add(u32* p, u32 x) { return u32(__nvvm_atom_add_gen_i(reinterpret_cast<int*>(p), int(x))); }
DEVICE u32 ballot(bool x) { return __nvvm_vote_ballot_sync(FULL, x); }
DEVICE u64 high_product(u64 a, u64 b) { return __nvvm_mulhi_ull(a, b); }

// A key's digits: 10, 11 and 11 bits.
constexpr u32 FIRST_BINS = 1 << 10, BINS = 1 << 11;

// Elements by digit: how many, and their mass in two words.
template <u32 COUNT> struct Table {
    u32 count[COUNT], low[COUNT], high[COUNT];

    DEVICE void clear() {
        for (u32 bin = thread_index(); bin < COUNT; bin += THREADS) count[bin] = low[bin] = high[bin] = 0;
    }
    DEVICE void add(u32 bin, u64 mass) {
        atomic_add(&count[bin], 1);
        u32 before = atomic_add(&low[bin], u32(mass));
        u32 carried = u32(mass >> 32) + (before + u32(mass) < before);
        if (carried) atomic_add(&high[bin], carried);
    }
};

struct Amount {
    u32 count;
    u64 mass;
};
DEVICE Amount operator+(const Amount& a, const Amount& b) { return {a.count + b.count, a.mass + b.mass}; }

// What is looked for: the first element of the order with which so many elements, or so much mass, are reached.
struct Target {
    bool by_count;
    u64 amount;
    DEVICE bool reached(const Amount& a) const { return (by_count ? a.count : a.mass) >= amount; }
};

// A digit, and what comes before its elements.
struct Bin {
    u32 digit;
    Amount before;
};

struct Scratch {
    Table<FIRST_BINS> first;
    Table<BINS> table;
    u64 best[WARPS], masses[WARPS], counts_of_all[WARPS], likely[WARPS];
    Amount warps[WARPS];
    u32 counts[WARPS];
    Bin found;
    u32 id;
};

static_assert(FIRST_BINS == THREADS, "a thread a bin");

template <u32 COUNT> DEVICE Bin reach(const Table<COUNT>& table, const Target& target, Amount before, Scratch& s) {
    constexpr u32 PER = COUNT / THREADS;
    Amount own[PER], sum = {0, 0};
#pragma unroll
    for (u32 i = 0; i < PER; i++) {
        u32 bin = thread_index() * PER + i;
        own[i] = {table.count[bin], u64(table.high[bin]) << 32 | table.low[bin]};
        sum = sum + own[i];
    }
    Amount through = sum;
#pragma unroll
    for (u32 lanes = 1; lanes < WARP; lanes <<= 1) {
        int from = int(lane_index()) - int(lanes);
        u32 count = shuffle(i32(through.count), from & 31), low = shuffle(i32(through.mass), from & 31);
        u32 high = shuffle(i32(through.mass >> 32), from & 31);
        if (from >= 0) through = through + Amount{count, u64(high) << 32 | low};
    }
    if (lane_index() == WARP - 1) s.warps[warp_index()] = through;
    __syncthreads();
#pragma unroll 1
    for (u32 warp = 0; warp < warp_index(); warp++) before = before + s.warps[warp];
    Amount at = before + through;
    at = {at.count - sum.count, at.mass - sum.mass};
#pragma unroll
    for (u32 i = 0; i < PER; i++) {
        Amount next = at + own[i];
        if (!target.reached(at) && target.reached(next)) s.found = {thread_index() * PER + i, at};
        at = next;
    }
    __syncthreads();
    return s.found;
}

// The first element of the order with which a target is reached: its key, its number among the elements of that key (from 1), and the
// mass up to and with it.
struct Reached {
    u32 key, number;
    u64 mass;
};

// `weigh` gives the mass of a logit; elements without mass don't count. The target is reached.
template <class T, class Weigh> DEVICE Reached reach(const T* row, u32 columns, const Target& target, Weigh weigh, Scratch& s) {
    Bin bin = reach(s.first, target, {0, 0}, s);
    u32 prefix = bin.digit;
#pragma unroll 1
    for (u32 shift = 11;; shift = 0) {
        s.table.clear();
        __syncthreads();
        each(row, columns, [&](float logit, u32) {
            u32 key = key_of(logit) >> shift;
            if (key >> 11 != prefix) return;
            u64 mass = weigh(logit);
            if (mass) s.table.add(key & (BINS - 1), mass);
        });
        __syncthreads();
        bin = reach(s.table, target, bin.before, s);
        prefix = prefix << 11 | bin.digit;
        if (shift == 0) break;
    }
    u64 each_mass = weigh(logit_of(prefix)), missing = target.amount - (target.by_count ? bin.before.count : bin.before.mass);
    u64 number = target.by_count ? missing : ceil_div(missing, each_mass);
    return {prefix, u32(number), bin.before.mass + number * each_mass};
}

// The id of the `number`-th element (from 1) of a key.
template <class T> DEVICE u32 id_of(const T* row, u32 columns, u32 key, u32 number, Scratch& s) {
    // Warps take stretches of the row in its order.
    u32 stretch = ceil_div(ceil_div(columns, WARPS), WARP) * WARP;
    u32 begin = least(warp_index() * stretch, columns), end = least(begin + stretch, columns), count = 0;
    auto matching = [&](u32 from) {
        u32 id = from + lane_index();
        return ballot(id < end && key_of(to_float(row[id])) == key);
    };
    for (u32 from = begin; from < end; from += WARP) count += __builtin_popcount(matching(from));
    if (lane_index() == 0) s.counts[warp_index()] = count;
    __syncthreads();
    u32 before = 0;
    for (u32 warp = 0; warp < warp_index(); warp++) before += s.counts[warp];
    if (before < number && number <= before + count) {
        for (u32 from = begin; from < end; from += WARP) {
            u32 matches = matching(from), here = __builtin_popcount(matches);
            u32 rank = before + __builtin_popcount(matches & ((1u << lane_index()) - 1)) + 1;
            if (matches >> lane_index() & 1 && rank == number) s.id = from + lane_index();
            before += here;
        }
    }
    __syncthreads();
    return s.id;
}

template <class T, class Weigh> DEVICE void tabulate(const T* row, u32 columns, Scratch& s, Weigh weigh) {
    s.first.clear();
    __syncthreads();
    each(row, columns, [&](float logit, u32) {
        u64 mass = weigh(logit);
        if (mass) s.first.add(key_of(logit) >> 22, mass);
    });
    __syncthreads();
}

// ---- TOPK: the best ids a thousand at a time, each of which is sorted ----

struct TopK {
    const void* logits;
    float* values;
    i32* ids;
    i64 logits_stride, values_stride, ids_stride;
    u32 vocabulary, top;
};

// Sorts a power of two of places, at most two a thread.
DEVICE void sort(u64* list, u32 length) {
    for (u32 run = 2; run <= length; run <<= 1) {
        for (u32 apart = run >> 1; apart > 0; apart >>= 1) {
            u32 low = (thread_index() / apart) * 2 * apart + thread_index() % apart, high = low + apart;
            if (high < length) {
                u64 a = list[low], b = list[high];
                bool falling = low & run;
                if ((a > b) != falling) {
                    list[low] = b;
                    list[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

template <class T> DEVICE void topk(const TopK& p) {
    __shared__ Scratch s;
    __shared__ u64 list[THREADS];
    __shared__ u32 length;
    const T* row = static_cast<const T*>(p.logits) + block_x() * p.logits_stride;
    float* values = p.values + block_x() * p.values_stride;
    i32* ids = p.ids + block_x() * p.ids_stride;
    auto one = [](float) { return u64(1); };
    tabulate(row, p.vocabulary, s, one);
    u64 from = 0;
    for (u32 begin = 0; begin < p.top; begin += THREADS) {
        u32 end = least(begin + THREADS, p.top);
        Reached last = reach(row, p.vocabulary, {true, end}, one, s);
        u64 through = u64(last.key) << 32 | id_of(row, p.vocabulary, last.key, last.number, s);
        list[thread_index()] = ~u64(0);
        if (thread_index() == 0) length = 0;
        __syncthreads();
        each(row, p.vocabulary, [&](float logit, u32 id) {
            u64 place = place_of(logit, id);
            if (place >= from && place <= through) list[atomic_add(&length, 1)] = place;
        });
        __syncthreads();
        u32 power = 2;
        while (power < end - begin) power <<= 1;
        sort(list, power);
        u32 at = begin + thread_index();
        if (at < end) {
            u32 id = u32(list[thread_index()]);
            values[at] = counted(to_float(row[id]));
            ids[at] = i32(id);
        }
        from = through + 1;
    }
}

#define TOPK(suffix, T) KERNEL __launch_bounds__(THREADS, 1) topk_##suffix(TopK p) { topk<T>(p); }
EACH_FLOAT(TOPK)

// ---- SAMPLE ----

struct Sample {
    const void* logits;
    const float* temperature;
    const i32* top_k;
    const float *top_p, *min_p;
    const u64 *seed, *offset;
    i32* ids;
    // May be absent.
    float* logprob;
    i64 stride;
    u32 vocabulary;
};

// The mass of the largest logit. Sums of 2^23 of them fit 64 bits.
constexpr u64 ONE = u64(1) << 40;
constexpr float ONE_AS_FLOAT = float(ONE);

// e^((logit - largest) / temperature), and as a mass.
struct Weigh {
    float largest, inverse;
    DEVICE float exact(float logit) const { return exponential((counted(logit) - largest) * inverse); }
    DEVICE static u64 mass(float weight) { return u64(fused(weight, ONE_AS_FLOAT, 0.5f)); }
    DEVICE u64 operator()(float logit) const { return mass(exact(logit)); }
};

// The first word of Philox4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
DEVICE u32 philox(u64 key, u64 counter) {
    u32 c0 = u32(counter), c1 = u32(counter >> 32), c2 = 0, c3 = 0, k0 = u32(key), k1 = u32(key >> 32);
#pragma unroll 1
    for (int round = 0; round < 10; round++) {
        u64 a = u64(c0) * 0xd2511f53u, b = u64(c2) * 0xcd9e8d57u;
        c0 = u32(b >> 32) ^ c1 ^ k0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ k1;
        c3 = u32(a);
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return c0;
}

// floor(mass u) for u = bits / 2^24.
DEVICE u64 share_of(u64 mass, u32 bits) { return (mass >> 24) * bits + ((mass & 0xffffff) * bits >> 24); }

// The least mass that is no less than a share of one, at least one.
DEVICE u64 enough(u64 mass, float share) {
    u64 scaled = u64(most(share, 0.0f) * 4294967296.0f);
    u64 whole = high_product(mass, scaled << 32);
    return most(whole + (u32(mass * scaled) != 0), u64(1));
}

// Draws one of the elements that the filters keep, which are a beginning of the order. `likely` is the mass that min_p keeps.
template <class T> DEVICE u32 draw(const Sample& p, const T* row, const Weigh& weigh, const Amount& all, u64 likely, Scratch& s) {
    i32 top_k = p.top_k[block_x()];
    float top_p = p.top_p[block_x()];
    u64 kept = all.mass;
    Reached last;
#pragma unroll 1
    for (u32 step = 0; step < 3; step++) {
        Target target = {step == 0, u64(top_k)};
        if (step == 0 && (top_k <= 0 || u32(top_k) >= all.count)) continue;
        if (step == 1) {
            if (!(top_p < 1.0f)) continue;
            target.amount = enough(kept, top_p);
        }
        if (step == 2) {
            u32 random = philox(p.seed[block_x()], p.offset[block_x()]) >> 8;
            target.amount = share_of(least(kept, likely), random) + 1;
        }
        last = reach(row, p.vocabulary, target, weigh, s);
        kept = last.mass;
    }
    return id_of(row, p.vocabulary, last.key, last.number, s);
}

template <class T> DEVICE void sample(const Sample& p) {
    __shared__ Scratch s;
    const T* row = static_cast<const T*>(p.logits) + block_x() * p.stride;
    u64 best = first_place(row, p.vocabulary, s.best);
    u32 id = p.vocabulary ? u32(best) : 0;
    float temperature = p.temperature[block_x()], min_p = p.min_p[block_x()], largest = logit_of(u32(best >> 32));
    bool finite = p.vocabulary && absolute(largest) < __builtin_inff(), drawn = finite && temperature > 0.0f;
    Weigh weigh = {largest, temperature > 0.0f ? 1.0f / most(temperature, 1e-30f) : 1.0f};
    Amount all = {0, 0};
    if (drawn || (finite && p.logprob)) {
        u64 likely = 0;
        tabulate(row, p.vocabulary, s, [&](float logit) {
            float weight = weigh.exact(logit);
            u64 mass = Weigh::mass(weight);
            if (!(weight < min_p)) likely += mass;
            return mass;
        });
        u32 bin = thread_index();
        all.mass = reduce_whole(u64(s.first.high[bin]) << 32 | s.first.low[bin], Total(), s.masses);
        all.count = u32(reduce_whole(s.first.count[bin], Total(), s.counts_of_all));
        likely = most(reduce_whole(likely, Total(), s.likely), ONE);
        if (drawn) id = draw(p, row, weigh, all, likely, s);
    }
    if (thread_index() != 0) return;
    p.ids[block_x()] = i32(id);
    if (p.logprob) {
        // Next to an infinite logit there is no distribution.
        float below = finite ? (to_float(row[id]) - largest) * weigh.inverse : largest - largest;
        p.logprob[block_x()] = below - logarithm(float(all.mass) / ONE_AS_FLOAT);
    }
}

#define SAMPLE(suffix, T) KERNEL __launch_bounds__(THREADS, 1) sample_##suffix(Sample p) { sample<T>(p); }
EACH_FLOAT(SAMPLE)
