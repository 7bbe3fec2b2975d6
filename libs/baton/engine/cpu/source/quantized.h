// Products with weights of 8 or 4 bits: panels of weights are spread out to bf16 (or float, where the processor does
// not multiply bf16) in the first-level cache and used for all rows of the step.
//
// Weights stand in groups of GROUP outputs: for each pair of inputs, GROUP times the two of them side by side. A row's
// result does not depend on its companions.
#pragma once

#include "attention.h"
#include "simd.h"
#include "threads.h"

namespace baton {

struct Quantized {
    const void* x;        // [rows, depth]
    const void* weights;  // 8 bits: int8; 4 bits: the first of a pair in the low half of a byte
    const float* scales;  // 8 bits: [outs]
    const bf16* steps;    // 4 bits: [depth / STEP_GROUP, outs]; a weight is lowest + step * q, q in 0..15
    const bf16* lowest;   // as steps
    const float* bias;    // [outs], or null
    void* out;            // [rows, outs]
    int64_t weight_bits, rows, depth, outs, threads;
};

constexpr int GROUP = 16;
constexpr int OUTS = 64;           // outputs of a task
constexpr int PANEL = 256;         // inputs spread out at a time
constexpr int STEP_GROUP = 32;
constexpr int64_t ROWS_AT_ONCE = 512;

template <int PAIRED>
static inline void put_pair(int32_t* panel, int64_t pair, int64_t at, vf first, vf second) {
    if constexpr (PAIRED == 2) {
        const vu bits = (((vu)first + 0x8000) >> 16) | (((vu)second + 0x8000) & 0xffff0000);
        memcpy(panel + pair * OUTS + at, &bits, sizeof bits);
    } else {
        memcpy(panel + 2 * pair * OUTS + at, &first, sizeof first);
        memcpy(panel + (2 * pair + 1) * OUTS + at, &second, sizeof second);
    }
}

// Weights of `columns` outputs from `out` on and `depth` inputs from `begin` on, as factors [depth / PAIRED, OUTS].
template <int PAIRED, int BITS>
void spread(const Quantized& q, int64_t out, int64_t columns, int64_t begin, int64_t depth, int32_t* panel) {
    for (int64_t at = 0; at < columns; at += LANES) {
        const int64_t place = ((out + at) / GROUP * (q.depth / 2) + begin / 2) * GROUP + (out + at) % GROUP;
        // Each group's part of a panel lies apart from the next one's: what comes next is asked for meanwhile.
        const bool last = at + LANES >= columns;
        const int64_t ahead_out = last ? out : out + at + LANES, ahead_begin = last ? begin + depth : begin;
        const int64_t ahead = (ahead_out / GROUP * (q.depth / 2) + ahead_begin / 2) * GROUP;
        vf step{}, lowest{};
        for (int64_t pair = 0; pair < depth / 2; pair++) {
            prefetch(static_cast<const char*>(q.weights) + (ahead + pair * GROUP) * BITS / 4, 1);
            if constexpr (BITS == 8) {
                vh both;
                memcpy(&both, static_cast<const uint16_t*>(q.weights) + place + pair * GROUP, sizeof both);
                const vu wide = widened(both);
                put_pair<PAIRED>(panel, pair, at, __builtin_convertvector((vi)(wide << 24) >> 24, vf),
                                 __builtin_convertvector((vi)(wide << 16) >> 24, vf));
            } else {
                if (pair % (STEP_GROUP / 2) == 0) {
                    const int64_t scale = (begin + 2 * pair) / STEP_GROUP * q.outs + out + at;
                    step = load(q.steps + scale), lowest = load(q.lowest + scale);
                }
                vb both;
                memcpy(&both, static_cast<const uint8_t*>(q.weights) + place + pair * GROUP, sizeof both);
                const vi wide = (vi)widened(both);
                put_pair<PAIRED>(panel, pair, at, __builtin_convertvector(wide & 15, vf) * step + lowest,
                                 __builtin_convertvector(wide >> 4, vf) * step + lowest);
            }
        }
    }
}

template <int PAIRED, bool ADD>
void multiply_rows(const int32_t* x, int64_t stride, const int32_t* panel, float* sums, int64_t rows, int64_t depth,
                   int64_t columns) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6)
        product<PAIRED, 6, ADD>(x + r * stride, stride, panel, OUTS, sums + r * OUTS, OUTS, depth, columns);
    for (; r + 2 <= rows; r += 2)
        product<PAIRED, 2, ADD>(x + r * stride, stride, panel, OUTS, sums + r * OUTS, OUTS, depth, columns);
    for (; r < rows; r++)
        product<PAIRED, 1, ADD>(x + r * stride, stride, panel, OUTS, sums + r * OUTS, OUTS, depth, columns);
}

template <class E>
void multiply_quantized(const Quantized& q) {
    constexpr int PAIRED = PAIR<bf16>;
    const int64_t stride = q.depth / PAIRED;
    int32_t* units = workspace<int32_t>(q.rows * stride, 6);
    for (int64_t i = 0; i < q.rows * q.depth; i += LANES) {
        const vf x = load(static_cast<const E*>(q.x) + i);
        if constexpr (PAIRED == 2) store(reinterpret_cast<bf16*>(units) + i, x);
        else store(reinterpret_cast<float*>(units) + i, x);
    }
    share_out((q.outs + OUTS - 1) / OUTS, (int)q.threads, [&](int64_t task) {
        const int64_t out = task * OUTS, columns = std::min<int64_t>(OUTS, q.outs - out);
        int32_t* panel = workspace<int32_t>(PANEL * OUTS, 4);
        float* sums = workspace<float>(std::min(q.rows, ROWS_AT_ONCE) * OUTS, 5);
        for (int64_t first = 0; first < q.rows; first += ROWS_AT_ONCE) {
            const int64_t rows = std::min(ROWS_AT_ONCE, q.rows - first);
            for (int64_t begin = 0; begin < q.depth; begin += PANEL) {
                const int64_t depth = std::min<int64_t>(PANEL, q.depth - begin);
                if (q.weight_bits == 8) spread<PAIRED, 8>(q, out, columns, begin, depth, panel);
                else spread<PAIRED, 4>(q, out, columns, begin, depth, panel);
                const int32_t* x = units + first * stride + begin / PAIRED;
                const auto multiply = begin ? multiply_rows<PAIRED, true> : multiply_rows<PAIRED, false>;
                multiply(x, stride, panel, sums, rows, depth / PAIRED, columns);
            }
            for (int64_t r = 0; r < rows; r++)
                for (int64_t at = 0; at < columns; at += LANES) {
                    vf y = load(sums + r * OUTS + at);
                    if (q.weight_bits == 8) y *= load(q.scales + out + at);
                    if (q.bias) y += load(q.bias + out + at);
                    store(static_cast<E*>(q.out) + (first + r) * q.outs + out + at, y);
                }
        }
    });
}

}  // namespace baton
