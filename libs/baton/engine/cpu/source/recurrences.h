// Linear recurrences of layers that keep a state, in float, token after token as they are defined: Mamba2 (Dao and Gu
// 2024) and the gated delta rule (Yang, Kautz and Hatamizadeh 2024), and the norms behind them.
//
// A state goes from the pages that it is read from to those that it is written to; in between it is in registers, or
// near. So a single token costs what reading and writing its state costs. Several do as many multiplications as in the
// chunks that GPUs compute them in, and what comes of a token does not depend on how its row was cut into steps.
#pragma once

#include <cmath>

#include "states.h"
#include "threads.h"

namespace baton {

constexpr int64_t RECURRENT_TOKENS = 16;  // whose inputs are kept as floats at a time

// ---- Mamba2: h = exp(d a) h + d x b^T; y = h c + D x ----

struct Mamba2 {
    StatePart part;   // [heads, head_dim, size] floats
    const void* xbc;  // [tokens][stride]: x [heads, head_dim], b and c [groups, size]
    const void* dt;   // [tokens][dt_stride]: [heads]; d is the softplus of it and its bias
    const float* a;   // [heads], negative
    const float* skip;  // [heads]: D
    const float* dt_bias;  // [heads]
    void* out;  // [tokens, heads, head_dim]
    int64_t stride, dt_stride, heads, head_dim, groups, size, threads;
};

// Of one head and a few tokens.
struct Mamba2Tokens {
    const float* x;      // [tokens, head_dim], times d
    const float* b;      // [tokens, size]
    const float* c;
    const float* decay;  // [tokens]
    int64_t tokens, head_dim, size;
};

constexpr int SCANNED_ROWS = 2;                      // rows of a state in registers at a time
constexpr int SCANNED_WIDTH = LANES == 16 ? 8 : 4;  // vectors of each

// Rows [row, row + ROWS) of a head's state, WIDTH vectors from element `n` on; partial[token][LANES] gets their y.
template <int ROWS, int WIDTH, bool ADD>
void scan_block(const Mamba2Tokens& in, const float* const* from, float* const* to, int64_t first, int row, int64_t n,
                vf* partial) {
    vf h[ROWS][WIDTH];
    each<ROWS>([&](auto r) { each<WIDTH>([&](auto w) { h[r][w] = load(from[row + r] + n + w * LANES); }); });
    for (int64_t t = 0; t < in.tokens; t++) {
        const float* b = in.b + t * in.size + n;
        const float* c = in.c + t * in.size + n;
        const float* x = in.x + t * in.head_dim + first + row;
        const vf decay = splat(in.decay[t]);
        vf y[ROWS];
        each<ROWS>([&](auto r) { y[r] = ADD ? partial[t * LANES + row + r] : vf{}; });
        each<WIDTH>([&](auto w) {
            const vf bw = load(b + w * LANES), cw = load(c + w * LANES);
            each<ROWS>([&](auto r) {
                h[r][w] = h[r][w] * decay + bw * x[r];
                y[r] += h[r][w] * cw;
            });
        });
        each<ROWS>([&](auto r) { partial[t * LANES + row + r] = y[r]; });
    }
    each<ROWS>([&](auto r) { each<WIDTH>([&](auto w) { store(to[row + r] + n + w * LANES, h[r][w]); }); });
}

// LANES rows of a head's state from `first` on.
template <int WIDTH>
int64_t scan_rows(const Mamba2Tokens& in, const float* const* from, float* const* to, int64_t first, int64_t n,
                  vf* partial) {
    for (; n + WIDTH * LANES <= in.size; n += WIDTH * LANES)
        for (int row = 0; row < LANES; row += SCANNED_ROWS) {
            const auto scan = n ? scan_block<SCANNED_ROWS, WIDTH, true> : scan_block<SCANNED_ROWS, WIDTH, false>;
            scan(in, from, to, first, row, n, partial);
        }
    return n;
}

template <class E>
void scan_head(const Mamba2& m, int64_t row, int64_t head) {
    const int32_t* q_starts = m.part.tables->q_starts;
    const int64_t group = head / (m.heads / m.groups), inner = m.heads * m.head_dim;
    float* b = workspace<float>(RECURRENT_TOKENS * m.size, 0);
    float* c = workspace<float>(RECURRENT_TOKENS * m.size, 1);
    float* x = workspace<float>(RECURRENT_TOKENS * m.head_dim, 2);
    float* spare = workspace<float>(m.head_dim * m.size, 3);
    float* zeros = workspace<float>(m.size, 4);
    const float** from = workspace<const float*>(m.head_dim, 5);
    float** to = workspace<float*>(m.head_dim, 6);
    std::fill_n(zeros, m.size, 0.0f);
    float step[RECURRENT_TOKENS], decay[RECURRENT_TOKENS];
    vf partial[RECURRENT_TOKENS * LANES];
    const RowState state(m.part, row);
    const int64_t at = head * m.head_dim * m.size * sizeof(float);
    state.locate(at, m.head_dim, m.size, spare, zeros, from, to);
    const float* const* before = from;
    for (int64_t begin = q_starts[row]; begin < q_starts[row + 1]; begin += RECURRENT_TOKENS, before = to) {
        const int64_t tokens = std::min<int64_t>(RECURRENT_TOKENS, q_starts[row + 1] - begin);
        for (int64_t t = 0; t < tokens; t++) {
            const E* token = static_cast<const E*>(m.xbc) + (begin + t) * m.stride;
            step[t] = softplus(wide(static_cast<const E*>(m.dt)[(begin + t) * m.dt_stride + head]) + m.dt_bias[head]);
            decay[t] = std::exp(step[t] * m.a[head]);
            if (begin + t + RECURRENT_TOKENS < q_starts[row + 1]) {
                const E* later = token + RECURRENT_TOKENS * m.stride;
                prefetch(later + inner + group * m.size, m.size);
                prefetch(later + inner + (m.groups + group) * m.size, m.size);
                prefetch(later + head * m.head_dim, m.head_dim);
            }
            widened_row(token + inner + group * m.size, m.size, b + t * m.size);
            widened_row(token + inner + (m.groups + group) * m.size, m.size, c + t * m.size);
            for (int64_t p = 0; p < m.head_dim; p += LANES)
                store(x + t * m.head_dim + p, load(token + head * m.head_dim + p) * step[t]);
        }
        const Mamba2Tokens in{x, b, c, decay, tokens, m.head_dim, m.size};
        for (int64_t first = 0; first < m.head_dim; first += LANES) {
            if (before == from) {
                const int64_t next = at + (first + LANES) * m.size * sizeof(float);
                const int64_t left = m.heads * m.head_dim * m.size * sizeof(float) - next;
                state.ask(next, std::min<int64_t>(LANES * m.size * sizeof(float), left));
            }
            int64_t n = scan_rows<SCANNED_WIDTH>(in, before + first, to + first, first, 0, partial);
            n = scan_rows<4>(in, before + first, to + first, first, n, partial);
            n = scan_rows<2>(in, before + first, to + first, first, n, partial);
            scan_rows<1>(in, before + first, to + first, first, n, partial);
            for (int64_t t = 0; t < tokens; t++) {
                const int64_t place = head * m.head_dim + first;
                const vf own = load(static_cast<const E*>(m.xbc) + (begin + t) * m.stride + place);
                const vf y = sums(partial + t * LANES) + own * m.skip[head];
                store(static_cast<E*>(m.out) + (begin + t) * inner + place, y);
            }
        }
    }
    state.put_back(at, m.head_dim, m.size, spare, to);
}

template <class E>
void scan(const Mamba2& m) {
    share_out(m.part.tables->rows * m.heads, (int)m.threads,
              [&](int64_t task) { scan_head<E>(m, task / m.heads, task % m.heads); });
}

// ---- The gated delta rule: u = w (v - d S^T k); S = d S + k u^T; y = S^T q ----

struct Delta {
    StatePart part;     // [heads, key_dim, value_dim] floats
    const void* qkv;    // [tokens][stride]: q and k [key_heads, key_dim], v [heads, value_dim]
    const void* rates;  // [tokens][rates_stride]: [2, heads]; w is the sigmoid of the first, times `most`, and d is
                        // exp(a softplus(the second + its bias))
    const float* a;     // [heads], negative
    const float* bias;  // [heads]
    void* out;          // [tokens, heads, value_dim]
    double most;
    int64_t stride, rates_stride, heads, key_heads, key_dim, value_dim, threads;
};

// Of one head and token, floats.
struct DeltaToken {
    const float* q;  // [key_dim], of length 1 / sqrt(key_dim)
    const float* k;  // [key_dim], of length 1
    float written, left, own;  // w, d, and q . k
};

// WIDTH vectors from column `at` on of all rows of a head's state, for one token: v and y [WIDTH vectors].
template <int WIDTH>
void correct(const DeltaToken& in, int64_t rows, const float* const* from, float* const* to, int64_t at, const float* v,
             float* y) {
    const float left = in.left, *q = in.q, *k = in.k;
    vf found[WIDTH] = {}, seen[WIDTH] = {}, write[WIDTH];
    for (int64_t i = 0; i < rows; i++) {
        const float* s = from[i] + at;
        const vf key = splat(k[i]), query = splat(q[i]);
        each<WIDTH>([&](auto w) { found[w] += load(s + w * LANES) * key; });
        each<WIDTH>([&](auto w) { seen[w] += load(s + w * LANES) * query; });
    }
    each<WIDTH>([&](auto w) {
        write[w] = (load(v + w * LANES) - found[w] * left) * in.written;
        store(y + w * LANES, seen[w] * left + write[w] * in.own);
    });
    for (int64_t i = 0; i < rows; i++) {
        const float* before = from[i] + at;
        float* after = to[i] + at;
        const vf key = splat(k[i]);
        vf s[WIDTH];
        each<WIDTH>([&](auto w) { s[w] = load(before + w * LANES) * left + write[w] * key; });
        each<WIDTH>([&](auto w) { store(after + w * LANES, s[w]); });
    }
}

// x [size] as floats of length `length`.
template <class E>
void of_length(const E* x, int64_t size, float length, float* into) {
    vf squares{};
    for (int64_t i = 0; i < size; i += LANES) {
        const vf value = load(x + i);
        squares += value * value;
    }
    const float factor = length / std::sqrt(sum(squares) + 1e-6f);
    for (int64_t i = 0; i < size; i += LANES) store(into + i, load(x + i) * factor);
}

static inline float dot(const float* a, const float* b, int64_t size) {
    vf total{};
    for (int64_t i = 0; i < size; i += LANES) total += load(a + i) * load(b + i);
    return sum(total);
}

// WIDTH vectors of columns from `at` on, of all tokens of a row. Of several tokens the columns are brought together, so
// that they stay near.
template <int WIDTH, class E>
void correct_columns(const Delta& d, int64_t row, int64_t head, int64_t at, const float* const* from, float* const* to) {
    const int64_t begin = d.part.tables->q_starts[row], end = d.part.tables->q_starts[row + 1];
    const int64_t key_head = head / (d.heads / d.key_heads), keys = d.key_heads * d.key_dim;
    float* q = workspace<float>(d.key_dim, 0);
    float* k = workspace<float>(d.key_dim, 1);
    float* near = workspace<float>(d.key_dim * WIDTH * LANES, 2);
    float** near_rows = workspace<float*>(d.key_dim, 3);
    const bool gathers = end - begin > 1;
    if (gathers)
        for (int64_t i = 0; i < d.key_dim; i++) {
            near_rows[i] = near + i * WIDTH * LANES;
            memcpy(near_rows[i], from[i] + at, WIDTH * LANES * sizeof(float));
        }
    for (int64_t t = begin; t < end; t++) {
        const E* token = static_cast<const E*>(d.qkv) + t * d.stride;
        const E* rates = static_cast<const E*>(d.rates) + t * d.rates_stride;
        of_length(token + key_head * d.key_dim, d.key_dim, 1.0f / std::sqrt((float)d.key_dim), q);
        of_length(token + keys + key_head * d.key_dim, d.key_dim, 1.0f, k);
        const DeltaToken in{q, k, rounded<E>(sigmoid(splat(wide(rates[head])))[0]) * (float)d.most,
                            std::exp(d.a[head] * softplus(wide(rates[d.heads + head]) + d.bias[head])),
                            dot(q, k, d.key_dim)};
        float v[WIDTH * LANES], y[WIDTH * LANES];
        widened_row(token + 2 * keys + head * d.value_dim + at, WIDTH * LANES, v);
        if (gathers) correct<WIDTH>(in, d.key_dim, near_rows, near_rows, 0, v, y);
        else correct<WIDTH>(in, d.key_dim, from, to, at, v, y);
        E* out = static_cast<E*>(d.out) + (t * d.heads + head) * d.value_dim + at;
        each<WIDTH>([&](auto w) { store(out + w * LANES, load(y + w * LANES)); });
    }
    if (gathers)
        for (int64_t i = 0; i < d.key_dim; i++) memcpy(to[i] + at, near_rows[i], WIDTH * LANES * sizeof(float));
}

template <class E>
void delta_head(const Delta& d, int64_t row, int64_t head) {
    float* spare = workspace<float>(d.key_dim * d.value_dim, 4);
    float* zeros = workspace<float>(d.value_dim, 5);
    const float** from = workspace<const float*>(d.key_dim, 6);
    float** to = workspace<float*>(d.key_dim, 7);
    std::fill_n(zeros, d.value_dim, 0.0f);
    const RowState state(d.part, row);
    const int64_t at = head * d.key_dim * d.value_dim * sizeof(float);
    state.locate(at, d.key_dim, d.value_dim, spare, zeros, from, to);
    int64_t column = 0;
    for (; column + 4 * LANES <= d.value_dim; column += 4 * LANES) correct_columns<4, E>(d, row, head, column, from, to);
    for (; column < d.value_dim; column += LANES) correct_columns<1, E>(d, row, head, column, from, to);
    state.put_back(at, d.key_dim, d.value_dim, spare, to);
}

template <class E>
void delta(const Delta& d) {
    share_out(d.part.tables->rows * d.heads, (int)d.threads,
              [&](int64_t task) { delta_head<E>(d, task / d.heads, task % d.heads); });
}

// ---- Behind a recurrence: groups of elements normed, and times the silu of a gate ----

struct GatedNorm {
    const void* x;       // [tokens, groups, size]
    const void* gate;    // [tokens][gate_stride]
    const void* weight;  // [groups, size], or [size] of all groups; null: nothing is normed
    void* out;
    double eps;
    int64_t gate_stride, tokens, groups, size;
    int64_t shared;      // not 0: the weight is of all groups
    int64_t gate_first;  // not 0: what is normed is the product with the gate
    int64_t threads;
};

// Rounded where `transformers` mostly rounds: what is normed, to the weight's type, and its product with the weight.
template <class E, class W>
void gated_norm(const GatedNorm& n, int64_t token) {
    float* gated = workspace<float>(n.size, 0);
    for (int64_t group = 0; group < n.groups; group++) {
        const E* x = static_cast<const E*>(n.x) + (token * n.groups + group) * n.size;
        const E* gate = static_cast<const E*>(n.gate) + token * n.gate_stride + group * n.size;
        const W* weight = static_cast<const W*>(n.weight) + (n.shared ? 0 : group * n.size);
        E* out = static_cast<E*>(n.out) + (token * n.groups + group) * n.size;
        if (!n.weight) {
            for (int64_t i = 0; i < n.size; i += LANES) store(out + i, load(x + i) * silu(load(gate + i)));
            continue;
        }
        vf squares{};
        for (int64_t i = 0; i < n.size; i += LANES) {
            vf value = load(x + i);
            if (n.gate_first) value *= silu(load(gate + i));
            store(gated + i, value);
            squares += value * value;
        }
        const float factor = 1.0f / std::sqrt(sum(squares) / (float)n.size + (float)n.eps);
        for (int64_t i = 0; i < n.size; i += LANES) {
            vf value = load(weight + i) * rounded_to(weight, load(gated + i) * factor);
            if (!n.gate_first) value = rounded_to(out, value) * silu(load(gate + i));
            store(out + i, value);
        }
    }
}

}  // namespace baton
