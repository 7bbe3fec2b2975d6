// States of constant size in pages of the pool, as kernels of layers see them that keep one: part of a state of a row,
// read from pages that a step must leave as they are and written to others, or to the same.
//
// A state's bytes go through its pages one after the other, wherever these end: what is cut in two goes through a copy.
#pragma once

#include <algorithm>
#include <cstring>

#include "attention.h"
#include "simd.h"

namespace baton {

// What differs from step to step.
struct StateTables {
    const int64_t* sources;   // [rows, pages]: pages of the states before the step
    const int64_t* targets;   // [rows, pages]: those after it; may be the same
    const int32_t* q_starts;  // [rows + 1]
    const int32_t* seq_lens;  // [rows]
    int64_t pages, rows;
};

// One tensor of the states of a layer.
struct StatePart {
    char* pool;  // the layer's pages
    const StateTables* tables;
    int64_t page_bytes;
    int64_t offset;  // bytes of a state before this part
};

// The state of one row: `part` of it.
class RowState {
  public:
    RowState(const StatePart& part, int64_t row)
        : part_(part),
          sources_(part.tables->sources + row * part.tables->pages),
          targets_(part.tables->targets + row * part.tables->pages),
          begins_(part.tables->seq_lens[row] == part.tables->q_starts[row + 1] - part.tables->q_starts[row]) {}

    // Bytes [at, at + bytes) of the part before the step: zeros of a row that begins with its request.
    void read(int64_t at, int64_t bytes, void* into) const {
        if (begins_) {
            memset(into, 0, bytes);
            return;
        }
        char* next = static_cast<char*>(into);
        each_piece(sources_, at, bytes, [&](const char* piece, int64_t count) {
            memcpy(next, piece, count);
            next += count;
        });
    }

    void write(int64_t at, int64_t bytes, const void* from) const {
        const char* next = static_cast<const char*>(from);
        each_piece(targets_, at, bytes, [&](char* piece, int64_t count) {
            memcpy(piece, next, count);
            next += count;
        });
    }

    // Asks for bytes [at, at + bytes) of the part, of a row that does not begin, to be brought near.
    void ask(int64_t at, int64_t bytes) const {
        if (begins_ || bytes <= 0) return;
        each_piece(sources_, at, bytes, [](const char* piece, int64_t count) { prefetch(piece, count); });
    }

    // Where `count` rows of `size` floats from byte `at` on are read and written. Those that lie in two pages are read
    // to `spare` [count, size], and `put_back` writes them. `zeros` [size]: what rows read that begin.
    void locate(int64_t at, int64_t count, int64_t size, float* spare, const float* zeros, const float** from,
                float** to) const {
        const int64_t bytes = size * sizeof(float);
        int64_t page = (part_.offset + at) / part_.page_bytes, within = (part_.offset + at) % part_.page_bytes;
        for (int64_t i = 0; i < count; i++, within += bytes, spare += size) {
            while (within >= part_.page_bytes) page++, within -= part_.page_bytes;
            if (within + bytes <= part_.page_bytes) {
                to[i] = reinterpret_cast<float*>(part_.pool + targets_[page] * part_.page_bytes + within);
                from[i] = reinterpret_cast<const float*>(part_.pool + sources_[page] * part_.page_bytes + within);
            } else {
                to[i] = spare;
                from[i] = spare;
                if (!begins_) read(at + i * bytes, bytes, spare);
            }
            if (begins_) from[i] = zeros;
        }
    }

    void put_back(int64_t at, int64_t count, int64_t size, const float* spare, float* const* to) const {
        for (int64_t i = 0; i < count; i++)
            if (to[i] == spare + i * size) write(at + i * size * sizeof(float), size * sizeof(float), to[i]);
    }

  private:
    template <class Visit>
    void each_piece(const int64_t* pages, int64_t at, int64_t bytes, const Visit& visit) const {
        int64_t page = (part_.offset + at) / part_.page_bytes, within = (part_.offset + at) % part_.page_bytes;
        for (; bytes > 0; page++, within = 0) {
            const int64_t count = std::min(bytes, part_.page_bytes - within);
            visit(part_.pool + pages[page] * part_.page_bytes + within, count);
            bytes -= count;
        }
    }

    const StatePart& part_;
    const int64_t* sources_;
    const int64_t* targets_;
    const bool begins_;
};

static inline vf silu(vf x) { return x * sigmoid(x); }

// log(1 + e^x) = larger(x, 0) + log(1 + z) with z = e^-|x|, which is 2 atanh(w) with w = z / (2 + z), a third at most.
static inline vf softplus(vf x) {
    const vf z = exponential(x > vf{} ? -x : x), w = z / (z + 2.0f), square = w * w;
    vf series = splat(1.0f / 15.0f);
    for (int odd = 13; odd > 0; odd -= 2) series = series * square + 1.0f / (float)odd;
    return larger(x, vf{}) + 2.0f * w * series;
}

static inline float softplus(float x) { return softplus(splat(x))[0]; }

static inline float wide(float x) { return x; }
static inline float wide(bf16 x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// x rounded to E.
template <class E>
float rounded(float x) {
    return rounded_to(static_cast<const E*>(nullptr), splat(x))[0];
}

// into[size] = x[size], as floats.
template <class E>
void widened_row(const E* x, int64_t size, float* into) {
    for (int64_t i = 0; i < size; i += LANES) store(into + i, load(x + i));
}

}  // namespace baton
