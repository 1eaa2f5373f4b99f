// Blocks of rows times panels of columns, the product that everything else is made of.
//
//   unit   32 bits of a row: one float32, two bfloat16 or four int8, taken in one instruction
//   block  up to 14 rows of the left matrix, unit by unit: [units][rows]
//   panel  16 or 32 columns of the right matrix, unit by unit: [units][columns]
//
// The result of a block and a panel stays in registers until it is complete.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#include "numbers.h"

namespace {

constexpr int BLOCK = 14;     // rows: with 32 columns 28 of the 32 registers hold the result
constexpr int AHEAD = 128;    // vectors of a panel to fetch in advance, into the second-level cache
constexpr int STRETCH = 384;  // units added up before they join the sum: rounds less

// What a thread needs memory for; each has its own, since some are in use together.
enum class For {
    turned, widened, packed, quantized, sums, unnormalized, together, middle, wide, attending,
};

// Memory of a thread that only grows.
template <For USE>
char* scratch(size_t bytes) {
    struct Memory {
        char* data = nullptr;
        size_t size = 0;
        ~Memory() { std::free(data); }
    };
    thread_local Memory memory;
    if (memory.size < bytes) {
        std::free(memory.data);
        memory.size = (bytes + 4095) / 4096 * 4096;
        memory.data = static_cast<char*>(std::aligned_alloc(64, memory.size));
        if (!memory.data) throw std::bad_alloc();
    }
    return memory.data;
}

// A kind of product: the numbers of a unit, how one is multiplied and added, and of how many units
// a vector of a panel in memory has the numbers.
struct Float32 {
    using Number = float;
    using Sum = __m512;
    static constexpr int PER_UNIT = 1, PARTS = 1;
    static __m512i part(__m512i stored, int) { return stored; }
    static Sum add(Sum sum, uint32_t unit, __m512i panel) {
        __m512 row = _mm512_castsi512_ps(_mm512_set1_epi32(unit));
        return _mm512_fmadd_ps(row, _mm512_castsi512_ps(panel), sum);
    }
    static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
};

struct BFloat16 {
    using Number = bfloat16;
    using Sum = __m512;
    static constexpr int PER_UNIT = 2, PARTS = 1;
    static __m512i part(__m512i stored, int) { return stored; }
    static Sum add(Sum sum, uint32_t unit, __m512i panel) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(unit), (__m512bh)panel);
    }
    static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
};

struct Int8 {
    using Number = uint8_t;
    using Sum = __m512i;
    static constexpr int PER_UNIT = 4, PARTS = 1;
    static __m512i part(__m512i stored, int) { return stored; }
    static Sum add(Sum sum, uint32_t unit, __m512i panel) {
        // GCC 12 copies the registers around its own intrinsic, for half of the speed.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(_mm512_set1_epi32(unit)), "v"(panel));
        return sum;
    }
    static Sum plus(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
};

// bfloat16 in memory, multiplied as float32: twice as fast as the instruction for bfloat16 on
// Intel's CPUs (vdpbf16ps every four cycles, 170 against 350 GFLOP/s on two cores of model 207,
// 2026-11; on Zen 4 it is half as fast). Blocks have an even number of units.
struct Widened : Float32 {
    static constexpr int PARTS = 2;
    static __m512i part(__m512i stored, int part) {
        return part ? _mm512_and_si512(stored, _mm512_set1_epi32(0xFFFF0000))
                    : _mm512_slli_epi32(stored, 16);
    }
};

// A block times V vectors of columns, added to the result or put in its place.
template <class Kind, int V, int ROWS>
void multiply(const uint32_t* block, const __m512i* panel, int units, bool add, __m512i* result) {
    using Sum = typename Kind::Sum;
    Sum sums[ROWS][V];
#pragma GCC unroll 28
    for (int i = 0; i < ROWS * V; i++) sums[i / V][i % V] = Sum{};
    for (; units > 0; units -= Kind::PARTS, panel += V) {
        __m512i stored[V], columns[V];
        for (int v = 0; v < V; v++) {
            stored[v] = _mm512_load_si512(panel + v);
            _mm_prefetch(panel + v + AHEAD, _MM_HINT_T1);
        }
#pragma GCC unroll 2
        for (int part = 0; part < Kind::PARTS; part++, block += ROWS) {
            for (int v = 0; v < V; v++) columns[v] = Kind::part(stored[v], part);
#pragma GCC unroll 14
            for (int row = 0; row < ROWS; row++) {
                for (int v = 0; v < V; v++) {
                    sums[row][v] = Kind::add(sums[row][v], block[row], columns[v]);
                }
            }
        }
    }
#pragma GCC unroll 28
    for (int i = 0; i < ROWS * V; i++) {
        Sum sum = sums[i / V][i % V];
        result[i] = (__m512i)(add ? Kind::plus((Sum)result[i], sum) : sum);
    }
}

template <class Kind, int V, int... I>
constexpr auto multiplications(std::integer_sequence<int, I...>) {
    return std::array{multiply<Kind, V, I + 1>...};
}

// Units of a row in memory, and in blocks, which fill the last one in memory.
template <class Kind>
int stored_units(int numbers) {
    int size = Kind::PER_UNIT * Kind::PARTS;
    return (numbers + size - 1) / size;
}
template <class Kind>
int units_of(int numbers) { return stored_units<Kind>(numbers) * Kind::PARTS; }

// `total` in `parts` as equal as can be: where one of them starts.
int64_t begin(int64_t total, int parts, int part) { return total * part / parts; }

int blocks_of(int rows) { return (rows + BLOCK - 1) / BLOCK; }

// `more` units from unit `done` on of blocks of `rows` rows together, times as much of a panel, of
// which `columns` is: result [rows][V] vectors, added to if `add`.
template <class Kind, int V>
void multiply_part(int rows, const uint32_t* blocks, const __m512i* columns, int units, int done,
                   int more, bool add, __m512i* result) {
    static constexpr auto by_rows =
        multiplications<Kind, V>(std::make_integer_sequence<int, BLOCK>{});
    int count = blocks_of(rows);
    for (int i = 0; i < count; i++) {
        int start = begin(rows, count, i), height = begin(rows, count, i + 1) - start;
        by_rows[height - 1](blocks + (int64_t)start * units + (int64_t)done * height, columns, more,
                            add, result + (int64_t)start * V);
    }
}

// A panel of Widened as one of Float32.
template <int V>
const __m512i* widen(const __m512i* panel, int units) {
    auto wide = reinterpret_cast<__m512i*>(scratch<For::widened>((size_t)units * V * 64));
    for (int i = 0; i < units * V; i++) {
        wide[i] = Widened::part(panel[i / (2 * V) * V + i % V], i / V % 2);
    }
    return wide;
}

// All units of them. What one stretch needs of the panel stays in the first-level cache.
template <class Kind, int V>
void multiply(int rows, const uint32_t* blocks, const __m512i* panel, int units, __m512i* result) {
    for (int done = 0; done < units; done += STRETCH) {
        int more = std::min(STRETCH, units - done);
        const __m512i* columns = panel + (int64_t)done / Kind::PARTS * V;
        if (Kind::PARTS > 1 && rows > BLOCK) {  // once for all blocks
            multiply_part<Float32, V>(rows, blocks, widen<V>(columns, more), units, done, more, done,
                                      result);
        } else {
            multiply_part<Kind, V>(rows, blocks, columns, units, done, more, done, result);
        }
    }
}

// Up to 16 rows, `stride` bytes apart, as units, `height` apart. Missing rows, and what is missing
// in the last unit, are 0. The 64 bytes behind the last unit may be overwritten.
void transpose(const void* from, int64_t stride, int rows, int bytes, uint32_t* to, int height) {
    static const int low[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const __m512i lower = _mm512_loadu_si512(low);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(LANES / 2));
    for (int done = 0; done < bytes; done += 64) {
        int left = bytes - done;
        __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1;
        __m512i x[LANES], y[LANES];
        for (int row = 0; row < LANES; row++) {
            auto place = static_cast<const char*>(from) + row * stride + done;
            _mm_prefetch(place + LANES * stride, _MM_HINT_T0);
            x[row] = row < rows ? _mm512_maskz_loadu_epi8(mask, place) : _mm512_setzero_si512();
        }
        for (int round = 0; round < 4; round++) {  // each interleaves the two halves of the rows
            for (int i = 0; i < LANES / 2; i++) {
                y[2 * i] = _mm512_permutex2var_epi32(x[i], lower, x[i + LANES / 2]);
                y[2 * i + 1] = _mm512_permutex2var_epi32(x[i], upper, x[i + LANES / 2]);
            }
            std::copy(y, y + LANES, x);
        }
        for (int unit = 0; unit < (std::min(left, 64) + 3) / 4; unit++) {
            _mm512_storeu_si512(to + (done / 4 + unit) * height, x[unit]);
        }
    }
}

// transpose() of rows of `numbers`, `stride` numbers apart, turned into those of a kind if they are
// others
template <class Kind, class Input>
void transpose_as(const Input* from, int64_t stride, int rows, int numbers, uint32_t* to,
                  int height) {
    using Number = typename Kind::Number;
    if constexpr (std::is_same_v<Input, Number>) {
        transpose(from, stride * sizeof(Input), rows, numbers * sizeof(Number), to, height);
    } else {
        int width = units_of<Kind>(numbers) * Kind::PER_UNIT, bytes = width * sizeof(Number);
        auto buffer = reinterpret_cast<Number*>(scratch<For::turned>((size_t)LANES * bytes));
        for (int row = 0; row < rows; row++, from += stride) {
            _mm_prefetch(from + LANES * stride, _MM_HINT_T0);
            for (int i = 0; i < width; i += LANES) {
                store(buffer + row * width + i, load(from + i, first(numbers - i)), first(width - i));
            }
        }
        transpose(buffer, bytes, rows, bytes, to, height);
    }
}

}  // namespace
