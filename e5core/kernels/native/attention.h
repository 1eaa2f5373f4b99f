// Attention within each text, one head of one text at a time.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "products.h"

namespace {

// transpose() of one head of up to 16 tokens, in the numbers of the product
template <class Kind, class Input>
void transpose_head(const Input* from, int64_t stride, int rows, int head_size, uint32_t* to,
                    int height) {
    using Number = typename Kind::Number;
    int bytes = head_size * sizeof(Number);
    if constexpr (std::is_same_v<Input, Number>) {
        transpose(from, stride * sizeof(Input), rows, bytes, to, height);
    } else {
        auto buffer = reinterpret_cast<Number*>(scratch<Number>((size_t)LANES * bytes));
        for (int row = 0; row < rows; row++, from += stride) {
            _mm_prefetch(from + LANES * stride, _MM_HINT_T0);
            for (int i = 0; i < head_size; i += LANES) {
                __mmask16 mask = first(head_size - i);
                store(buffer + row * head_size + i, load(from + i, mask), mask);
            }
        }
        transpose(buffer, bytes, rows, bytes, to, height);
    }
}

// Two rows, rounded to bfloat16, as one of units.
__m512i pair(__m512 even, __m512 odd) {
    alignas(64) static const uint16_t order[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order),
                                    (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// The transposed value matrix as blocks: its units run along the tokens.
template <class Kind, class Input>
void pack_value(const Input* value, int length, int head_size, int64_t stride, uint32_t* to) {
    int count = blocks_of(head_size);
    for (int i = 0; i < count; i++) {
        int start = begin(head_size, count, i), height = begin(head_size, count, i + 1) - start;
        __mmask16 mask = first(height);
        for (int row = 0; row < length; row += Kind::PER_UNIT, to += height) {
            const Input* from = value + row * stride + start;
            _mm_prefetch(from + LANES * stride, _MM_HINT_T0);
            __m512 x = load(from, mask);
            __m512i units = (__m512i)x;
            if constexpr (Kind::PER_UNIT == 2) {
                units = pair(x, load(from + stride, row + 1 < length ? mask : 0));
            }
            _mm512_mask_storeu_epi32(to, mask, units);
        }
    }
}

// exp(scale · (score - the largest of its column)) of [length][V] scores, as a panel in their
// place: a unit is written when its scores have been read. Returns the sum of a column in total.
template <class Kind, int V>
void weigh(__m512* scores, int length, float scale, __m512 (&total)[V]) {
    auto weights = reinterpret_cast<__m512i*>(scores);
    __m512 factor = _mm512_set1_ps(scale * LOG2_E);
    for (int v = 0; v < V; v++) {
        __m512 largest = scores[v];
        for (int row = 1; row < length; row++) {
            largest = _mm512_max_ps(scores[row * V + v], largest);
        }
        auto weight = [&](int row) {
            __m512 below = _mm512_sub_ps(scores[row * V + v], largest);
            return exp2(_mm512_mul_ps(below, factor));
        };
        total[v] = _mm512_setzero_ps();
        for (int row = 0; row < length;) {
            __m512 sum = _mm512_setzero_ps();  // of a few: thousands in a row would round more
            for (int stop = std::min(length, row + STRETCH / 4); row < stop; row += Kind::PER_UNIT) {
                __m512 one = weight(row);
                sum = _mm512_add_ps(sum, one);
                if constexpr (Kind::PER_UNIT == 1) {
                    weights[row * V + v] = (__m512i)one;
                } else {
                    __m512 two = row + 1 < length ? weight(row + 1) : _mm512_setzero_ps();
                    sum = _mm512_add_ps(sum, two);
                    weights[row / 2 * V + v] = pair(one, two);
                }
            }
            total[v] = _mm512_add_ps(total[v], sum);
        }
    }
}

// One head of one text, the queries in the lanes of vectors:
// scores^T = key · query^T, a softmax down its columns, context^T = value^T · weights^T.
// query, key, value and output point to the first token; rows are `stride` and `width` apart.
template <class Kind, int V, class Input, class Output>
void attend(const Input* query, const Input* key, const Input* value, int length, int head_size,
            int64_t stride, Output* output, int64_t width) {
    constexpr int QUERIES = V * LANES;
    int units = units_of(head_size, Kind::PER_UNIT), tokens = units_of(length, Kind::PER_UNIT);
    int64_t vectors = V * ((int64_t)units + length + head_size);
    int64_t numbers = (int64_t)length * units + (int64_t)tokens * head_size;
    char* memory = scratch<Kind>(vectors * 64 + numbers * 4 + 64);
    auto queries = reinterpret_cast<__m512i*>(memory);           // [units][V], a panel
    auto scores = reinterpret_cast<__m512*>(queries + V * units);  // [length][V]
    auto context = scores + (int64_t)V * length;                   // [head_size][V]
    auto keys = reinterpret_cast<uint32_t*>(context + V * head_size);  // blocks
    auto values = keys + (int64_t)length * units;                      // blocks

    int count = blocks_of(length);
    for (int i = 0; i < count; i++) {
        int start = begin(length, count, i), height = begin(length, count, i + 1) - start;
        transpose_head<Kind>(key + start * stride, stride, height, head_size,
                             keys + (int64_t)start * units, height);
    }
    pack_value<Kind>(value, length, head_size, stride, values);

    __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    lanes = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(QUERIES));
    for (int done = 0; done < length; done += QUERIES) {
        for (int v = 0; v < V; v++) {
            int start = done + v * LANES, rows = std::clamp(length - start, 0, LANES);
            transpose_head<Kind>(query + start * stride, stride, rows, head_size,
                                 reinterpret_cast<uint32_t*>(queries + v), QUERIES);
        }
        __m512 total[V];
        multiply<Kind, V>(length, keys, queries, units, reinterpret_cast<__m512i*>(scores));
        weigh<Kind, V>(scores, length, 1 / std::sqrt((float)head_size), total);
        multiply<Kind, V>(head_size, values, reinterpret_cast<__m512i*>(scores), tokens,
                          reinterpret_cast<__m512i*>(context));
        for (int v = 0; v < V; v++) total[v] = _mm512_div_ps(_mm512_set1_ps(1), total[v]);
        for (int i = 0; i < V * head_size; i++) {
            context[i] = _mm512_mul_ps(context[i], total[i % V]);
        }
        for (int row = 0; row < std::min(QUERIES, length - done); row++) {
            for (int i = 0; i < head_size; i += LANES) {
                __mmask16 mask = first(head_size - i);
                auto from = reinterpret_cast<const float*>(context + V * i) + row;
                __m512 x = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, lanes, from, 4);
                store(output + (done + row) * width + i, x, mask);
            }
        }
    }
}

// All heads of all texts: qkv [tokens][3][heads][head_size] to output [tokens][heads][head_size].
// Each thread of a team calls it, and returns when all are done.
template <class Kind, class Input, class Output>
void attend(const Input* qkv, const int32_t* cu_seqlens, int texts, int heads, int head_size,
            Output* output) {
    int64_t width = (int64_t)heads * head_size, stride = 3 * width;
#pragma omp for schedule(dynamic)
    for (int i = 0; i < texts * heads; i++) {
        int64_t start = cu_seqlens[i / heads], head = i % heads * head_size;
        int length = int(cu_seqlens[i / heads + 1] - start);
        const Input* query = qkv + start * stride + head;
        auto one = length <= LANES ? attend<Kind, 1, Input, Output> : attend<Kind, 2, Input, Output>;
        one(query, query + width, query + 2 * width, length, head_size, stride,
            output + start * width + head, width);
    }
}

}  // namespace
