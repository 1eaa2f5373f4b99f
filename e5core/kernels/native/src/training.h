// What training does between its products: dropout, and attention's weights with their gradient.
//
// Whether a number is dropped is a function of a seed and of its place alone, so no mask is kept
// for the way back.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

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

// ---------------------------------------------------------------- attention

// Neighbouring texts as one dense batch: matrices of `length` rows for each head of each text, of
// which the first `lengths[text]` rows and columns count.
struct DenseTexts {
    const int32_t* lengths;
    int count, heads, length;

    // `compute(matrix, inside)` for each matrix and the rows of it that count.
    template <class Compute>
    void for_each(int threads, Compute compute) const {
        int matrices = count * heads;
        run_by_team({std::min(threads, matrices), false}, 1, 1, [&](int, int) { return matrices; },
                    [&](int, int, auto take) {
            for (int i; (i = take()) >= 0;) compute(i, lengths[i / heads]);
        });
    }
};

// The first n numbers, then -infinity.
Vector or_infinity(Vector x, int n) {
    Integers infinity = bits_of(splat(-INFINITY));
    return from_bits(bits_of(keep_first(from_bits(bits_of(x) ^ infinity), n)) ^ infinity);
}

// A softmax of each row of scores · factor, in their place, and of these weights what dropout
// keeps. Both are 0 behind the text.
template <class Number>
void weigh(Number* scores, Number* kept, const DenseTexts& texts, float factor,
           const Dropout& dropout, int threads) {
    int length = texts.length;
    factor *= LOG2_E;
    texts.for_each(threads, [&](int matrix, int inside) {
        auto powers = static_cast<float*>(scratch<For::attention>((length + LANES) * 4));
        for (int row = 0; row < length; row++) {
            int64_t start = ((int64_t)matrix * length + row) * length;
            Number *from = scores + start, *to = kept + start;
            int columns = row < inside ? inside : 0;
            Vector high = splat(-INFINITY), total = Vector{};
            for (int i = 0; i < columns; i += LANES) {
                high = max(or_infinity(load(from + i, columns - i), columns - i), high);
            }
            Vector shift = splat(-largest_of(high) * factor);
            for (int i = 0; i < columns; i += LANES) {
                Vector power = exp2(fmadd(load(from + i, columns - i), splat(factor), shift));
                power = keep_first(power, columns - i);
                total = total + power;
                store(powers + i, power, LANES);
            }
            Vector share = splat(1 / sum_of(total));
            for (int i = 0; i < length; i += LANES) {
                Vector weight = i < columns ? load(powers + i, LANES) * share : Vector{};
                store(from + i, weight, length - i);
                store(to + i, keep(weight, dropout, uint32_t(start + i)), length - i);
            }
        }
    });
}

// The gradient of the scores in the place of that of the kept weights, and these, to rounding:
// d score = factor · weight · (d kept · keep - sum over the row of kept · d kept)
template <class Number>
void weigh_gradient(const Number* weights, Number* gradient, Number* kept,
                    const DenseTexts& texts, float factor, const Dropout& dropout, int threads) {
    int length = texts.length;
    texts.for_each(threads, [&](int matrix, int inside) {
        for (int row = 0; row < length; row++) {
            int64_t start = ((int64_t)matrix * length + row) * length;
            const Number* weight = weights + start;
            Number *from = gradient + start, *to = kept + start;
            int columns = row < inside ? inside : 0;
            Vector total = Vector{};
            for (int i = 0; i < length; i += LANES) {
                Vector part = keep(load(weight + i, columns - i), dropout, uint32_t(start + i));
                store(to + i, part, length - i);
                total = fmadd(part, load(from + i, columns - i), total);
            }
            Vector sum = splat(sum_of(total)), scale = splat(factor);
            for (int i = 0; i < length; i += LANES) {
                Vector part = load(to + i, columns - i) * load(from + i, columns - i);
                part = fnmadd(sum, load(weight + i, columns - i), part);
                store(from + i, part * scale, length - i);
            }
        }
    });
}

// [tokens][parts][heads][size] to [parts][texts · heads][length][size] with zeros behind each
// text, or with BACK the other way. A `size` is so many bytes.
template <bool BACK>
void rearrange(std::conditional_t<BACK, char, const char>* tokens,
               std::conditional_t<BACK, const char, char>* dense, const DenseTexts& texts,
               int parts, int size, int threads) {
    std::vector<int64_t> starts(texts.count);
    for (int i = 1; i < texts.count; i++) starts[i] = starts[i - 1] + texts.lengths[i - 1];
    int64_t stride = (int64_t)parts * texts.heads * size;
    texts.for_each(threads, [&](int matrix, int inside) {
        int text = matrix / texts.heads, head = matrix % texts.heads;
        for (int part = 0; part < parts; part++) {
            auto row = dense + ((int64_t)part * texts.count * texts.heads + matrix) *
                                   texts.length * size;
            auto token = tokens + starts[text] * stride +
                         ((int64_t)part * texts.heads + head) * size;
            for (int i = 0; i < inside; i++, row += size, token += stride) {
                if constexpr (BACK) std::memcpy(token, row, size);
                else std::memcpy(row, token, size);
            }
            if constexpr (!BACK) std::memset(row, 0, (int64_t)(texts.length - inside) * size);
        }
    });
}

}  // namespace
