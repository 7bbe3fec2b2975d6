// Causal convolutions channel by channel over the last few tokens of a row, whose first ones see what the row's state
// keeps: the last width - 1 tokens before. Products are summed in float and rounded once.
#pragma once

#include "states.h"
#include "threads.h"

namespace baton {

struct Convolution {
    StatePart part;      // [width - 1, channels]
    const void* x;       // [tokens][stride]: what is convolved, times `factor`
    const void* factor;  // [tokens][stride], or null
    const void* gate;    // [tokens][stride], or null: what a result is multiplied by
    const void* weight;  // [width, channels]
    const void* bias;    // [channels], or null
    void* out;           // [tokens, channels]
    int64_t stride, channels, width, silu, threads;
};

constexpr int64_t CONVOLVED_CHANNELS = 128;  // of a task
constexpr int64_t CONVOLVED_TOKENS = 32;     // that a vector of channels goes through before the next one
constexpr int MOST_TAPS = 4;

// Tokens [begin, end) of LANES channels from `channel` on. past[j]: the token W - 1 - j before `begin`, brought to `end`.
template <int W, class E>
void convolve_lane(const Convolution& c, int64_t begin, int64_t end, int64_t channel, vf* past) {
    const E* weight = static_cast<const E*>(c.weight) + channel;
    vf taps[W], line[W];
    each<W>([&](auto j) { taps[j] = load(weight + j * c.channels); });
    each<W - 1>([&](auto j) { line[j] = past[j]; });
    const vf bias = c.bias ? load(static_cast<const E*>(c.bias) + channel) : vf{};
    for (int64_t t = begin; t < end; t++) {
        const int64_t at = t * c.stride + channel;
        line[W - 1] = load(static_cast<const E*>(c.x) + at);
        E* out = static_cast<E*>(c.out) + t * c.channels + channel;
        if (c.factor) line[W - 1] = rounded_to(out, line[W - 1] * load(static_cast<const E*>(c.factor) + at));
        vf total = line[0] * taps[0];
        each<W - 1>([&](auto j) { total += line[j + 1] * taps[j + 1]; });
        total = rounded_to(out, total + bias);
        if (c.silu) total = silu(total);
        if (c.gate) total *= load(static_cast<const E*>(c.gate) + at);
        store(out, total);
        each<W - 1>([&](auto j) { line[j] = line[j + 1]; });
    }
    each<W - 1>([&](auto j) { past[j] = line[j]; });
}

template <int W, class E>
void convolve_rows(const Convolution& c) {
    const StateTables& tables = *c.part.tables;
    const int64_t blocks = (c.channels + CONVOLVED_CHANNELS - 1) / CONVOLVED_CHANNELS;
    share_out(tables.rows * blocks, (int)c.threads, [&](int64_t task) {
        const int64_t row = task / blocks, first = task % blocks * CONVOLVED_CHANNELS;
        const int64_t channels = std::min(CONVOLVED_CHANNELS, c.channels - first);
        const RowState state(c.part, row);
        E kept[W - 1][CONVOLVED_CHANNELS];
        for (int j = 0; j < W - 1; j++)
            state.read((j * c.channels + first) * sizeof(E), channels * sizeof(E), kept[j]);
        for (int64_t t = tables.q_starts[row]; t < tables.q_starts[row + 1]; t += CONVOLVED_TOKENS) {
            const int64_t end = std::min<int64_t>(t + CONVOLVED_TOKENS, tables.q_starts[row + 1]);
            for (int64_t at = 0; at < channels; at += LANES) {
                vf past[W - 1];
                for (int j = 0; j < W - 1; j++) past[j] = load(kept[j] + at);
                convolve_lane<W, E>(c, t, end, first + at, past);
                for (int j = 0; j < W - 1; j++) store(kept[j] + at, past[j]);
            }
        }
        for (int j = 0; j < W - 1; j++)
            state.write((j * c.channels + first) * sizeof(E), channels * sizeof(E), kept[j]);
    });
}

template <class E>
void convolve(const Convolution& c) {
    if (c.width == 2) convolve_rows<2, E>(c);
    else if (c.width == 3) convolve_rows<3, E>(c);
    else convolve_rows<4, E>(c);
}

}  // namespace baton
