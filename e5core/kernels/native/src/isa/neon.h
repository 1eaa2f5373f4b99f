// The vocabulary of the kernels for Arm CPUs with 64 bits, and for those of them that also have the
// dot product or the matrix product of bytes. No other file has intrinsics of it. avx512.h says what
// the functions mean.

#pragma once

#include <arm_neon.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../kinds.h"

namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr const char* INSTRUCTION_SET = "neonmm";
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr const char* INSTRUCTION_SET = "neondot";
#else
constexpr const char* INSTRUCTION_SET = "neon";
#endif

constexpr int LANES = 4;
constexpr int PANEL_VECTORS = 4;
constexpr int BLOCK = 6;  // rows: 6 times 4 of the 32 registers hold the result
constexpr int LARGEST_SUM = 0;

using Vector = float32x4_t;
typedef uint32_t Integers __attribute__((vector_size(16), may_alias));

void spin() { __asm__ volatile("yield"); }

// ---------------------------------------------------------------- between memory and vectors

// The first n numbers of a small vector from memory, then zeros; and the other way round.
template <class Small>
Small load_small(const void* from, int n) {
    if (n >= LANES) {  // by itself: a copy of a size that varies goes through memory
        Small whole;
        std::memcpy(&whole, from, sizeof whole);
        return whole;
    }
    Small part{};
    if (n > 0) std::memcpy(&part, from, n * (sizeof part / LANES));
    return part;
}

template <class Small>
void store_small(void* to, Small numbers, int n) {
    if (n >= LANES) std::memcpy(to, &numbers, sizeof numbers);
    else if (n > 0) std::memcpy(to, &numbers, n * (sizeof numbers / LANES));
}

Vector load(const float* from, int n) { return load_small<Vector>(from, n); }

Vector load(const bfloat16* from, int n) {
    return vreinterpretq_f32_u32(vshll_n_u16(load_small<uint16x4_t>(from, n), 16));
}

Integers load_bytes(const void* from, int n) {
    if (n >= 16) return (Integers)vld1q_u8(static_cast<const uint8_t*>(from));
    Integers bytes{};
    std::memcpy(&bytes, from, n);
    return bytes;
}

void store(float* to, Vector x, int n) { store_small(to, x, n); }
void store(uint32_t* to, Integers x) { store_small(to, x, LANES); }
void store(uint32_t* to, Integers x, int n) { store_small(to, x, n); }
void store_at_least(uint32_t* to, Integers x, int) { store(to, x); }

void store_upper_halves(uint16_t* to, Integers x, int n) {
    store_small(to, vshrn_n_u32((uint32x4_t)x, 16), n);
}

// ---------------------------------------------------------------- lane by lane

Vector splat(float x) { return vdupq_n_f32(x); }
Integers splat_bits(uint32_t x) { return (Integers)vdupq_n_u32(x); }

Integers bits_of(Vector x) { return (Integers)x; }
Vector from_bits(Integers x) { return (Vector)x; }
Vector to_float(Integers x) { return vcvtq_f32_s32((int32x4_t)x); }

Vector fmadd(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
Vector fnmadd(Vector a, Vector b, Vector c) { return vfmsq_f32(c, a, b); }

Vector min(Vector a, Vector b) { return vminq_f32(a, b); }
Vector max(Vector a, Vector b) { return vmaxq_f32(a, b); }

Vector abs(Vector x) { return vabsq_f32(x); }

Vector reciprocal(Vector x) {
    Vector rough = vrecpeq_f32(x);  // 8 bits
    return rough * vrecpsq_f32(x, rough);
}

Vector floor(Vector x) { return vrndmq_f32(x); }
Integers to_integers(Vector x) { return (Integers)vcvtq_s32_f32(x); }

Vector where_negative(Vector x, Vector negative, Vector other) {
    return vbslq_f32(vcltzq_f32(x), negative, other);
}

Integers where_nan(Vector x, Integers nan, Integers other) {
    return (Integers)vbslq_u32(vceqq_f32(x, x), (uint32x4_t)other, (uint32x4_t)nan);
}

Vector keep_first(Vector x, int n) { return load_small<Vector>(&x, n); }

// ---------------------------------------------------------------- across the lanes

float sum_of(Vector x) { return vaddvq_f32(x); }
float smallest_of(Vector x) { return vminvq_f32(x); }
float largest_of(Vector x) { return vmaxvq_f32(x); }

void transpose(Integers (&rows)[LANES]) {
    for (int round = 0; round < 2; round++) {
        Integers mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            auto a = (uint32x4_t)rows[i], b = (uint32x4_t)rows[i + LANES / 2];
            mixed[2 * i] = (Integers)vzip1q_u32(a, b);
            mixed[2 * i + 1] = (Integers)vzip2q_u32(a, b);
        }
        for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}

// ---------------------------------------------------------------- kinds with an instruction

#ifdef __ARM_FEATURE_DOTPROD

using Kinds = KindList<Float32, Int8, Widened>;

// The instructions multiply signed bytes, so the numbers of a row are 128 less than elsewhere.
struct Int8 {
    using Activation = float;
    using Number = uint8_t;
    using Sum = Integers;
    using AttentionKinds = KindList<Float32>;
    static constexpr KindNumber NUMBER = KindNumber::int8;
    static constexpr int NUMBERS = 4, STORED_UNITS = 1, LOWEST = -128;

    static Integers unpack(Integers stored, int) { return stored; }

    static void store_numbers(Number* to, Integers x, int n) {
        uint16x4_t words = vmovn_u32((uint32x4_t)x);
        uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
        std::memcpy(to, &bytes, std::min(n, LANES));
    }

    static Sum multiply_add(Sum sum, uint32_t unit, Integers columns) {
        return (Sum)vdotq_s32((int32x4_t)sum, (int8x16_t)splat_bits(unit), (int8x16_t)columns);
    }

#ifdef __ARM_FEATURE_MATMUL_INT8
    using TakesPairs = void;

    // Two rows times two columns by one instruction, which takes two units of each. Behind the last
    // row of an odd number any may be read, and the unit that the last one lacks counts as 0.
    template <int V, int HEIGHT>
    static void multiply_by_pairs(const uint32_t* block, const Integers* panel, int units, bool add,
                                  Sum* result) {
        constexpr int PAIRS = (HEIGHT + 1) / 2;
        int32x4_t sums[PAIRS][2 * V] = {};
        for (; units > 0; units -= 2, block += 2 * HEIGHT, panel += 2 * V) {
            int8x16_t columns[2 * V];
            for (int v = 0; v < V; v++) {
                auto one = (uint32x4_t)panel[v];
                auto other = (uint32x4_t)(units > 1 ? panel[V + v] : Integers{});
                columns[2 * v] = (int8x16_t)vzip1q_u32(one, other);
                columns[2 * v + 1] = (int8x16_t)vzip2q_u32(one, other);
            }
            for (int pair = 0; pair < PAIRS; pair++) {
                uint32x2_t one = vld1_u32(block + 2 * pair), other{};
                if (units > 1) other = vld1_u32(block + HEIGHT + 2 * pair);
                auto rows = (int8x16_t)vcombine_u32(vzip1_u32(one, other), vzip2_u32(one, other));
                for (int i = 0; i < 2 * V; i++) {
                    sums[pair][i] = vmmlaq_s32(sums[pair][i], rows, columns[i]);
                }
            }
        }
        for (int i = 0; i < HEIGHT * V; i++) {
            auto two = sums[i / V / 2] + 2 * (i % V);
            auto left = (int64x2_t)two[0], right = (int64x2_t)two[1];
            auto sum = (Sum)(i / V % 2 ? vzip2q_s64(left, right) : vzip1q_s64(left, right));
            result[i] = add ? result[i] + sum : sum;
        }
    }
#endif
};

#else

using Kinds = KindList<Float32, Widened>;

#endif

}  // namespace
