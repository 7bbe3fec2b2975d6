// The C interface of Baton's CPU kernels: plain pointers and 64-bit numbers, sizes in elements, strides in elements.
// `bits` is the width of an element: 32 for float, 16 for bf16; in pages 8 for f8, too. Sizes of heads and of rows are
// multiples of 16.
// Every kernel takes the address of one struct, so that calls can be kept in a list and made again.
// Nothing is checked here: the Python side has done so.
#include "attention.h"
#include "convolution.h"
#include "elementwise.h"
#include "mamba1.h"
#include "panels.h"
#include "quantized.h"
#include "recurrences.h"

using namespace baton;

#define FOR_ELEMENT(bits, body)      \
    if ((bits) == 16) {              \
        using E = bf16;              \
        body                         \
    } else {                         \
        using E = float;             \
        body                         \
    }

// As FOR_ELEMENT, for weights of norms: W.
#define FOR_WEIGHT(bits, body)       \
    if ((bits) == 16) {              \
        using W = bf16;              \
        body                         \
    } else {                         \
        using W = float;             \
        body                         \
    }

// As FOR_ELEMENT, for elements of a pool whose model computes with E: S, which is E unless it has fewer bits.
#define FOR_STORED(bits, body)       \
    if ((bits) == 8) {               \
        using S = f8;                \
        body                         \
    } else {                         \
        using S = E;                 \
        body                         \
    }

// What differs from step to step, while all else of a call stays: of the step's rows, and of its tokens.
struct Tables {
    const int32_t* page_table;
    const int32_t* q_starts;
    const int32_t* seq_lens;
    const int64_t* slots;  // [tokens]
    int64_t table_width, rows;
};

struct Attend {
    Attention attention;  // with what `tables` has
    const Tables* tables;
    int64_t bits, stored_bits;
};

struct Write {
    void* pool;  // a layer [pages, 2, page_size, size]
    const void* k;  // [tokens][stride]
    const void* v;
    const Tables* tables;
    int64_t* clipped;  // adds to it how many numbers the pool's type is too small for
    double element;  // what a 1 in the pool stands for
    int64_t bits, stored_bits, tokens, k_stride, v_stride, page_size, size;
};

struct Norm {
    void* x;  // [tokens, size]
    const void* added;  // or null
    const void* weight;  // [size]
    void* out;
    double eps;
    int64_t bits, weight_bits, tokens, size, threads;
};

struct Rotate {
    void* x;  // [tokens][stride]
    const void* cosines;  // [tokens, dim / 2]
    const void* sines;
    const void* q_norm;  // [dim], or null
    const void* k_norm;
    double eps;
    int64_t bits, weight_bits, tokens, stride, heads, kv_heads, dim, threads;
};

struct Gated {
    const void* x;  // [tokens, 2 * size]: gate, up
    void* out;
    int64_t bits, kind, tokens, size, threads;
};

struct Weighed {
    const void* x;  // [tokens, size]
    const void* gate;
    void* out;
    int64_t bits, tokens, size, threads;
};

struct Multiply {
    Quantized quantized;
    int64_t bits;
};

struct Convolve {
    Convolution convolution;
    int64_t bits;
};

struct Scan {
    Mamba2 mamba2;
    int64_t bits;
};

struct Select {
    Mamba1 mamba1;
    int64_t bits;
};

struct Correct {
    Delta delta;
    int64_t bits;
};

struct NormGated {
    GatedNorm norm;
    int64_t bits, weight_bits;
};

// One of the functions below and what it is called with.
struct Call {
    void (*function)(const void*);
    const void* with;
};

#pragma GCC visibility push(default)
extern "C" {

int64_t baton_lanes() { return LANES; }

// Threads of a team from now on; null for own ones.
void baton_use_team(Team known) { team().store(known); }

// Whether `baton_multiply_panels` computes anything: it needs products of pairs of bf16.
int64_t baton_multiplies_pairs() { return PAIR<bf16> == 2; }

void baton_attend(const void* with) {
    const Attend& c = *static_cast<const Attend*>(with);
    Attention a = c.attention;
    a.page_table = c.tables->page_table, a.q_starts = c.tables->q_starts, a.seq_lens = c.tables->seq_lens;
    a.table_width = c.tables->table_width, a.rows = c.tables->rows;
    FOR_ELEMENT(c.bits, FOR_STORED(c.stored_bits, (attend<E, S>(a));))
}

// K and V to their slots.
void baton_write(const void* with) {
    const Write& c = *static_cast<const Write*>(with);
    FOR_ELEMENT(c.bits, for (int64_t t = 0; t < c.tokens; t++) {
        const int64_t slot = c.tables->slots[t];
        const int64_t at = (slot / c.page_size * 2 * c.page_size + slot % c.page_size) * c.size;
        FOR_STORED(c.stored_bits, {
            S* k = static_cast<S*>(c.pool) + at;
            keep(k, static_cast<const E*>(c.k) + t * c.k_stride, c.size, c.element, c.clipped);
            keep(k + c.page_size * c.size, static_cast<const E*>(c.v) + t * c.v_stride, c.size, c.element, c.clipped);
        })
    })
}

// out = norm of (x + added), and x += added. Weights have `weight_bits`, those of x or 32.
void baton_norm(const void* with) {
    const Norm& c = *static_cast<const Norm*>(with);
    FOR_WEIGHT(c.weight_bits, FOR_ELEMENT(c.bits, for_tokens(c.tokens, c.threads, [&](int64_t t) {
        E* row = static_cast<E*>(c.x) + t * c.size;
        if (c.added) {
            const E* more = static_cast<const E*>(c.added) + t * c.size;
            for (int64_t i = 0; i < c.size; i += LANES) store(row + i, load(row + i) + load(more + i));
        }
        normalize(row, static_cast<const W*>(c.weight), static_cast<E*>(c.out) + t * c.size, c.size, (float)c.eps);
    });))
}

// In place: the first `heads` heads of x and the `kv_heads` after them are normed by q_norm and k_norm, unless these are
// null, and rotated.
void baton_rotate(const void* with) {
    const Rotate& c = *static_cast<const Rotate*>(with);
    FOR_WEIGHT(c.weight_bits, FOR_ELEMENT(c.bits, for_tokens(c.tokens, c.threads, [&](int64_t t) {
        const E* cosines = static_cast<const E*>(c.cosines) + t * c.dim / 2;
        const E* sines = static_cast<const E*>(c.sines) + t * c.dim / 2;
        for (int64_t h = 0; h < c.heads + c.kv_heads; h++) {
            E* head = static_cast<E*>(c.x) + t * c.stride + h * c.dim;
            const W* weight = static_cast<const W*>(h < c.heads ? c.q_norm : c.k_norm);
            if (weight) normalize(head, weight, head, c.dim, (float)c.eps);
            turn(head, cosines, sines, c.dim);
        }
    });))
}

// out[tokens, size] = activation(gate) * up. `kind`: Gate.
void baton_gate(const void* with) {
    const Gated& c = *static_cast<const Gated*>(with);
    FOR_ELEMENT(c.bits, for_tokens(c.tokens, c.threads, [&](int64_t t) {
        const auto of = c.kind == SILU ? gate<SILU, E> : gate<GELU, E>;
        of(static_cast<const E*>(c.x) + t * 2 * c.size, static_cast<E*>(c.out) + t * c.size, c.size);
    });)
}

// out[tokens, size] = x times the sigmoid of gate.
void baton_weigh(const void* with) {
    const Weighed& c = *static_cast<const Weighed*>(with);
    FOR_ELEMENT(c.bits, for_tokens(c.tokens, c.threads, [&](int64_t t) {
        const int64_t at = t * c.size;
        const E* x = static_cast<const E*>(c.x) + at;
        weigh_by(x, static_cast<const E*>(c.gate) + at, static_cast<E*>(c.out) + at, c.size);
    });)
}

void baton_multiply(const void* with) {
    const Multiply& c = *static_cast<const Multiply*>(with);
    FOR_ELEMENT(c.bits, multiply_quantized<E>(c.quantized);)
}

void baton_multiply_panels(const void* with) { multiply_panels(*static_cast<const Panels*>(with)); }

void baton_convolve(const void* with) {
    const Convolve& c = *static_cast<const Convolve*>(with);
    FOR_ELEMENT(c.bits, convolve<E>(c.convolution);)
}

void baton_scan(const void* with) {
    const Scan& c = *static_cast<const Scan*>(with);
    FOR_ELEMENT(c.bits, scan<E>(c.mamba2);)
}

void baton_select(const void* with) {
    const Select& c = *static_cast<const Select*>(with);
    FOR_ELEMENT(c.bits, select<E>(c.mamba1);)
}

void baton_delta(const void* with) {
    const Correct& c = *static_cast<const Correct*>(with);
    FOR_ELEMENT(c.bits, delta<E>(c.delta);)
}

void baton_gated_norm(const void* with) {
    const NormGated& c = *static_cast<const NormGated*>(with);
    FOR_WEIGHT(c.weight_bits, FOR_ELEMENT(c.bits, for_tokens(c.norm.tokens, c.norm.threads, [&](int64_t t) {
        gated_norm<E, W>(c.norm, t);
    });))
}

// All calls, one after the other.
void baton_run(const Call* calls, int64_t count) {
    for (int64_t i = 0; i < count; i++) calls[i].function(calls[i].with);
}
}  // extern "C"
#pragma GCC visibility pop
