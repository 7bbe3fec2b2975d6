// Vectors of LANES floats, by the compiler's vector extension: one source for AVX-512, AVX2 and anything else.
// Products and sums may be contracted to fused multiply-adds; NaN and infinities behave as IEEE 754 says.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace baton {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

struct bf16 {
    uint16_t bits;
};

struct half {
    uint16_t bits;
};

// Eight bits, four of exponent and three of mantissa, without infinities (OCP 8-bit floating point 1.0: E4M3).
struct f8 {
    uint8_t bits;
};

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));
typedef uint8_t vb __attribute__((vector_size(LANES)));

// Conversions for which the compiler's own code is many instructions long.
#if defined(__AVX512F__)
static inline vu widened(vh h) { return (vu)_mm512_cvtepu16_epi32((__m256i)h); }
static inline vu widened(vb b) { return (vu)_mm512_cvtepu8_epi32((__m128i)b); }
static inline vh narrowed(vu u) { return (vh)_mm512_cvtepi32_epi16((__m512i)u); }
static inline vb narrowest(vu u) { return (vb)_mm512_cvtepi32_epi8((__m512i)u); }
#elif defined(__AVX2__)
static inline vu widened(vh h) { return (vu)_mm256_cvtepu16_epi32((__m128i)h); }
static inline vu widened(vb b) {
    int64_t bits;
    memcpy(&bits, &b, sizeof bits);
    return (vu)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bits));
}
static inline vh narrowed(vu u) { return __builtin_convertvector(u, vh); }
static inline vb narrowest(vu u) { return __builtin_convertvector(u, vb); }
#else
static inline vu widened(vh h) { return __builtin_convertvector(h, vu); }
static inline vu widened(vb b) { return __builtin_convertvector(b, vu); }
static inline vh narrowed(vu u) { return __builtin_convertvector(u, vh); }
static inline vb narrowest(vu u) { return __builtin_convertvector(u, vb); }
#endif

// f(0) to f(N - 1) with constant arguments: arrays that are indexed by them live in registers, which a loop that the
// compiler unrolls later does not achieve.
template <class F, int... I>
__attribute__((always_inline)) static inline void each_of(const F& f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
__attribute__((always_inline)) static inline void each(const F& f) {
    each_of(f, std::make_integer_sequence<int, N>{});
}

static inline vf splat(float x) { return x - vf{}; }

static inline vf load(const float* p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vf load(const bf16* p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(widened(h) << 16);
}

static inline vf load(const int8_t* p) {
    vb octets;
    memcpy(&octets, p, sizeof octets);
    return __builtin_convertvector((vi)(widened(octets) << 24) >> 24, vf);
}

// IEEE half precision: exact, but for what is no finite number.
static inline vf load(const half* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    vh h;
    memcpy(&h, p, sizeof h);
    const vu wide = widened(h);
    const vf magnitude = (vf)((wide & 0x7fff) << 13) * 0x1p112f;  // whose exponent means so much less there
    return (vf)((vu)magnitude | (wide & 0x8000) << 16);
#endif
}

constexpr int E4M3_SHIFT = 20;                     // from its mantissa to a float's
constexpr uint32_t E4M3_BIAS = 120u << 23;         // between the exponents of both
constexpr uint32_t E4M3_NAN = 0x7f, FLOAT_NAN = 0x7fc00000;
constexpr float E4M3_MOST = 448.0f, E4M3_NORMAL = 0.015625f;  // the largest number, and the least normal one
constexpr float E4M3_CLIPPED = 464.0f;             // what is more is nearer to a number that there is not

// Exact.
#if defined(__AVX512F__)
static inline vf load(const f8* p) {
    // Shifted, it is a number in IEEE half precision, 256 times less: conversions know denormal ones at no cost.
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    const __m512 less = _mm512_cvtph_ps(_mm256_and_si256(shifted, _mm256_set1_epi16(-0x4001)));
    const __mmask16 number = _mm_cmpneq_epi8_mask(_mm_or_si128(bytes, _mm_set1_epi8(-128)), _mm_set1_epi8(-1));
    return (vf)_mm512_mask_mul_ps((__m512)((vu)vi{} + FLOAT_NAN), number, less, _mm512_set1_ps(256.0f));
}
#else
static inline vf load(const f8* p) {
    vb b;
    memcpy(&b, p, sizeof b);
    const vu wide = widened(b), magnitude = wide & 0x7f;
    // Below the least normal number the exponent counts as 1, and there is no leading 1, which is taken off again.
    const vf normal = (vf)((magnitude << E4M3_SHIFT) + E4M3_BIAS);
    const vf denormal = (vf)((magnitude << E4M3_SHIFT) + E4M3_BIAS + (1u << 23)) - E4M3_NORMAL;
    const vf number = magnitude < 8 ? denormal : normal;
    return (vf)((magnitude == E4M3_NAN ? (vu)vi{} + FLOAT_NAN : (vu)number) | (wide & 0x80) << 24);
}
#endif

static inline void store(float* p, vf v) { memcpy(p, &v, sizeof v); }

// To the nearest E4M3, ties to even; the largest one for what is larger; NaN stays NaN.
static inline void store(f8* p, vf v) {
    const vu bits = (vu)v, sign = bits >> 24 & 0x80;
    vf magnitude = (vf)(bits & 0x7fffffff);
    magnitude = magnitude > E4M3_MOST ? vf{} + E4M3_MOST : magnitude;
    const vu wide = (vu)magnitude - E4M3_BIAS;
    const vu normal = (wide + ((1u << (E4M3_SHIFT - 1)) - 1) + (wide >> E4M3_SHIFT & 1)) >> E4M3_SHIFT;
    const vf magic = vf{} + 16384.0f;  // adding it rounds to a multiple of the least denormal number
    const vu denormal = (vu)(magnitude + magic) - (vu)magic;
    const vu number = magnitude < E4M3_NORMAL ? denormal : normal;
    const vb b = narrowest((v == v ? number : (vu)vi{} + E4M3_NAN) | sign);
    memcpy(p, &b, sizeof b);
}

// To the nearest bf16, ties to even; NaN stays NaN.
static inline void store(bf16* p, vf v) {
    vu bits = (vu)v;
    vu rounded = bits + 0x7fff + ((bits >> 16) & 1);
    vh h = narrowed((v == v ? rounded : (bits | 0x400000)) >> 16);
    memcpy(p, &h, sizeof h);
}

static inline vf rounded_to(const float*, vf v) { return v; }
static inline vf rounded_to(const bf16*, vf v) {
    bf16 h[LANES];
    store(h, v);
    return load(h);
}

// Asks for `count` elements from `p` on to be brought near; any address is allowed.
template <class E>
static inline void prefetch(const E* p, int64_t count) {
    const char* end = reinterpret_cast<const char*>(p + count);
    for (const char* line = reinterpret_cast<const char*>(p); line < end; line += 64) __builtin_prefetch(line, 0, 2);
}

static inline vf larger(vf a, vf b) { return a > b ? a : b; }

template <int STEP, int... I>
static inline vf rotated(vf v, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(v, v, (I ^ STEP)...);
}

using Lanes = std::make_integer_sequence<int, LANES>;

template <int STEP = LANES / 2>
static inline float sum(vf v) {
    if constexpr (STEP == 0) return v[0];
    else return sum<STEP / 2>(v + rotated<STEP>(v, Lanes{}));
}

template <int STEP = LANES / 2>
static inline float largest(vf v) {
    if constexpr (STEP == 0) return v[0];
    else return largest<STEP / 2>(larger(v, rotated<STEP>(v, Lanes{})));
}

// Where lane I of two folded vectors comes from: each group of 2 * HALF lanes halves, and a's half comes before b's.
template <int HALF>
constexpr int folded_from(int lane) {
    return (lane / (2 * HALF)) * (2 * HALF) + lane % HALF + (lane % (2 * HALF) < HALF ? 0 : LANES);
}

template <int HALF, int... I>
static inline vf fold(vf a, vf b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, folded_from<HALF>(I)...) +
           __builtin_shufflevector(a, b, (folded_from<HALF>(I) + HALF)...);
}

// Sums of LANES vectors: lane i of the result is the sum of v[i]. Overwrites v.
template <int HALF = LANES / 2>
static inline vf sums(vf* v) {
    if constexpr (HALF == 0) return v[0];
    else {
        for (int i = 0; i < HALF; i++) v[i] = fold<HALF>(v[i], v[i + HALF], Lanes{});
        return sums<HALF / 2>(v);
    }
}

// e^x within 2 units in the last place for x <= 88; below -87.3 it is 0. NaN stays NaN.
static inline vf exponential(vf x) {
    const vf least = splat(-87.3f);
    vf clipped = x < least ? least : x;
    const vf magic = splat(12582912.0f);  // adding it rounds to an integer
    vf whole = clipped * 1.44269504089f + magic;
    vi n = (vi)whole - (vi)magic;
    vf rounded = whole - magic;
    vf r = clipped - rounded * 0.693359375f;
    r = r + rounded * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vf scale = (vf)((n + 127) << 23);
    return x < least ? vf{} : p * scale;
}

static inline vf sigmoid(vf x) {
    const vf down = -x;
    return 1.0f / (1.0f + exponential(down > splat(88.0f) ? splat(88.0f) : down));
}

}  // namespace baton
