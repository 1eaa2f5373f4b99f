// The kinds of products and their numbers, for every instruction set and for Python.

#pragma once

#include <cstdint>

// library.py has the same numbers, and a test compares the two lists.
enum class KindNumber : int32_t {
    float32,   // float32 times float32
    bfloat16,  // bfloat16 times bfloat16 by one instruction, which adds up in float32
    int8,      // uint8 times int8, added up in int32
    widened,   // bfloat16 in memory, multiplied as float32
};

namespace {

struct Float32;
struct BFloat16;
struct Int8;
struct Widened;

// Some kinds, as the list of their types.
template <class... Kind>
struct KindList {};

// The upper half of a float32.
struct bfloat16 {
    uint16_t bits;
};

}  // namespace
