// Products with weights in bf16, for processors that multiply pairs of them: y = x W^T + b, sums in float.
//
// Weights are packed once, [outs / PANEL_OUTS, depth / 2, PANEL_OUTS] pairs of inputs, so that a product reads them
// from one end to the other, whatever the number of rows: few rows are bound by that alone. A row's result does not
// depend on its companions: its sums go over the inputs in the same order, however many rows are computed together.
#pragma once

#include "attention.h"
#include "simd.h"
#include "threads.h"

namespace baton {

struct Panels {
    const void* x;        // [rows, depth]
    const void* weights;
    const float* bias;    // [outs], and zeros up to a whole vector; or null
    void* out;            // [rows, outs]
    int64_t rows, depth, outs, threads;
};

#ifdef __AVX512BF16__

constexpr int PANEL_OUTS = 64;
constexpr int PANEL_WIDTH = PANEL_OUTS / LANES;
constexpr int64_t PANEL_PAIRS = 128;  // pairs of a panel that are multiplied by all rows before the next ones
constexpr int64_t PANEL_AHEAD = 24;   // pairs between asking for weights and multiplying them
constexpr int64_t PANEL_ROWS = 512;   // rows whose sums are kept at a time
constexpr int PANEL_TILE = 6;         // rows multiplied at a time: their sums and a row of weights fill the registers

// sums[M][PANEL_OUTS] (+)= x[M][pairs] w[pairs][PANEL_OUTS]. FIRST: the weights are not near yet, and are asked for.
template <int M, bool ADD, bool FIRST>
void panel_tile(const int32_t* x, int64_t stride, const int32_t* w, float* sums, int64_t pairs) {
    vf total[M][PANEL_WIDTH];
    each<M>([&](auto m) {
        each<PANEL_WIDTH>([&](auto v) { total[m][v] = ADD ? load(sums + m * PANEL_OUTS + v * LANES) : vf{}; });
    });
    for (int64_t k = 0; k < pairs; k++, w += PANEL_OUTS) {
        // One or two rows wait for nothing but memory, which the processor then fetches ahead by itself.
        if constexpr (FIRST && M > 2)
            for (int at = 0; at < PANEL_OUTS; at += LANES) __builtin_prefetch(w + PANEL_AHEAD * PANEL_OUTS + at, 0, 3);
        vi right[PANEL_WIDTH];
        each<PANEL_WIDTH>([&](auto v) { right[v] = load_units(w + v * LANES); });
        each<M>([&](auto m) {
            const vi left = x[m * stride + k] - vi{};
            each<PANEL_WIDTH>([&](auto v) { total[m][v] = multiply_add<2>(total[m][v], left, right[v]); });
        });
    }
    each<M>([&](auto m) { each<PANEL_WIDTH>([&](auto v) { store(sums + m * PANEL_OUTS + v * LANES, total[m][v]); }); });
}

using PanelTile = void (*)(const int32_t*, int64_t, const int32_t*, float*, int64_t);

template <bool ADD, bool FIRST>
PanelTile panel_tile_of(int64_t rows) {
    constexpr PanelTile TILES[] = {panel_tile<1, ADD, FIRST>, panel_tile<2, ADD, FIRST>, panel_tile<3, ADD, FIRST>,
                                   panel_tile<4, ADD, FIRST>, panel_tile<5, ADD, FIRST>, panel_tile<6, ADD, FIRST>};
    return TILES[rows - 1];
}

// In tiles of about the same number of rows.
template <bool ADD>
void panel_rows(const int32_t* x, int64_t stride, const int32_t* w, float* sums, int64_t rows, int64_t pairs) {
    const int64_t tiles = (rows + PANEL_TILE - 1) / PANEL_TILE;
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t from = tile * rows / tiles, count = (tile + 1) * rows / tiles - from;
        const PanelTile multiply = tile ? panel_tile_of<ADD, false>(count) : panel_tile_of<ADD, true>(count);
        multiply(x + from * stride, stride, w, sums + from * PANEL_OUTS, pairs);
    }
}

static inline void multiply_panels(const Panels& p) {
    const int64_t pairs = p.depth / 2;
    share_out((p.outs + PANEL_OUTS - 1) / PANEL_OUTS, (int)p.threads, [&](int64_t task) {
        const int32_t* panel = static_cast<const int32_t*>(p.weights) + task * pairs * PANEL_OUTS;
        const int64_t out = task * PANEL_OUTS, columns = std::min<int64_t>(PANEL_OUTS, p.outs - out);
        float* sums = workspace<float>(std::min(p.rows, PANEL_ROWS) * PANEL_OUTS, 5);
        for (int64_t first = 0; first < p.rows; first += PANEL_ROWS) {
            const int64_t rows = std::min(PANEL_ROWS, p.rows - first);
            const int32_t* x = static_cast<const int32_t*>(p.x) + first * pairs;
            for (int64_t begin = 0; begin < pairs; begin += PANEL_PAIRS) {
                const auto multiply = begin ? panel_rows<true> : panel_rows<false>;
                multiply(x + begin, pairs, panel + begin * PANEL_OUTS, sums, rows, std::min(PANEL_PAIRS, pairs - begin));
            }
            for (int64_t r = 0; r < rows; r++) {
                bf16* y = static_cast<bf16*>(p.out) + (first + r) * p.outs + out;
                for (int64_t at = 0; at < columns; at += LANES) {
                    vf sum = load(sums + r * PANEL_OUTS + at);
                    if (p.bias) sum += load(p.bias + out + at);
                    if (at + LANES <= columns) {
                        store(y + at, sum);
                    } else {
                        bf16 wide[LANES];
                        store(wide, sum);
                        memcpy(y + at, wide, (columns - at) * sizeof(bf16));
                    }
                }
            }
        }
    });
}

#else

// Not called: where `baton_multiplies_pairs` says no, weights are not packed for it.
static inline void multiply_panels(const Panels&) {}

#endif

}  // namespace baton
