// exp2, GELU and rounding to bfloat16, in the vocabulary of an instruction set.

#pragma once

#include <cstddef>
#include <cstdint>

namespace {

// bfloat16 for CPUs without an instruction that rounds to it.
struct plain_bfloat16 : bfloat16 {};

// Round the first n numbers to the nearest bfloat16, halves to even.
void store(plain_bfloat16* to, Vector x, int n) {
    Integers bits = bits_of(x), odd = bits >> 16 & splat_bits(1);
    Integers rounded = bits + odd + splat_bits(0x7FFF);
    // The sum could carry a NaN over to infinity, so NaN keeps its bits and becomes a quiet one.
    rounded = where_nan(x, bits | splat_bits(0x400000), rounded);
    store_upper_halves(&to->bits, rounded, n);
}

template <size_t N>
Vector polynomial(const float (&coefficients)[N], Vector x) {
    Vector sum = splat(coefficients[N - 1]);
    for (int i = int(N) - 2; i >= 0; i--) sum = fmadd(sum, x, splat(coefficients[i]));
    return sum;
}

// 2^x for x of at most 0, or above it by rounding, by a polynomial for [0, 1]: the whole part goes
// to the exponent. Below -126 it may be 2^-126, which is as good as 0 beside the weights and
// densities that it is for.
template <size_t N>
Vector exp2_by(const float (&coefficients)[N], Vector x) {
#ifdef HAS_POWERS_OF_TWO
    return scale_by_exp2(polynomial(coefficients, fraction(x)), x);
#else
    x = max(splat(-126), x);  // NaN is the last argument, which some CPUs give back then
    Vector whole = floor(x);
    return from_bits(bits_of(polynomial(coefficients, x - whole)) + (to_integers(whole) << 23));
#endif
}

// Fitted for the least relative error, 2e-9.
Vector exp2(Vector x) {
    static const float c[] = {1.0f,           0.693147004f,   0.24022983f,   0.0554833412f,
                              0.00967884064f, 0.00124396873f, 0.000217022549f};
    return exp2_by(c, x);
}

// The same for what is rounded to bfloat16 next, which makes up to 2e-3 of difference: within 8e-5.
Vector exp2_for_bfloat16(Vector x) {
    static const float c[] = {0.999925196f, 0.695833564f, 0.226067156f, 0.0780245215f};
    return exp2_by(c, x);
}

constexpr float LOG2_E = 1.44269504f;

// The normal distribution function. Its upper tail is exp(-x²/2) u P(u) with u = 1 / (1 + 0.35 x),
// after Abramowitz and Stegun 7.1.26; P is of higher degree, fitted for the least relative error on
// [0, 14], 3e-8.
Vector normal_distribution(Vector x) {
    static const float c[] = {0.139621403577f,  0.139861882444f, 0.119832773572f,
                              0.105508381205f,  -0.023110738253f, 0.159175487771f,
                              -0.255715428199f, 0.143972270818f, -0.029146048882f};
    Vector size = abs(x), denominator = fmadd(size, splat(0.35f), splat(1));
    Vector u = reciprocal(denominator);
    u = u * fnmadd(denominator, u, splat(2));  // Newton's step
    Vector bell = exp2(size * size * splat(-LOG2_E / 2));
    Vector tail = bell * u * polynomial(c, u);
    return where_negative(x, tail, splat(1) - tail);
}

// The GELU with erf.
Vector gelu(Vector x) { return x * normal_distribution(x); }

// The GELU of what is rounded to int8 next, in a third of the time, within 3e-5 and 1e-5 |x|: from
// the middle the normal distribution function is an odd polynomial up to EDGE, and flat behind it.
Vector gelu_for_int8(Vector x) {
    constexpr float EDGE = 4.25f;
    static const float c[] = {0.398809195f,     -0.0661699399f,   0.00970488414f,
                              -0.00107454462f,  8.76792328e-05f,  -5.06391734e-06f,
                              1.93647267e-07f,  -4.35753433e-09f, 4.33991419e-11f};
    Vector inner = min(splat(EDGE), max(splat(-EDGE), x));
    return x * fmadd(inner, polynomial(c, inner * inner), splat(0.5f));
}

}  // namespace
