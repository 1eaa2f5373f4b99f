// The vocabulary of the kernels for x86 CPUs with AVX2 and FMA, and for those of them that also
// have AVX-VNNI. No other file has intrinsics of it. avx512.h says what the functions mean.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../kinds.h"

namespace {

#ifdef __AVXVNNI__
constexpr const char* INSTRUCTION_SET = "avxvnni";
constexpr int LARGEST_SUM = 0;
#else
constexpr const char* INSTRUCTION_SET = "avx2";
constexpr int LARGEST_SUM = 128;  // 255 times this is less than 2^15
#endif

constexpr int LANES = 8;
constexpr int PANEL_VECTORS = 2;
constexpr int BLOCK = 6;  // rows: 6 times 2 of the 16 registers hold the result

using Vector = __m256;
typedef uint32_t Integers __attribute__((vector_size(32), may_alias));

// All bits of the first n lanes.
__m256i first(int n) {
    alignas(64) static const int32_t ones[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i*)(ones + LANES - std::clamp(n, 0, LANES)));
}

void spin() { _mm_pause(); }

// ---------------------------------------------------------------- between memory and vectors

Vector load(const float* from, int n) {
    return n >= LANES ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first(n));
}

Vector load(const bfloat16* from, int n) {
    __m128i bits{};
    if (n >= LANES) bits = _mm_loadu_si128((const __m128i*)from);
    else if (n > 0) std::memcpy(&bits, from, n * sizeof(bfloat16));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// All at once where all are there: a copy of a size that varies goes through memory.
Integers load_bytes(const void* from, int n) {
    if (n >= 32) return (Integers)_mm256_loadu_si256((const __m256i*)from);
    Integers bytes{};
    std::memcpy(&bytes, from, n);
    return bytes;
}

void store(float* to, Vector x, int n) {
    if (n >= LANES) _mm256_storeu_ps(to, x);
    else _mm256_maskstore_ps(to, first(n), x);
}

void store(uint32_t* to, Integers x) { _mm256_storeu_si256((__m256i*)to, (__m256i)x); }

void store(uint32_t* to, Integers x, int n) {
    if (n >= LANES) store(to, x);
    else _mm256_maskstore_epi32((int*)to, first(n), (__m256i)x);
}

// AMD's CPUs are slow at those under a mask: attention of 64 tokens took .1 more with them.
void store_at_least(uint32_t* to, Integers x, int) { store(to, x); }

// The first n of eight numbers that fill a small vector.
template <class Number, class Small>
void store_small(Number* to, Small numbers, int n) {
    if (n >= LANES) std::memcpy(to, &numbers, LANES * sizeof(Number));
    else if (n > 0) std::memcpy(to, &numbers, n * sizeof(Number));
}

// Numbers of less than 2^16, as the halves of the words that they come in.
__m128i halves(__m256i x) {
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

void store_upper_halves(uint16_t* to, Integers x, int n) {
    store_small(to, halves(_mm256_srli_epi32((__m256i)x, 16)), n);
}

void store_lowest_bytes(uint8_t* to, Integers x, int n) {
    __m128i small = halves(_mm256_and_si256((__m256i)x, _mm256_set1_epi32(0xFF)));
    store_small(to, _mm_packus_epi16(small, small), n);
}

// ---------------------------------------------------------------- lane by lane

Vector splat(float x) { return _mm256_set1_ps(x); }
Integers splat_bits(uint32_t x) { return (Integers)_mm256_set1_epi32(x); }

Integers bits_of(Vector x) { return (Integers)x; }
Vector from_bits(Integers x) { return (Vector)x; }
Vector to_float(Integers x) { return _mm256_cvtepi32_ps((__m256i)x); }

Vector fmadd(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
Vector fnmadd(Vector a, Vector b, Vector c) { return _mm256_fnmadd_ps(a, b, c); }

// Of NaN and a number these give b.
Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }

Vector abs(Vector x) { return _mm256_andnot_ps(splat(-0.0f), x); }

Vector reciprocal(Vector x) { return _mm256_rcp_ps(x); }

Vector floor(Vector x) { return _mm256_floor_ps(x); }
Integers to_integers(Vector x) { return (Integers)_mm256_cvtps_epi32(x); }

Vector where_negative(Vector x, Vector negative, Vector other) {
    return _mm256_blendv_ps(other, negative, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}

Integers where_nan(Vector x, Integers nan, Integers other) {
    Vector mask = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    return bits_of(_mm256_blendv_ps(from_bits(other), from_bits(nan), mask));
}

Vector keep_first(Vector x, int n) {
    return n >= LANES ? x : _mm256_and_ps(x, _mm256_castsi256_ps(first(n)));
}

// ---------------------------------------------------------------- across the lanes

// `call` of two vectors, lane by lane, until one number is left.
template <class Call>
float reduce(Vector x, Call call) {
    x = call(x, _mm256_permute2f128_ps(x, x, 1));
    x = call(x, _mm256_permute_ps(x, 0b01001110));
    return _mm256_cvtss_f32(call(x, _mm256_permute_ps(x, 0b10110001)));
}

float sum_of(Vector x) { return reduce(x, [](Vector a, Vector b) { return a + b; }); }
float smallest_of(Vector x) { return reduce(x, min); }
float largest_of(Vector x) { return reduce(x, max); }

void transpose(Integers (&rows)[LANES]) {
    for (int round = 0; round < 3; round++) {
        Integers mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            auto a = (__m256i)rows[i], b = (__m256i)rows[i + LANES / 2];
            __m256i low = _mm256_unpacklo_epi32(a, b), high = _mm256_unpackhi_epi32(a, b);
            mixed[2 * i] = (Integers)_mm256_permute2x128_si256(low, high, 0x20);
            mixed[2 * i + 1] = (Integers)_mm256_permute2x128_si256(low, high, 0x31);
        }
        for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}

// ---------------------------------------------------------------- kinds with an instruction

using Kinds = KindList<Float32, Int8, Widened>;

#ifdef __AVXVNNI__

struct Int8 {
    using Activation = float;
    using Number = uint8_t;
    using Sum = Integers;
    using AttentionKinds = KindList<Float32>;
    static constexpr KindNumber NUMBER = KindNumber::int8;
    static constexpr int NUMBERS = 4, STORED_UNITS = 1, LOWEST = 0;

    static Integers unpack(Integers stored, int) { return stored; }

    static void store_numbers(Number* to, Integers x, int n) { store_lowest_bytes(to, x, n); }

    static Sum multiply_add(Sum sum, uint32_t unit, Integers columns) {
        return (Sum)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)splat_bits(unit),
                                            (__m256i)columns);
    }
};

#else

// The instruction that multiplies bytes adds up two products in 16 bits, and would saturate. Here
// two of its results are added up there, and LARGEST_SUM keeps them exact. For 64 products this
// takes five instructions, where numbers of 16 bits would take eight.
struct Int8 {
    using Activation = float;
    using Number = uint8_t;
    using Sum = Integers;
    using AttentionKinds = KindList<Float32>;
    using AddsPairs = void;
    static constexpr KindNumber NUMBER = KindNumber::int8;
    static constexpr int NUMBERS = 4, STORED_UNITS = 1, LOWEST = 0;

    static void store_numbers(Number* to, Integers x, int n) { store_lowest_bytes(to, x, n); }

    static Sum multiply_add(Sum sum, uint32_t unit, uint32_t next, Integers columns,
                            Integers next_columns) {
        auto one = (__m256i)splat_bits(unit), other = (__m256i)splat_bits(next);
        __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(one, (__m256i)columns),
                                        _mm256_maddubs_epi16(other, (__m256i)next_columns));
        return sum + (Sum)_mm256_madd_epi16(both, _mm256_set1_epi16(1));
    }
};

#endif

}  // namespace
