// The vocabulary of the kernels for x86 CPUs with AVX-512. No other file has intrinsics of it.
//
// Vectors have LANES numbers of 32 bits. The compiler itself has + - * / for Vector, and + & | <<
// >> for Integers. "The first n" of a vector may be none (n <= 0) and may be all (n >= LANES).

#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../kinds.h"

namespace {

constexpr const char* INSTRUCTION_SET = "avx512";

constexpr int LANES = 16;
constexpr int PANEL_VECTORS = 2;  // vectors of columns that are multiplied together
constexpr int BLOCK = 14;         // rows: 14 times 2 of the 32 registers hold the result
// Of Int8, where it adds up products in 16 bits, see int8_rows.py; else 0.
constexpr int LARGEST_SUM = 0;

using Vector = __m512;
typedef uint32_t Integers __attribute__((vector_size(64), may_alias));

__mmask16 first(int n) { return n >= LANES ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1; }

// A turn of a loop that waits for another thread.
void spin() { _mm_pause(); }

// ---------------------------------------------------------------- between memory and vectors

// The first n numbers, then zeros.
Vector load(const float* from, int n) { return _mm512_maskz_loadu_ps(first(n), from); }

Vector load(const bfloat16* from, int n) {
    __m256i bits = _mm256_maskz_loadu_epi16(first(n), from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// The first n bytes, then zeros; n is at least 1.
Integers load_bytes(const void* from, int n) {
    __mmask64 mask = n >= 64 ? ~0ull : (1ull << n) - 1;
    return (Integers)_mm512_maskz_loadu_epi8(mask, from);
}

void store(float* to, Vector x, int n) { _mm512_mask_storeu_ps(to, first(n), x); }

void store(bfloat16* to, Vector x, int n) {
    _mm256_mask_storeu_epi16(to, first(n), (__m256i)_mm512_cvtneps_pbh(x));
}

void store(uint32_t* to, Integers x) { _mm512_storeu_si512(to, (__m512i)x); }

void store(uint32_t* to, Integers x, int n) {
    _mm512_mask_storeu_epi32(to, first(n), (__m512i)x);
}

// At least the first n, and maybe what lies behind them.
void store_at_least(uint32_t* to, Integers x, int n) { store(to, x, n); }

// The upper 16 bits of the first n integers.
void store_upper_halves(uint16_t* to, Integers x, int n) {
    __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)x, 16));
    _mm256_mask_storeu_epi16(to, first(n), halves);
}

// The lowest 8 bits of the first n integers.
void store_lowest_bytes(uint8_t* to, Integers x, int n) {
    _mm512_mask_cvtepi32_storeu_epi8(to, first(n), (__m512i)x);
}

// ---------------------------------------------------------------- lane by lane

Vector splat(float x) { return _mm512_set1_ps(x); }
Integers splat_bits(uint32_t x) { return (Integers)_mm512_set1_epi32(x); }

// The same bits as the other type, and integers as the numbers that they are.
Integers bits_of(Vector x) { return (Integers)x; }
Vector from_bits(Integers x) { return (Vector)x; }
Vector to_float(Integers x) { return _mm512_cvtepi32_ps((__m512i)x); }

// a · b + c and c - a · b, rounded once.
Vector fmadd(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
Vector fnmadd(Vector a, Vector b, Vector c) { return _mm512_fnmadd_ps(a, b, c); }

// Of NaN and a number these may give either.
Vector min(Vector a, Vector b) { return _mm512_min_ps(a, b); }
Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }

Vector abs(Vector x) { return _mm512_abs_ps(x); }

// 1 / x with a relative error of at most 2^-11. Newton's step makes it exact.
Vector reciprocal(Vector x) { return _mm512_rcp14_ps(x); }

// x - floor(x), and y · 2^floor(x). Sets without such instructions have floor() and, for whole
// numbers, to_integers(), of which math.h makes exp2.
#define HAS_POWERS_OF_TWO
Vector fraction(Vector x) {
    return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
Vector scale_by_exp2(Vector y, Vector x) { return _mm512_scalef_ps(y, x); }

// `negative` where x < 0, `other` elsewhere.
Vector where_negative(Vector x, Vector negative, Vector other) {
    __mmask16 mask = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(mask, other, negative);
}

// `nan` where x is NaN, `other` elsewhere.
Integers where_nan(Vector x, Integers nan, Integers other) {
    __mmask16 mask = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return (Integers)_mm512_mask_blend_epi32(mask, (__m512i)other, (__m512i)nan);
}

// The first n lanes, then zeros.
Vector keep_first(Vector x, int n) { return _mm512_maskz_mov_ps(first(n), x); }

// ---------------------------------------------------------------- across the lanes

float sum_of(Vector x) { return _mm512_reduce_add_ps(x); }
float smallest_of(Vector x) { return _mm512_reduce_min_ps(x); }
float largest_of(Vector x) { return _mm512_reduce_max_ps(x); }

// LANES rows become columns. Each round interleaves the two halves of the rows.
void transpose(Integers (&rows)[LANES]) {
    static const int low[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const __m512i lower = _mm512_loadu_si512(low);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(LANES / 2));
    for (int round = 0; round < 4; round++) {
        Integers mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            auto a = (__m512i)rows[i], b = (__m512i)rows[i + LANES / 2];
            mixed[2 * i] = (Integers)_mm512_permutex2var_epi32(a, lower, b);
            mixed[2 * i + 1] = (Integers)_mm512_permutex2var_epi32(a, upper, b);
        }
        for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}

// ---------------------------------------------------------------- kinds with an instruction

// blocks.h says what a kind is, and defines the others.
using Kinds = KindList<Float32, BFloat16, Int8, Widened>;

struct BFloat16 {
    using Activation = bfloat16;
    using Number = bfloat16;
    using Sum = Vector;
    using AttentionKinds = KindList<BFloat16>;
    static constexpr KindNumber NUMBER = KindNumber::bfloat16;
    static constexpr int NUMBERS = 2, STORED_UNITS = 1;

    static Integers unpack(Integers stored, int) { return stored; }

    static Sum multiply_add(Sum sum, uint32_t unit, Integers columns) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(unit), (__m512bh)columns);
    }

    // Two rows, rounded to bfloat16, as one of units.
    static Integers pair(Vector even, Vector odd) {
        alignas(64) static const uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                                     21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                                     11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        auto rows = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
        return (Integers)_mm512_permutexvar_epi16(_mm512_load_si512(order), rows);
    }
};

struct Int8 {
    using Activation = float;
    using Number = uint8_t;
    using Sum = Integers;
    using AttentionKinds = KindList<Float32, BFloat16>;
    static constexpr KindNumber NUMBER = KindNumber::int8;
    static constexpr int NUMBERS = 4, STORED_UNITS = 1, LOWEST = 0;

    static Integers unpack(Integers stored, int) { return stored; }

    static void store_numbers(Number* to, Integers x, int n) { store_lowest_bytes(to, x, n); }

    static Sum multiply_add(Sum sum, uint32_t unit, Integers columns) {
        // GCC 12 copies the registers around its own intrinsic, for half of the speed.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(splat_bits(unit)), "v"(columns));
        return sum;
    }
};

}  // namespace
