// What training does between its products, number by number: dropout and GELU.
//
// Whether a number is dropped is a function of a seed and of its place alone, so no mask is kept
// for the way back.

#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks.h"
#include "team.h"

namespace {

// The fields are those of library.py.
struct Dropout {
    uint32_t seed[2];
    uint32_t threshold;  // the chance to be dropped, in 2^-32
    float scale;         // of what is kept
};

// 32 bits for each of the LANES places from `place` on: rounds of multiplying and folding the upper
// bits down. The factors are Wellons' (nullprogram.com/blog/2018/07/31), chosen so that each bit of
// a place changes each bit of the result in half of all cases. Two rounds are too few: masks then
// resemble themselves some thousand places further.
Integers random_bits(const Dropout& dropout, uint32_t place) {
    alignas(64) static const uint32_t order[] = {0, 1, 2, 3, 4, 5, 6, 7,
                                                 8, 9, 10, 11, 12, 13, 14, 15};
    static_assert(LANES <= 16);
    Integers x = *reinterpret_cast<const Integers*>(order) + splat_bits(place);
    x = (x ^ x >> 16 ^ splat_bits(dropout.seed[0])) * splat_bits(0x21F0AAADu);
    x = (x ^ x >> 15 ^ splat_bits(dropout.seed[1])) * splat_bits(0xD35A2D97u);
    x = (x ^ x >> 15) * splat_bits(0x21F0AAADu);
    return x ^ x >> 15;
}

// Numbers that dropout keeps, scaled, and 0 for the others.
Vector keep(Vector x, const Dropout& dropout, uint32_t place) {
    if (!dropout.threshold) return x;
    auto kept = (Integers)(random_bits(dropout, place) >= splat_bits(dropout.threshold));
    return from_bits(bits_of(x * splat(dropout.scale)) & kept);
}

// ---------------------------------------------------------------- number by number

constexpr int DROPOUT_SHARE = 1 << 14;  // numbers

// `compute(place, n)` for each vector of numbers and how many of them there are.
template <class Compute>
void for_each_vector(int64_t count, int threads, Compute compute) {
    int shares = int((count + DROPOUT_SHARE - 1) / DROPOUT_SHARE);
    if (!shares) return;
    run_by_team({std::min(threads, shares), false}, 1, 1, [&](int, int) { return shares; },
                [&](int, int, auto take) {
        for (int share; (share = take()) >= 0;) {
            int64_t place = (int64_t)share * DROPOUT_SHARE;
            int64_t end = std::min(count, place + DROPOUT_SHARE);
            for (; place < end; place += LANES) compute(place, int(end - place));
        }
    });
}

// sum = residual + dropout(x)
template <class Number>
void add_dropped(const float* residual, const Number* x, int64_t count, const Dropout& dropout,
                 float* sum, int threads) {
    for_each_vector(count, threads, [&](int64_t i, int n) {
        store(sum + i, load(residual + i, n) + keep(load(x + i, n), dropout, uint32_t(i)), n);
    });
}

// The gradient of x: that of the sum, dropped and scaled as x was.
template <class Number>
void drop(const float* gradient, int64_t count, const Dropout& dropout, Number* of_x,
          int threads) {
    for_each_vector(count, threads, [&](int64_t i, int n) {
        store(of_x + i, keep(load(gradient + i, n), dropout, uint32_t(i)), n);
    });
}

// GELU'(x) = normal distribution function + x · its density, times the gradient and in its place.
template <class Number>
void gelu_gradient(const Number* x, Number* gradient, int64_t count, int threads) {
    constexpr float DENSITY = 0.39894228f;  // 1 / sqrt(2 pi)
    for_each_vector(count, threads, [&](int64_t i, int n) {
        Vector at = load(x + i, n), density = exp2(at * at * splat(-LOG2_E / 2)) * splat(DENSITY);
        Vector slope = fmadd(at, density, normal_distribution(at));
        store(gradient + i, load(gradient + i, n) * slope, n);
    });
}

template <class Number>
void gelu(const Number* x, Number* result, int64_t count, int threads) {
    for_each_vector(count, threads,
                    [&](int64_t i, int n) { store(result + i, gelu(load(x + i, n)), n); });
}

}  // namespace
