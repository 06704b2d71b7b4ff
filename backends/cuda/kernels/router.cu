// MOE_ROUTER: a warp a token.
#include "order.h"

constexpr u32 TOKENS = 4, THREADS = TOKENS * WARP;

struct Router {
    const float* logits;
    // Null, or what is added to the scores for the choice.
    const float* bias;
    i32* ids;
    float* weight;
    i64 logits_stride, ids_stride, weight_stride;
    u32 tokens, experts, top;
    // At most 32 groups; how many are kept, and whether a group's score is the sum of its best two.
    u32 groups, kept_groups, sum_of_two;
    u32 sigmoid, norm;
    float scale;
};

DEVICE u64 first_of_warp(u64 place) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) place = least(place, shuffle_xor(place, lanes));
    return place;
}

// Scores of a token's experts.
struct Scores {
    bool sigmoid;
    float largest, sum;

    DEVICE Scores(const Router& p, const float* logits) : sigmoid(p.sigmoid), largest(negative_infinity()), sum(0.0f) {
        if (sigmoid) return;
        for (u32 e = lane_index(); e < p.experts; e += WARP) largest = Most()(largest, logits[e]);
        largest = reduce_warp(largest, Most());
        for (u32 e = lane_index(); e < p.experts; e += WARP) sum += exponential(logits[e] - largest);
        sum = reduce_warp(sum, Sum());
    }
    DEVICE float of(float logit) const { return sigmoid ? 1.0f / (1.0f + exponential(-logit)) : exponential(logit - largest) / sum; }
};

// A bit for each group whose experts may be chosen. Lane `g` scores group `g`.
DEVICE u32 kept_groups(const Router& p, const Scores& scores, const u32* keys) {
    if (p.groups <= 1) return FULL;
    const u32 size = p.experts / p.groups, lane = lane_index();
    u32 best = ~0u, second = ~0u;
    for (u32 e = lane * size; lane < p.groups && e < lane * size + size; e++) {
        second = least(second, most(best, keys[e]));
        best = least(best, keys[e]);
    }
    u32 key = best;
    if (p.sum_of_two) {
        // Without a bias keys are of logits.
        float first = logit_of(best), other = logit_of(second);
        key = key_of(p.bias ? first + (size > 1 ? other : 0.0f) : scores.of(first) + (size > 1 ? scores.of(other) : 0.0f));
    }
    u32 before = 0;
    for (u32 g = 0; g < p.groups; g++) {
        u32 of_group = u32(shuffle(i32(key), int(g)));
        before += of_group < key || (of_group == key && g < lane);
    }
    return __nvvm_vote_ballot_sync(FULL, lane < p.groups && before < p.kept_groups);
}

KERNEL __launch_bounds__(THREADS) moe_router(Router p) {
    extern __shared__ u32 memory[];
    u32 *keys = memory + warp_index() * p.experts, token = block_x() * TOKENS + warp_index(), lane = lane_index();
    if (token >= p.tokens) return;
    const float* logits = p.logits + token * p.logits_stride;
    const Scores scores(p, logits);
    // Scores grow with logits, which tell more of them apart; no score of a row with a NaN is a number.
    const bool spoilt = scores.sum != scores.sum;
    for (u32 e = lane; e < p.experts; e += WARP) {
        float choice = p.bias ? scores.of(logits[e]) + p.bias[e] : logits[e];
        keys[e] = key_of(spoilt ? negative_infinity() : choice);
    }
    sync_warp();
    const u32 kept = kept_groups(p, scores, keys), size = p.groups > 1 ? p.experts / p.groups : p.experts;
    i32* ids = p.ids + token * p.ids_stride;
    float *weight = p.weight + token * p.weight_stride, sum = 0.0f;
    u64 from = 0;
    for (u32 j = 0; j < p.top; j++) {
        u64 next = ~u64(0);
        for (u32 e = lane; e < p.experts; e += WARP) {
            u64 place = u64(keys[e]) << 32 | e;
            if (place >= from && kept >> (e / size) & 1) next = least(next, place);
        }
        next = first_of_warp(next);
        from = next + 1;
        // Among fewer experts than are wanted, which the host refuses, there is none.
        u32 id = least(u32(next), p.experts - 1);
        float score = scores.of(logits[id]);
        sum += score;
        if (lane == j % WARP) {
            ids[j] = i32(id);
            weight[j] = score;
        }
    }
    const float divisor = p.norm ? sum + 1e-20f : 1.0f;
    for (u32 j = lane; j < p.top; j += WARP) weight[j] = weight[j] / divisor * p.scale;
}
