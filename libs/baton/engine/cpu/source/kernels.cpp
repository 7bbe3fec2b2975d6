// The C interface of Baton's CPU kernels: plain pointers and 64-bit numbers, sizes in elements, strides in elements.
// `bits` is the width of an element: 32 for float, 16 for bf16. Sizes of heads and of rows are multiples of 16.
// Nothing is checked here: the Python side has done so.
#include "attention.h"
#include "elementwise.h"
#include "panels.h"
#include "quantized.h"

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

#pragma GCC visibility push(default)
extern "C" {

int64_t baton_lanes() { return LANES; }

// Threads of a team from now on; null for own ones.
void baton_use_team(Team known) { team().store(known); }

void baton_attend(int64_t bits, const Attention* attention) { FOR_ELEMENT(bits, attend<E>(*attention);) }

// K and V [tokens][stride] to their slots of a layer [pages, 2, page_size, size].
void baton_write(int64_t bits, void* pool, const void* k, const void* v, const int64_t* slots, int64_t tokens,
                 int64_t k_stride, int64_t v_stride, int64_t page_size, int64_t size) {
    FOR_ELEMENT(bits, for (int64_t t = 0; t < tokens; t++) {
        E* at = static_cast<E*>(pool) + (slots[t] / page_size * 2 * page_size + slots[t] % page_size) * size;
        memcpy(at, static_cast<const E*>(k) + t * k_stride, size * sizeof(E));
        memcpy(at + page_size * size, static_cast<const E*>(v) + t * v_stride, size * sizeof(E));
    })
}

// out[tokens, size] = norm of (x + added), and x += added; `added` may be null. Weights have `weight_bits`, those of x
// or 32.
void baton_norm(int64_t bits, int64_t weight_bits, void* x, const void* added, const void* weight, void* out,
                int64_t tokens, int64_t size, double eps, int64_t threads) {
    FOR_WEIGHT(weight_bits, FOR_ELEMENT(bits, for_tokens(tokens, threads, [=](int64_t t) {
        E* row = static_cast<E*>(x) + t * size;
        if (added) {
            const E* more = static_cast<const E*>(added) + t * size;
            for (int64_t i = 0; i < size; i += LANES) store(row + i, load(row + i) + load(more + i));
        }
        normalize(row, static_cast<const W*>(weight), static_cast<E*>(out) + t * size, size, (float)eps);
    });))
}

// In place: the first `heads` heads of x [tokens][stride] and the `kv_heads` after them are normed by q_norm and k_norm
// [dim], unless these are null, and rotated by cosines and sines [tokens, dim / 2].
void baton_rotate(int64_t bits, int64_t weight_bits, void* x, const void* cosines, const void* sines,
                  const void* q_norm, const void* k_norm, int64_t tokens, int64_t stride, int64_t heads,
                  int64_t kv_heads, int64_t dim, double eps, int64_t threads) {
    FOR_WEIGHT(weight_bits, FOR_ELEMENT(bits, for_tokens(tokens, threads, [=](int64_t t) {
        for (int64_t h = 0; h < heads + kv_heads; h++) {
            E* head = static_cast<E*>(x) + t * stride + h * dim;
            const W* weight = static_cast<const W*>(h < heads ? q_norm : k_norm);
            if (weight) normalize(head, weight, head, dim, (float)eps);
            turn(head, static_cast<const E*>(cosines) + t * dim / 2, static_cast<const E*>(sines) + t * dim / 2, dim);
        }
    });))
}

void baton_multiply(int64_t bits, const Quantized* quantized) { FOR_ELEMENT(bits, multiply_quantized<E>(*quantized);) }

// Whether `baton_multiply_panels` computes anything: it needs products of pairs of bf16.
int64_t baton_multiplies_pairs() { return PAIR<bf16> == 2; }

void baton_multiply_panels(const Panels* panels) { multiply_panels(*panels); }

// out[tokens, size] = activation(gate) * up, of x [tokens, 2 * size]: gate, up. `kind`: Gate.
void baton_gate(int64_t bits, int64_t kind, const void* x, void* out, int64_t tokens, int64_t size, int64_t threads) {
    FOR_ELEMENT(bits, for_tokens(tokens, threads, [=](int64_t t) {
        const auto of = kind == SILU ? gate<SILU, E> : gate<GELU, E>;
        of(static_cast<const E*>(x) + t * 2 * size, static_cast<E*>(out) + t * size, size);
    });)
}
}  // extern "C"
#pragma GCC visibility pop
