// Mamba's recurrence (Gu and Dao 2023): h = exp(d a) h + d x b^T; y = (h c + D x) silu(gate), each channel by itself.
//
// As in recurrences.h a state goes from the pages that it is read from to those that it is written to, token after token,
// and is in registers in between.
#pragma once

#include "states.h"
#include "threads.h"

namespace baton {

struct Mamba1 {
    StatePart part;         // [channels, size] floats
    const void* x;          // [tokens, channels]
    const void* gate;       // [tokens][gate_stride]
    const void* dt;         // [tokens, channels]; d is the softplus of it and its bias
    const void* b;          // [tokens][b_stride]: [size]
    const void* c;          // [tokens][c_stride]
    const float* a;         // [channels, size], negative
    const float* skip;      // [channels]: D
    const float* dt_bias;   // [channels]
    void* out;              // [tokens, channels]
    int64_t gate_stride, b_stride, c_stride, channels, size, threads;
};

constexpr int64_t SELECTED_TOKENS = 16;  // whose inputs are kept as floats at a time

// Of LANES channels and a few tokens.
struct Mamba1Tokens {
    const float* d;   // [tokens, LANES]
    const float* dx;  // [tokens, LANES]
    const float* b;   // [tokens, size]
    const float* c;
    int64_t tokens, size;
};

// Elements [n, n + LANES) of the state of a channel; partial[token][channel] gets, or is added, its y.
static inline void select_vector(const Mamba1Tokens& in, const float* from, float* to, const float* a, int channel,
                                 int64_t n, vf* partial) {
    const vf rate = load(a + n);
    vf h = load(from + n);
    for (int64_t t = 0; t < in.tokens; t++) {
        h = h * exponential(rate * in.d[t * LANES + channel]) + load(in.b + t * in.size + n) * in.dx[t * LANES + channel];
        const vf y = h * load(in.c + t * in.size + n);
        partial[t * LANES + channel] = n ? partial[t * LANES + channel] + y : y;
    }
    store(to + n, h);
}

// LANES channels of a row from `first` on.
template <class E>
void select_channels(const Mamba1& m, int64_t row, int64_t first) {
    const int32_t* q_starts = m.part.tables->q_starts;
    float* b = workspace<float>(SELECTED_TOKENS * m.size, 0);
    float* c = workspace<float>(SELECTED_TOKENS * m.size, 1);
    float* spare = workspace<float>(LANES * m.size, 2);
    float* zeros = workspace<float>(m.size, 3);
    std::fill_n(zeros, m.size, 0.0f);
    alignas(64) float d[SELECTED_TOKENS * LANES], dx[SELECTED_TOKENS * LANES];
    vf partial[SELECTED_TOKENS * LANES];
    const float* from[LANES];
    float* to[LANES];
    const RowState state(m.part, row);
    const int64_t at = first * m.size * sizeof(float);
    state.locate(at, LANES, m.size, spare, zeros, from, to);
    const float* const* before = from;
    for (int64_t begin = q_starts[row]; begin < q_starts[row + 1]; begin += SELECTED_TOKENS, before = to) {
        const int64_t tokens = std::min<int64_t>(SELECTED_TOKENS, q_starts[row + 1] - begin);
        for (int64_t t = 0; t < tokens; t++) {
            const int64_t place = (begin + t) * m.channels + first;
            const vf step = softplus(load(static_cast<const E*>(m.dt) + place) + load(m.dt_bias + first));
            store(d + t * LANES, step);
            store(dx + t * LANES, step * load(static_cast<const E*>(m.x) + place));
            widened_row(static_cast<const E*>(m.b) + (begin + t) * m.b_stride, m.size, b + t * m.size);
            widened_row(static_cast<const E*>(m.c) + (begin + t) * m.c_stride, m.size, c + t * m.size);
        }
        const Mamba1Tokens in{d, dx, b, c, tokens, m.size};
        for (int channel = 0; channel < LANES; channel++)
            for (int64_t n = 0; n < m.size; n += LANES)
                select_vector(in, before[channel], to[channel], m.a + (first + channel) * m.size, channel, n, partial);
        for (int64_t t = 0; t < tokens; t++) {
            const int64_t place = (begin + t) * m.channels + first;
            const vf own = load(static_cast<const E*>(m.x) + place) * load(m.skip + first);
            const vf gate = load(static_cast<const E*>(m.gate) + (begin + t) * m.gate_stride + first);
            store(static_cast<E*>(m.out) + place, (sums(partial + t * LANES) + own) * silu(gate));
        }
    }
    state.put_back(at, LANES, m.size, spare, to);
}

template <class E>
void select(const Mamba1& m) {
    const int64_t blocks = m.channels / LANES;
    share_out(m.part.tables->rows * blocks, (int)m.threads,
              [&](int64_t task) { select_channels<E>(m, task / blocks, task % blocks * LANES); });
}

}  // namespace baton
