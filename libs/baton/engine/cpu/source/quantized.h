// Products with weights of 8 or 4 bits.
//
// Few rows are multiplied by weights as these are widened, in registers: they are bound by what memory gives. What
// codes stand for is summed up over a group of inputs, and then multiplied by its step, so that no weight is rounded.
// More rows share what is widened once, a panel at a time in the first-level cache: there weights are whole, steps and
// all, which rounds them to bf16 where the processor multiplies that. Without steps both come to the same.
//
// A row's result does not depend on which others it is computed with, but on whether they are few: not even on that
// without steps, or with `one_way`.
#pragma once

#include "attention.h"
#include "codes.h"
#include "simd.h"
#include "threads.h"

namespace baton {

// What steps and lowest values, or their units, are kept as, if there are any.
enum Steps { NO_STEPS, FLOATS, BFLOATS, HALVES };

constexpr int64_t step_bytes(int64_t steps) { return steps == NO_STEPS ? 0 : steps == FLOATS ? 4 : 2; }

// A weight is step * (number - zero) + lowest. Weights stand in panels of OUTS outputs, the last one filled up. A panel
// has its groups of inputs one after the other: words [group / codes of a word, OUTS], each of one output's codes, then
// steps [OUTS], then lowest [OUTS]. Without steps all inputs are one group. Where steps are counted, they and lowest are
// whole numbers of 8 bits, and before each PANEL inputs stand the units [OUTS] of steps, then those [OUTS] of lowest.
struct Quantized {
    const void* x;        // [rows, depth]
    const void* weights;
    const float* table;   // [16]: what codes of 4 bits stand for, to be rounded to bf16 where that is multiplied
    const float* scales;  // [outs], or null: factors of whole sums
    const float* bias;    // [outs], or null
    void* out;            // [rows, outs], of rows that are `stride` numbers apart
    double zero;
    int64_t kind, steps, counted, has_lowest, group;  // Kind, and Steps
    int64_t one_way;      // not 0: many rows are computed as few are, to the last bit
    int64_t rows, depth, outs, stride, threads;
};

constexpr int PAIRED = PAIR<bf16>;
constexpr int OUTS = 64;    // outputs of a task
constexpr int V = 4;        // vectors of them that are computed at a time where rows are few
constexpr int WORD_BYTES = 4;
constexpr int PANEL = 256;  // inputs widened at a time; a multiple of groups, none of which is larger
constexpr int FEW_AT_ONCE = PAIRED == 2 ? 4 : 1;
constexpr int FEW_AHEAD = 8192;  // bytes between asking for weights and multiplying them
constexpr int64_t ROWS_AT_ONCE = 512;

// Most rows that are few: widening codes of 8 bits takes twice as long as those of 4, and is done for FEW_AT_ONCE rows.
constexpr int64_t few_rows(int kind) { return PAIRED == 1 ? 2 : kind == TABLE ? 64 : 16; }

// Rows of x: as units, in the order in which codes are widened, and by group what sums begin with, and sums of x.
struct Inputs {
    const int32_t* units;
    const float* starts;
    const float* sums;
    int64_t stride, groups;  // units, and groups, of a row

    Inputs from(int64_t row) const {
        return {units + row * stride, starts + row * groups, sums + row * groups, stride, groups};
    }
};

static inline vi load_words(const char* p) { return load_units(reinterpret_cast<const int32_t*>(p)); }

// sums [rows, OUTS] += x [rows, depth] panel [depth, OUTS]; depth and stride in units.
static inline void multiply_rows(const int32_t* x, int64_t stride, const int32_t* panel, float* sums, int64_t rows,
                                 int64_t depth) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6)
        product<PAIRED, 6, true>(x + r * stride, stride, panel, OUTS, sums + r * OUTS, OUTS, depth, OUTS);
    for (; r + 2 <= rows; r += 2)
        product<PAIRED, 2, true>(x + r * stride, stride, panel, OUTS, sums + r * OUTS, OUTS, depth, OUTS);
    for (; r < rows; r++)
        product<PAIRED, 1, true>(x + r * stride, stride, panel, OUTS, sums + r * OUTS, OUTS, depth, OUTS);
}

// A unit whose numbers are multiplied by `step`, and `lowest` added.
static inline vi stepped(vi unit, vf step, vf lowest) {
    if constexpr (PAIRED == 1) return (vi)((vf)unit * step + lowest);
    const vf first = (vf)(unit << 16) * step + lowest, second = (vf)(unit & (int32_t)0xffff0000) * step + lowest;
    return (vi)((((vu)first + 0x8000) >> 16) | (((vu)second + 0x8000) & 0xffff0000));
}

template <int KIND, bool STEPS>
class QuantizedProduct {
  public:
    QuantizedProduct(const Quantized& q, const Inputs& x)
        : q_(q), x_(x), codes_(q.table), words_bytes_(bytes_of(q.group)),
          group_bytes_(words_bytes_ + (q.counted ? 1 : step_bytes(q.steps)) * OUTS * (q.has_lowest ? 2 : 1)),
          units_bytes_(q.counted ? step_bytes(q.steps) * OUTS * (q.has_lowest ? 2 : 1) : 0) {}

    // sums [rows, OUTS] of a panel's outputs, for rows from `first` on.
    void multiply(int64_t panel, int64_t first, int64_t rows, float* sums) const {
        const int64_t panel_bytes = q_.depth / q_.group * group_bytes_ + q_.depth / PANEL * units_bytes_;
        const char* groups = static_cast<const char*>(q_.weights) + panel * panel_bytes;
        if (rows > few_rows(KIND) && !(STEPS && q_.one_way)) return many(groups, x_.from(first), rows, sums);
        const int64_t tiles = (rows + FEW_AT_ONCE - 1) / FEW_AT_ONCE;
        for (int64_t tile = 0; tile < tiles; tile++) {
            const int64_t from = tile * rows / tiles, height = (tile + 1) * rows / tiles - from;
            for (int64_t out = 0; out < OUTS; out += V * LANES)
                each<FEW_AT_ONCE>([&](auto less) {
                    if (height != less + 1) return;
                    few<less + 1>(groups, out, x_.from(first + from), sums + from * OUTS + out);
                });
        }
    }

  private:
    using Widened = Codes<PAIRED, KIND>;

    static int64_t bytes_of(int64_t inputs) { return inputs / codes_of(KIND) * OUTS * WORD_BYTES; }

    // Where the steps of a group are, and the units in which they are counted, if they are.
    struct Stepping {
        const char *steps, *units;
    };

    vf load_numbers(const char* numbers, int64_t at) const {
        if (q_.steps == FLOATS) return load(reinterpret_cast<const float*>(numbers) + at);
        if (q_.steps == BFLOATS) return load(reinterpret_cast<const bf16*>(numbers) + at);
        return load(reinterpret_cast<const half*>(numbers) + at);
    }

    vf load_steps(const Stepping& from, int64_t at) const {
        if (!q_.counted) return load_numbers(from.steps, at);
        return load(reinterpret_cast<const int8_t*>(from.steps) + at) * load_numbers(from.units, at);
    }

    // sums [M][V vectors] of outputs from `out` on of the panel whose groups are `at`.
    template <int M>
    void few(const char* at, int64_t out, const Inputs& x, float* sums) const {
        vf total[M][V] = {}, part[M][V];
        const int32_t* units = x.units;
        const int64_t words = q_.group / codes_of(KIND);
        const char* counted_in = nullptr;
        for (int64_t group = 0; group < x.groups; group++, at += group_bytes_) {
            if (q_.counted && group * q_.group % PANEL == 0) {
                counted_in = at;
                at += units_bytes_;
            }
            each<M>([&](auto m) { each<V>([&](auto v) { part[m][v] = splat(x.starts[m * x.groups + group]); }); });
            const char* word = at + out * WORD_BYTES;
            for (int64_t k = 0; k < words; k++, word += OUTS * WORD_BYTES, units += Widened::UNITS) {
                each<V>([&](auto v) { __builtin_prefetch(word + FEW_AHEAD + v * sizeof(vi), 0, 3); });
                each<Widened::UNITS>([&](auto n) {
                    vi right[V];
                    each<V>([&](auto v) { right[v] = codes_.template unit<n>(load_words(word + v * sizeof(vi))); });
                    each<M>([&](auto m) {
                        const vi left = units[m * x.stride + n] - vi{};
                        each<V>([&](auto v) { part[m][v] = multiply_add<PAIRED>(part[m][v], left, right[v]); });
                    });
                });
            }
            if constexpr (STEPS) add_stepped<M>(total, part, {at + words_bytes_, counted_in}, out, x, group);
        }
        each<M>([&](auto m) {
            each<V>([&](auto v) { store(sums + m * OUTS + v * LANES, STEPS ? total[m][v] : part[m][v]); });
        });
    }

    template <int M>
    void add_stepped(vf (&total)[M][V], const vf (&part)[M][V], const Stepping& from, int64_t out,
                     const Inputs& x, int64_t group) const {
        each<V>([&](auto v) {
            const vf step = load_steps(from, out + v * LANES);
            each<M>([&](auto m) { total[m][v] += part[m][v] * step; });
        });
        if (q_.has_lowest)
            each<V>([&](auto v) {
                const vf lowest = load_steps(from, OUTS + out + v * LANES);
                each<M>([&](auto m) { total[m][v] += lowest * x.sums[m * x.groups + group]; });
            });
    }

    void many(const char* groups, const Inputs& x, int64_t rows, float* sums) const {
        int32_t* units = workspace<int32_t>(PANEL / PAIRED * OUTS, 4);
        for (int64_t r = 0; r < rows; r++) std::fill_n(sums + r * OUTS, OUTS, STEPS ? 0.0f : x.starts[r]);
        const int64_t run = STEPS ? q_.group : PANEL, run_bytes = STEPS ? group_bytes_ : bytes_of(PANEL);
        for (int64_t begin = 0, end; begin < q_.depth; begin = end) {
            const char* counted_in = groups;
            groups += units_bytes_;
            for (end = begin; end < q_.depth && end + run <= begin + PANEL; end += run, groups += run_bytes)
                widen({groups + words_bytes_, counted_in}, groups, std::min(run, q_.depth - end),
                      units + (end - begin) / PAIRED * OUTS);
            end = std::min(end, q_.depth);
            multiply_rows(x.units + begin / PAIRED, x.stride, units, sums, rows, (end - begin) / PAIRED);
        }
    }

    // Weights of inputs that stand at `at`, as units [depth / PAIRED, OUTS].
    void widen(const Stepping& from, const char* at, int64_t depth, int32_t* units) const {
        const int64_t words = depth / codes_of(KIND);
        for (int64_t out = 0; out < OUTS; out += LANES) {
            const char* word = at + out * WORD_BYTES;
            int32_t* to = units + out;
            vf step{}, lowest{};
            if constexpr (STEPS) {
                step = load_steps(from, out);
                if (q_.has_lowest) lowest = load_steps(from, OUTS + out);
                lowest -= step * (float)q_.zero;
            }
            for (int64_t k = 0; k < words; k++, word += OUTS * WORD_BYTES, to += Widened::UNITS * OUTS) {
                prefetch(word + bytes_of(PANEL), 1);  // what comes next is asked for meanwhile
                each<Widened::UNITS>([&](auto n) {
                    vi unit = codes_.template unit<n>(load_words(word));
                    if constexpr (STEPS) unit = stepped(unit, step, lowest);
                    memcpy(to + n * OUTS, &unit, sizeof unit);
                });
            }
        }
    }

    const Quantized& q_;
    const Inputs x_;
    const Widened codes_;
    const int64_t words_bytes_, group_bytes_, units_bytes_;
};

// Where inputs of LANES come from that are in the order of the units that codes are widened to.
template <int KIND>
constexpr int widened_from(int lane) {
    constexpr int WORD = codes_of(KIND);
    return PAIRED == 1 ? lane : lane / WORD * WORD + lane % 2 * (WORD / 2) + lane % WORD / 2;
}

template <int KIND, int... I>
static inline vf in_order(vf x, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(x, x, widened_from<KIND>(I)...);
}

template <class E, int KIND>
Inputs read_inputs(const Quantized& q) {
    const int64_t stride = q.depth / PAIRED, groups = q.depth / q.group;
    int32_t* units = workspace<int32_t>(q.rows * stride, 6);
    float* starts = workspace<float>(2 * q.rows * groups, 7);
    float* sums = starts + q.rows * groups;
    const E* x = static_cast<const E*>(q.x);
    for (int64_t i = 0; i < q.rows * groups; i++) {
        vf total{};
        for (int64_t at = i * q.group; at < (i + 1) * q.group; at += LANES) {
            const vf wide = in_order<KIND>(load(x + at), Lanes{});
            if constexpr (PAIRED == 2) store(reinterpret_cast<bf16*>(units) + at, wide);
            else store(reinterpret_cast<float*>(units) + at, wide);
            total += PAIRED == 2 ? rounded_to(static_cast<const bf16*>(nullptr), wide) : wide;
        }
        sums[i] = sum(total);
        starts[i] = (float)-q.zero * sums[i];
    }
    return {units, starts, sums, stride, groups};
}

// Results of some rows, whose sums [rows, OUTS] are those of outputs from `out` on.
template <class E>
void write_results(const Quantized& q, const float* sums, int64_t first, int64_t rows, int64_t out) {
    const int64_t columns = std::min<int64_t>(OUTS, q.outs - out);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t at = 0; at < columns; at += LANES) {
            vf y = load(sums + r * OUTS + at);
            if (q.scales) y *= load(q.scales + out + at);
            if (q.bias) y += load(q.bias + out + at);
            store(static_cast<E*>(q.out) + (first + r) * q.stride + out + at, y);
        }
}

template <int KIND, bool STEPS>
void multiply_quantized(const Quantized& q, const Inputs& x, decltype(&write_results<float>) write) {
    const QuantizedProduct<KIND, STEPS> product(q, x);
    share_out((q.outs + OUTS - 1) / OUTS, (int)q.threads, [&](int64_t panel) {
        float* sums = workspace<float>(std::min(q.rows, ROWS_AT_ONCE) * OUTS, 5);
        for (int64_t first = 0; first < q.rows; first += ROWS_AT_ONCE) {
            const int64_t rows = std::min(ROWS_AT_ONCE, q.rows - first);
            product.multiply(panel, first, rows, sums);
            write(q, sums, first, rows, panel * OUTS);
        }
    });
}

template <class E, int KIND>
void multiply_quantized(const Quantized& q) {
    const auto multiply = q.steps ? multiply_quantized<KIND, true> : multiply_quantized<KIND, false>;
    multiply(q, read_inputs<E, KIND>(q), write_results<E>);
}

template <class E>
void multiply_quantized(const Quantized& q) {
    if (q.kind == TABLE) multiply_quantized<E, TABLE>(q);
    else if (q.kind == INT8) multiply_quantized<E, INT8>(q);
    else multiply_quantized<E, E4M3>(q);
}

}  // namespace baton
