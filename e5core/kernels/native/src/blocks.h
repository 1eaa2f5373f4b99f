// Blocks of rows times panels of columns, the product that everything else is made of.
//
//   unit   32 bits of a row: one float32, two bfloat16 or four int8, taken in one instruction
//   block  up to BLOCK rows of the left matrix, unit by unit: [units][rows]
//   panel  V vectors of columns of the right matrix, unit by unit: [units][V][LANES]; V is
//          PANEL_VECTORS, or 1 for the queries of a short text
//
// The result of a block and a panel stays in registers until it is complete.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "math.h"
#include "scratch.h"
#include "team.h"

namespace {

constexpr int VECTOR_BYTES = 4 * LANES;
constexpr int AHEAD = 8192 / VECTOR_BYTES;  // vectors of a panel that are prefetched
constexpr int CACHE_LINE = 64;              // bytes that one prefetch brings

// Fetch what is needed soon into the first-level cache, what is needed later into the second.
void prefetch_soon(const void* place) { __builtin_prefetch(place, 0, 3); }
void prefetch_later(const void* place) { __builtin_prefetch(place, 0, 2); }

// What lies AHEAD of V vectors of a panel.
template <int V>
void prefetch_ahead(const Integers* panel) {
    for (int v = 0; v < V; v++) {
        if (v * VECTOR_BYTES % CACHE_LINE == 0) prefetch_later(panel + v + AHEAD);
    }
}

// A kind of product says
//
//   Activation      what activations are in memory
//   Number          what a unit holds, and NUMBERS how many
//   STORED_UNITS    how many units a vector of a panel holds in memory
//   unpack          one of these units, ready to be multiplied
//   Unpacked        where there are several: the kind whose panels hold such units
//   multiply_add    a vector of sums plus a unit of a row times a unit of columns
//   LOWEST          in Int8: the number that stands for the lowest activation of a row
//   store_numbers   in Int8: integers of a row of activations, as the units' numbers in order
//   AttentionKinds  the kinds in which attention may multiply what these linears give
//   AddsPairs       void, where multiply_add() takes two units at a time
//   TakesPairs      void, where the kind's own multiply_by_pairs() computes a block
//
// An instruction set defines the kinds that need an instruction of their own.
struct Float32 {
    using Activation = float;
    using Number = float;
    using Sum = Vector;
    using AttentionKinds = KindList<Float32>;
    static constexpr KindNumber NUMBER = KindNumber::float32;
    static constexpr int NUMBERS = 1, STORED_UNITS = 1;

    static Integers unpack(Integers stored, int) { return stored; }

    static Sum multiply_add(Sum sum, uint32_t unit, Integers columns) {
        return fmadd(from_bits(splat_bits(unit)), from_bits(columns), sum);
    }
};

// bfloat16 in memory, multiplied as float32: twice as fast as the instruction for bfloat16 on
// Intel's CPUs (vdpbf16ps every four cycles, 170 against 350 GFLOP/s on two cores of model 207,
// 2026-11; on Zen 4 it is half as fast). Blocks have an even number of units.
struct Widened : Float32 {
    using Unpacked = Float32;
    using Activation = plain_bfloat16;
    static constexpr KindNumber NUMBER = KindNumber::widened;
    static constexpr int STORED_UNITS = 2;

    static Integers unpack(Integers stored, int i) {
        return i ? stored & splat_bits(0xFFFF0000) : stored << 16;
    }
};

// `call` with the kind of that number. Returns whether the list has it.
template <class... Kind, class Call>
bool with_kind(KindList<Kind...>, int number, Call call) {
    return ((number == int(Kind::NUMBER) && (call(Kind()), true)) || ...);
}

// Vectors that hold a row of numbers in memory, and the units in them.
template <class Kind>
int stored_units(int numbers) {
    int size = Kind::NUMBERS * Kind::STORED_UNITS;
    return (numbers + size - 1) / size;
}
template <class Kind>
int units_of(int numbers) { return stored_units<Kind>(numbers) * Kind::STORED_UNITS; }

// `call(start, height)` for each block that the rows are divided into. Inlined, because the
// compiler would otherwise put all that `call` refers to on the stack for each product.
template <class Call>
[[gnu::always_inline]] inline void for_each_block(int rows, Call call) {
    int count = (rows + BLOCK - 1) / BLOCK;
    for (int i = 0; i < count; i++) {
        int start = share_start(rows, count, i);
        call(start, int(share_start(rows, count, i + 1) - start));
    }
}

// ---------------------------------------------------------------- multiplying

template <class Kind, class = void>
constexpr bool adds_pairs = false;
template <class Kind>
constexpr bool adds_pairs<Kind, typename Kind::AddsPairs> = true;

template <class Kind, class = void>
constexpr bool takes_pairs = false;
template <class Kind>
constexpr bool takes_pairs<Kind, typename Kind::TakesPairs> = true;

// Sums of rows and V vectors of columns, for as long as they stay in registers.
template <class Kind, int V, int ROWS>
struct Sums {
    using Sum = typename Kind::Sum;
    Sum sums[ROWS][V];

    Sums() {
#pragma GCC unroll BLOCK * PANEL_VECTORS
        for (int i = 0; i < ROWS * V; i++) sums[i / V][i % V] = Sum{};
    }
    // Added to `result`, or put in its place.
    void join(bool add, Sum* result) const {
#pragma GCC unroll BLOCK * PANEL_VECTORS
        for (int i = 0; i < ROWS * V; i++) {
            Sum sum = sums[i / V][i % V];
            result[i] = add ? result[i] + sum : sum;
        }
    }
};

// A block times a panel, added to `result` or put in its place.
template <class Kind, int V, int HEIGHT>
void multiply_block(const uint32_t* block, const Integers* panel, int units, bool add,
                    typename Kind::Sum* result) {
    Sums<Kind, V, HEIGHT> all;
    for (; units > 0; units -= Kind::STORED_UNITS, panel += V) {
        Integers stored[V], columns[V];
        prefetch_ahead<V>(panel);
        for (int v = 0; v < V; v++) stored[v] = panel[v];
#pragma GCC unroll 2
        for (int i = 0; i < Kind::STORED_UNITS; i++, block += HEIGHT) {
            for (int v = 0; v < V; v++) columns[v] = Kind::unpack(stored[v], i);
#pragma GCC unroll BLOCK
            for (int row = 0; row < HEIGHT; row++) {
                for (int v = 0; v < V; v++) {
                    all.sums[row][v] = Kind::multiply_add(all.sums[row][v], block[row], columns[v]);
                }
            }
        }
    }
    all.join(add, result);
}

// The same for some rows of a block, by pairs of units.
template <class Kind, int V, int HEIGHT, int FIRST, int ROWS>
void multiply_rows(const uint32_t* block, const Integers* panel, int units, bool add,
                   typename Kind::Sum* result) {
    Sums<Kind, V, ROWS> all;
    for (block += FIRST; units > 0; units -= 2, block += 2 * HEIGHT, panel += 2 * V) {
        // Where the last unit is alone, it meets itself times 0.
        const uint32_t* next = units > 1 ? block + HEIGHT : block;
        Integers columns[V], next_columns[V];
        if (FIRST == 0) prefetch_ahead<2 * V>(panel);
        for (int v = 0; v < V; v++) {
            columns[v] = panel[v];
            next_columns[v] = units > 1 ? panel[V + v] : Integers{};
        }
#pragma GCC unroll BLOCK
        for (int row = 0; row < ROWS; row++) {
            for (int v = 0; v < V; v++) {
                all.sums[row][v] = Kind::multiply_add(all.sums[row][v], block[row], next[row],
                                                      columns[v], next_columns[v]);
            }
        }
    }
    all.join(add, result + FIRST * V);
}

// Half of the rows at once: their sums and two units of columns fill the registers.
template <class Kind, int V, int HEIGHT>
void multiply_halves(const uint32_t* block, const Integers* panel, int units, bool add,
                     typename Kind::Sum* result) {
    constexpr int HALF = (HEIGHT + 1) / 2, REST = HEIGHT - HALF;
    multiply_rows<Kind, V, HEIGHT, 0, HALF>(block, panel, units, add, result);
    if constexpr (REST) {
        multiply_rows<Kind, V, HEIGHT, HALF, REST>(block, panel, units, add, result);
    }
}

// Multiplying for each height that a block may have.
template <class Kind, int V, int... I>
constexpr auto by_height(std::integer_sequence<int, I...>) {
    if constexpr (takes_pairs<Kind>) {
        return std::array{Kind::template multiply_by_pairs<V, I + 1>...};
    } else if constexpr (adds_pairs<Kind>) {
        return std::array{multiply_halves<Kind, V, I + 1>...};
    } else {
        return std::array{multiply_block<Kind, V, I + 1>...};
    }
}

// `count` units, from `first_unit` on, of blocks that have `units` each, times a panel of `count`
// units. The result is [rows][V] vectors.
template <class Kind, int V>
void multiply_units(int rows, const uint32_t* blocks, int units, int first_unit, int count,
                    const Integers* panel, bool add, typename Kind::Sum* result) {
    static constexpr auto multiply = by_height<Kind, V>(std::make_integer_sequence<int, BLOCK>{});
    for_each_block(rows, [&](int start, int height) {
        const uint32_t* block = blocks + (int64_t)start * units + (int64_t)first_unit * height;
        multiply[height - 1](block, panel, count, add, result + (int64_t)start * V);
    });
}

// A panel with its units unpacked.
template <class Kind, int V>
const Integers* unpack_panel(const Integers* panel, int units) {
    size_t bytes = (size_t)units * V * VECTOR_BYTES;
    auto unpacked = static_cast<Integers*>(scratch<For::unpacked>(bytes));
    for (int unit = 0; unit < units; unit += 2, panel += V) {
        prefetch_ahead<V>(panel);
        for (int i = 0; i < 2 * V; i++) unpacked[unit * V + i] = Kind::unpack(panel[i % V], i / V);
    }
    return unpacked;
}

// Blocks of rows times a panel, by stretches of units, which are added up before they join the
// sum: this rounds less, and what one of them needs of the panel stays in the first-level cache.
// The result is [rows][V] vectors.
template <class Kind, int V>
void multiply(int rows, const uint32_t* blocks, const Integers* panel, int units, int stretch,
              typename Kind::Sum* result) {
    for (int start = 0; start < units; start += stretch) {
        int count = std::min(stretch, units - start);
        const Integers* part = panel + (int64_t)start / Kind::STORED_UNITS * V;
        if constexpr (Kind::STORED_UNITS == 2) {
            if (rows > BLOCK) {  // once for all blocks
                part = unpack_panel<Kind, V>(part, count);
                multiply_units<typename Kind::Unpacked, V>(rows, blocks, units, start, count, part,
                                                           start, result);
                continue;
            }
        }
        multiply_units<Kind, V>(rows, blocks, units, start, count, part, start, result);
    }
}

// ---------------------------------------------------------------- blocking rows

// Up to max(BLOCK, LANES) rows, `stride` bytes apart, as units that are `height` apart. Missing
// rows of the first LANES, and what the last unit lacks, are 0. The vector behind the last unit
// may be overwritten.
void transpose_bytes(const void* from, int64_t stride, int rows, int bytes, uint32_t* to,
                     int height) {
    constexpr int SQUARES = (std::max(BLOCK, LANES) + LANES - 1) / LANES;
    for (int start = 0; start < bytes; start += VECTOR_BYTES) {
        int left = std::min(bytes - start, VECTOR_BYTES);
        Integers squares[SQUARES][LANES];
        for (int row = 0; row < SQUARES * LANES; row++) {
            auto place = static_cast<const char*>(from) + row * stride + start;
            prefetch_soon(place + LANES * stride);
            squares[row / LANES][row % LANES] = row < rows ? load_bytes(place, left) : Integers{};
        }
        for (auto& square : squares) transpose(square);
        for (int unit = 0; unit < (left + 3) / 4; unit++) {
            uint32_t* place = to + (start / 4 + unit) * height;
            store(place, squares[0][unit]);
            // What this writes too far is overwritten by the next unit.
            for (int i = 1; i < SQUARES && i * LANES < rows; i++) {
                store(place + i * LANES, squares[i][unit]);
            }
        }
    }
}

// Rows of `numbers`, `stride` numbers apart, as units of a kind that are `height` apart, as in
// transpose_bytes(). Numbers of another type are converted first.
template <class Kind, class Input>
void transpose_rows(const Input* from, int64_t stride, int rows, int numbers, uint32_t* to,
                    int height) {
    using Number = typename Kind::Number;
    if constexpr (std::is_same_v<Input, Number>) {
        transpose_bytes(from, stride * sizeof(Input), rows, numbers * sizeof(Number), to, height);
    } else {
        int width = units_of<Kind>(numbers) * Kind::NUMBERS, bytes = width * sizeof(Number);
        size_t size = (size_t)std::max(BLOCK, LANES) * bytes;
        auto converted = static_cast<Number*>(scratch<For::converted>(size));
        for (int row = 0; row < rows; row++, from += stride) {
            prefetch_soon(from + LANES * stride);
            for (int i = 0; i < width; i += LANES) {
                store(converted + row * width + i, load(from + i, numbers - i), width - i);
            }
        }
        transpose_bytes(converted, bytes, rows, bytes, to, height);
    }
}

}  // namespace
