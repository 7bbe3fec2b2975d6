// What codes of 8 and of 4 bits stand for, as units of `multiply_add`, exactly: each number is a bf16.
//
// Codes stand in words of 32 bits, the first in the lowest ones. Where bf16 are multiplied in pairs, a pair is a code
// of a word's lower half and the one at the same place of its upper half: both are widened by the same instructions.
#pragma once

#include <cmath>

#include "attention.h"
#include "simd.h"

namespace baton {

enum Kind {
    TABLE,  // 4 bits: a place in a table
    INT8,   // 0.5 to 127.5 in the seven lower bits, and a sign: whole numbers from -128 to 127 and a half
    E4M3,   // an 8-bit float
};

constexpr int codes_of(int kind) { return kind == TABLE ? 8 : 4; }

// Numbers of codes in the lowest bits of each lane, whose other bits are 0.
template <int KIND>
static inline vf number(vi code) {
    const vi magnitude = code & 127, sign = (code & 128) << 24;
    if constexpr (KIND == INT8) return (vf)((vi)(__builtin_convertvector(magnitude, vf) + 0.5f) | sign);
    // Brought to where a float has them, exponent and mantissa mean 2^120 too little.
    const vf wide = (vf)(magnitude << 20) * 0x1p120f;
    return (vf)((vi)(magnitude == 127 ? vf{} + NAN : wide) | sign);
}

template <int PAIRED, int KIND>
class Codes;

// Of single floats: a word's numbers in their order.
template <int KIND>
class Codes<1, KIND> {
  public:
    static constexpr int UNITS = codes_of(KIND), BITS = 32 / UNITS;

    explicit Codes(const float* table) : table_(table) {
#if defined(__AVX2__)
        for (int i = 0; i < 16; i++) places_[i / LANES][i % LANES] = table ? table[i] : 0.0f;
#endif
    }

    template <int N>
    vi unit(vi word) const {
        const vi code = word >> (N * BITS) & ((1 << BITS) - 1);
        if constexpr (KIND == TABLE) return (vi)looked_up(code);
        else return (vi)number<KIND>(code);
    }

  private:
    vf looked_up(vi code) const {
#if defined(__AVX512F__)
        return (vf)_mm512_permutexvar_ps((__m512i)code, (__m512)places_[0]);
#elif defined(__AVX2__)
        const __m256 low = _mm256_permutevar8x32_ps((__m256)places_[0], (__m256i)code);
        const __m256 high = _mm256_permutevar8x32_ps((__m256)places_[1], (__m256i)code);
        return (vf)_mm256_blendv_ps(low, high, (__m256)(code << 28));
#else
        vf found;
        for (int i = 0; i < LANES; i++) found[i] = table_[code[i]];
        return found;
#endif
    }

    const float* table_;
#if defined(__AVX2__)
    vf places_[16 / LANES];
#endif
};

#ifdef __AVX512BF16__

template <>
class Codes<2, TABLE> {
  public:
    static constexpr int UNITS = 4;

    explicit Codes(const float* table) {
        alignas(64) bf16 twice[32];  // what is looked up has five bits, one more than a code
        for (int half = 0; half < 32; half += LANES) store(twice + half, load(table));
        table_ = _mm512_load_si512(twice);
    }

    template <int N>
    vi unit(vi word) const {
        return (vi)_mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)word, 4 * N), table_);
    }

  private:
    __m512i table_;
};

// Both bytes of a bf16 are looked up in tables of their own, by the bits below the sign.
template <int KIND>
class Codes<2, KIND> {
  public:
    static constexpr int UNITS = 2;

    explicit Codes(const float*) {
        static const Bytes bytes;
        for (int half = 0; half < 2; half++) {
            low_[half] = _mm512_load_si512(bytes.low + 64 * half);
            high_[half] = _mm512_load_si512(bytes.high + 64 * half);
        }
    }

    template <int N>
    vi unit(vi word) const {
        const __m512i code = (__m512i)word, sign = _mm512_set1_epi8(-128);
        const __m512i low = _mm512_permutex2var_epi8(low_[0], code, low_[1]);
        const __m512i high = _mm512_permutex2var_epi8(high_[0], code, high_[1]);
        const __m512i with_sign = _mm512_ternarylogic_epi32(high, code, sign, 0xf8);  // high | code & sign
        constexpr __mmask64 UPPER = 0xaaaaaaaaaaaaaaaa;
        if constexpr (N == 0) return (vi)_mm512_mask_blend_epi8(UPPER, low, _mm512_slli_epi16(with_sign, 8));
        else return (vi)_mm512_mask_blend_epi8(UPPER, _mm512_srli_epi16(low, 8), with_sign);
    }

  private:
    struct Bytes {
        alignas(64) uint8_t low[128], high[128];
        Bytes() {
            for (int i = 0; i < 128; i++) {
                const vu bits = (vu)number<KIND>(vi{} + i);
                low[i] = bits[0] >> 16 & 0xff, high[i] = bits[0] >> 24;
            }
        }
    };
    __m512i low_[2], high_[2];
};

#endif

}  // namespace baton
