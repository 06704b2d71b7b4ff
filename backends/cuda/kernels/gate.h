// Gated activations.
#pragma once
#include "device.h"

enum Activation : u32 { SILU = 0, GELU_TANH = 1, GELU_ERF = 2 };

struct Gate {
    u32 activation;
    // Clamp of both; 0 is off.
    float limit;
};

// erfc(x) for x >= 0: e^(-x^2) times the exponential of a polynomial in 1 / (1 + x/2), good to 1.2e-7 of the result
// (W. H. Press et al., Numerical Recipes, section 6.2).
DEVICE float erfc_positive(float x) {
    float t = 1.0f / fused(0.5f, x, 1.0f);
    float p = 0.17087277f;
    p = fused(p, t, -0.82215223f);
    p = fused(p, t, 1.48851587f);
    p = fused(p, t, -1.13520398f);
    p = fused(p, t, 0.27886807f);
    p = fused(p, t, -0.18628806f);
    p = fused(p, t, 0.09678418f);
    p = fused(p, t, 0.37409196f);
    p = fused(p, t, 1.00002368f);
    p = fused(p, t, -1.26551223f);
    return t * exponential(fused(-x, x, p));
}

DEVICE float activated(u32 activation, float x) {
    if (activation == SILU) return x / (1.0f + exponential(-x));
    if (activation == GELU_TANH) {
        // (1 + tanh u) / 2 = 1 / (1 + e^-2u), which does not cancel for negative x.
        float twice = 2.0f * 0.797884561f * (x * fused(x * x, 0.044715f, 1.0f));
        return x / (1.0f + exponential(-twice));
    }
    float z = absolute(x) * 0.707106781f, tail = 0.5f * erfc_positive(z);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

DEVICE float gated(const Gate& gate, float g, float u) {
    if (gate.limit > 0.0f) {
        g = g > gate.limit ? gate.limit : g;
        u = u > gate.limit ? gate.limit : u < -gate.limit ? -gate.limit : u;
    }
    return activated(gate.activation, g) * u;
}
