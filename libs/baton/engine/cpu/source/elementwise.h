// What stands between matrix products: normalization, rotation, gating, and writing K and V to their slots.
// Tokens are independent of each other. Arithmetic is in float, and rounded to bf16 where `transformers` rounds: the same
// checkpoint gives nearly the same logits, and keeps what it learned to live with.
#pragma once

#include <cmath>

#include "simd.h"
#include "threads.h"

namespace baton {

constexpr int64_t TOKENS_PER_TASK = 16;

template <class Work>
void for_tokens(int64_t tokens, int64_t threads, const Work& work) {
    share_out((tokens + TOKENS_PER_TASK - 1) / TOKENS_PER_TASK, (int)threads, [&](int64_t task) {
        const int64_t end = (task + 1) * TOKENS_PER_TASK;
        for (int64_t t = task * TOKENS_PER_TASK; t < end && t < tokens; t++) work(t);
    });
}

// pool[size] = x / element: what a pool keeps of K or V of a token. Adds to `clipped` how many numbers are more than f8
// rounds to its largest.
template <class S, class E>
void keep(S* pool, const E* x, int64_t size, double element, int64_t* clipped) {
    if constexpr (std::is_same_v<S, E>) {
        memcpy(pool, x, size * sizeof(E));
    } else {
        const float inverse = (float)(1.0 / element);
        vf over{};
        for (int64_t i = 0; i < size; i += LANES) {
            const vf value = load(x + i) * inverse;
            if constexpr (std::is_same_v<S, f8>) over += (value > E4M3_CLIPPED) | (value < -E4M3_CLIPPED) ? 1.0f : 0.0f;
            store(pool + i, value);
        }
        if (const int64_t count = (int64_t)sum(over)) __atomic_fetch_add(clipped, count, __ATOMIC_RELAXED);
    }
}

// out[size] = x / rms(x), rounded to what the weight is, times weight. `out` may be `x`.
template <class E, class W>
void normalize(const E* x, const W* weight, E* out, int64_t size, float eps) {
    vf squares{};
    for (int64_t i = 0; i < size; i += LANES) {
        const vf value = load(x + i);
        squares += value * value;
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / (float)size + eps);
    for (int64_t i = 0; i < size; i += LANES)
        store(out + i, load(weight + i) * rounded_to(weight, load(x + i) * factor));
}

// x[size] rotated in place by pairs (i, i + size / 2).
template <class E>
void turn(E* x, const E* cosines, const E* sines, int64_t size) {
    const int64_t half = size / 2;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        const vf first = load(x + i), second = load(x + half + i), c = load(cosines + i), s = load(sines + i);
        store(x + i, rounded_to(x, first * c) - rounded_to(x, second * s));
        store(x + half + i, rounded_to(x, second * c) + rounded_to(x, first * s));
    }
    if (i == half) return;
    // Fewer pairs than a vector has lanes are left: they go through one that is partly unused.
    const int64_t left = half - i;
    E wide[2 * LANES] = {};
    E angles[2 * LANES] = {};
    memcpy(wide, x + i, left * sizeof(E));
    memcpy(wide + LANES, x + half + i, left * sizeof(E));
    memcpy(angles, cosines + i, left * sizeof(E));
    memcpy(angles + LANES, sines + i, left * sizeof(E));
    const vf first = load(wide), second = load(wide + LANES), c = load(angles), s = load(angles + LANES);
    store(wide, rounded_to(x, first * c) - rounded_to(x, second * s));
    store(wide + LANES, rounded_to(x, second * c) + rounded_to(x, first * s));
    memcpy(x + i, wide, left * sizeof(E));
    memcpy(x + half + i, wide + LANES, left * sizeof(E));
}

// Both gates are x times the sigmoid of something: silu of x itself, GELU, in its approximation by tanh, of a cubic.
enum Gate : int64_t { SILU = 0, GELU = 1 };

template <Gate GATE, class E>
void gate(const E* gate_up, E* out, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) {
        const vf x = load(gate_up + i), up = load(gate_up + size + i);
        const vf down = GATE == SILU ? -x : -1.5957691216f * (x + 0.044715f * x * x * x);
        const vf bounded = down > splat(88.0f) ? splat(88.0f) : down;
        store(out + i, rounded_to(out, x / (1.0f + exponential(bounded))) * up);
    }
}

template <class E>
void weigh_by(const E* x, const E* gate, E* out, int64_t size) {
    for (int64_t i = 0; i < size; i += LANES) store(out + i, load(x + i) * rounded_to(out, sigmoid(load(gate + i))));
}

}  // namespace baton
