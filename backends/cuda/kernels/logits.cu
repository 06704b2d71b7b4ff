// ARGMAX, LOGPROBS and LOGITS_PROCESS.
#include "vocabulary.h"

struct Argmax {
    const void* logits;
    i32* ids;
    i64 stride;
    u32 vocabulary;
};

template <class T> DEVICE void argmax(const Argmax& p) {
    __shared__ u64 scratch[WARPS];
    const T* row = static_cast<const T*>(p.logits) + block_x() * p.stride;
    u64 first = first_place(row, p.vocabulary, scratch);
    if (thread_index() == 0) p.ids[block_x()] = p.vocabulary ? i32(first) : 0;
}

#define ARGMAX(suffix, T) KERNEL __launch_bounds__(THREADS) argmax_##suffix(Argmax p) { argmax<T>(p); }
EACH_FLOAT(ARGMAX)

// ---- LOGPROBS: out = logits[id] - ln Σ e^logits ----

struct Logprobs {
    const void* logits;
    const i32* ids;
    float* out;
    i64 logits_stride, ids_stride, out_stride;
    u32 vocabulary, wanted;
};

template <class T> DEVICE void logprobs(const Logprobs& p) {
    __shared__ float scratch[2][WARPS];
    const T* row = static_cast<const T*>(p.logits) + block_x() * p.logits_stride;
    float largest = negative_infinity(), sum = 0.0f;
    each(row, p.vocabulary, [&](float logit, u32) { largest = Most()(largest, logit); });
    largest = reduce_block<THREADS>(largest, Most(), scratch[0]);
    each(row, p.vocabulary, [&](float logit, u32) { sum += exponential(logit - largest); });
    sum = reduce_block<THREADS>(sum, Sum(), scratch[1]);
    // Differences with an infinite logit are no numbers; the logarithm of the sum is that logit.
    float all = absolute(largest) < __builtin_inff() ? largest + logarithm(sum) : largest;
    const i32* ids = p.ids + block_x() * p.ids_stride;
    float* out = p.out + block_x() * p.out_stride;
    for (u32 m = thread_index(); m < p.wanted; m += THREADS) {
        i32 id = ids[m];
        if (id < 0) out[m] = 0.0f;
        else if (u32(id) < p.vocabulary) out[m] = to_float(row[id]) - all;
    }
}

#define LOGPROBS(suffix, T) KERNEL __launch_bounds__(THREADS) logprobs_##suffix(Logprobs p) { logprobs<T>(p); }
EACH_FLOAT(LOGPROBS)

// ---- LOGITS_PROCESS: a block takes the ids of a part of a row ----

constexpr u32 PART_THREADS = 256, PART = 4096;

// A list a row.
template <class T> struct List {
    T* data;
    i64 stride;
    // Null if the list is absent.
    DEVICE T* of_row() const { return data ? data + block_x() * stride : nullptr; }
};

struct LogitsProcess {
    List<float> logits;
    List<const u32> mask;
    List<const i32> ids, count_all, count_out;
    List<const float> params;
    List<const i32> bias_ids;
    List<const float> bias;
    u32 vocabulary, listed, biased;
};

KERNEL __launch_bounds__(PART_THREADS) logits_process(LogitsProcess p) {
    u32 begin = block_y() * PART, end = least(begin + PART, p.vocabulary);
    // Negative ids are beyond every part.
    auto inside = [&](i32 id) { return u32(id) >= begin && u32(id) < end; };
    float* logits = p.logits.of_row();
    if (const i32* ids = p.bias_ids.of_row()) {
        const float* bias = p.bias.of_row();
        for (u32 m = thread_index(); m < p.biased; m += PART_THREADS)
            if (inside(ids[m])) logits[ids[m]] += bias[m];
        __syncthreads();
    }
    if (const i32* ids = p.ids.of_row()) {
        const i32 *count_all = p.count_all.of_row(), *count_out = p.count_out.of_row();
        const float* params = p.params.of_row();
        float repetition = params[0], presence = params[1], frequency = params[2];
        for (u32 m = thread_index(); m < p.listed; m += PART_THREADS) {
            if (!inside(ids[m]) || count_all[m] <= 0) continue;
            float& logit = logits[ids[m]];
            float scaled = logit > 0.0f ? logit / repetition : logit * repetition;
            logit = scaled - fused(frequency, float(count_out[m]), count_out[m] > 0 ? presence : 0.0f);
        }
        __syncthreads();
    }
    if (const u32* mask = p.mask.of_row()) {
        for (u32 id = begin + thread_index(); id < end; id += PART_THREADS)
            if (!(mask[id / 32] >> (id % 32) & 1)) logits[id] = negative_infinity();
    }
}
