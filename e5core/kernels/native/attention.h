// Attention within each text, one head of one text at a time.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "products.h"

namespace {

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

// A softmax down the columns of scores that come in tiles: weights are 2^(score - largest), and
// what was added up with an earlier largest is turned to the new one.
template <int V>
struct Softmax {
    __m512 largest[V], total[V];
};

// [length][V] scores, times `factor`, become weights, as a panel in their place: a unit is written
// when its scores have been read. Returns what the sums so far are to be multiplied with.
template <class Kind, int V>
std::array<__m512, V> weigh(__m512* scores, int length, float factor, bool first_tile,
                            Softmax<V>& softmax) {
    auto weights = reinterpret_cast<__m512i*>(scores);
    std::array<__m512, V> turned;
    for (int v = 0; v < V; v++) {
        __m512 most = scores[v];
        for (int row = 1; row < length; row++) most = _mm512_max_ps(scores[row * V + v], most);
        __m512 times = _mm512_set1_ps(factor), largest = _mm512_mul_ps(most, times);
        if (!first_tile) {
            largest = _mm512_max_ps(largest, softmax.largest[v]);
            turned[v] = exp2(_mm512_sub_ps(softmax.largest[v], largest));
        }
        softmax.largest[v] = largest;
        auto weight = [&](int row) {
            return exp2(_mm512_fmsub_ps(scores[row * V + v], times, largest));
        };
        __m512 sum = _mm512_setzero_ps();
        for (int row = 0; row < length; row += Kind::PER_UNIT) {
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
        softmax.total[v] = first_tile ? sum : _mm512_fmadd_ps(softmax.total[v], turned[v], sum);
    }
    return turned;
}

constexpr int TILE = 8 * BLOCK;  // keys whose scores stay in the first-level cache; even

// One head of one text, the queries in the lanes of vectors, tile by tile of keys:
// scores^T = key · query^T, a softmax down its columns, context^T = value^T · weights^T
// (Dao et al. 2022, arXiv:2205.14135).
// query, key, value and output point to the first token; rows are `stride` and `width` apart.
template <class Kind, int V, class Input, class Output>
void attend(const Input* query, const Input* key, const Input* value, int length, int head_size,
            int64_t stride, Output* output, int64_t width) {
    constexpr int QUERIES = V * LANES;
    int units = units_of<Kind>(head_size), tokens = units_of<Kind>(length);
    int64_t vectors = V * ((int64_t)units + std::min(length, TILE) + head_size);
    int64_t numbers = (int64_t)length * units + (int64_t)tokens * head_size;
    char* memory = scratch<For::attending>(vectors * 64 + numbers * 4 + 64);
    auto queries = reinterpret_cast<__m512i*>(memory);             // [units][V], a panel
    auto context = reinterpret_cast<__m512*>(queries + V * units);  // [head_size][V]
    auto scores = context + V * head_size;                          // [keys of a tile][V]
    auto keys = reinterpret_cast<uint32_t*>(scores + V * std::min(length, TILE));  // blocks
    auto values = keys + (int64_t)length * units;                                  // blocks

    for (int tile = 0; tile < length; tile += TILE) {
        int rows = std::min(TILE, length - tile), count = blocks_of(rows);
        for (int i = 0; i < count; i++) {
            int start = tile + begin(rows, count, i), height = tile + begin(rows, count, i + 1) - start;
            transpose_as<Kind>(key + start * stride, stride, height, head_size,
                                                keys + (int64_t)start * units, height);
        }
    }
    pack_value<Kind>(value, length, head_size, stride, values);

    float factor = LOG2_E / std::sqrt((float)head_size);
    __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    lanes = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(QUERIES));
    for (int done = 0; done < length; done += QUERIES) {
        for (int v = 0; v < V; v++) {
            int start = done + v * LANES, rows = std::clamp(length - start, 0, LANES);
            transpose_as<Kind>(query + start * stride, stride, rows, head_size,
                                                reinterpret_cast<uint32_t*>(queries + v), QUERIES);
        }
        Softmax<V> softmax;
        for (int tile = 0; tile < length; tile += TILE) {
            int rows = std::min(TILE, length - tile);
            auto panel = reinterpret_cast<__m512i*>(scores);
            multiply<Kind, V>(rows, keys + (int64_t)tile * units, queries, units, panel);
            auto turned = weigh<Kind, V>(scores, rows, factor, tile == 0, softmax);
            for (int i = 0; tile && i < V * head_size; i++) {
                context[i] = _mm512_mul_ps(context[i], turned[i % V]);
            }
            multiply_part<Kind, V>(head_size, values, panel, tokens, tile / Kind::PER_UNIT,
                                   units_of<Kind>(rows), tile,
                                   reinterpret_cast<__m512i*>(context));
        }
        for (int v = 0; v < V; v++) {
            __m512 weight = _mm512_div_ps(_mm512_set1_ps(1), softmax.total[v]);
            for (int i = v; i < V * head_size; i += V) context[i] = _mm512_mul_ps(context[i], weight);
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
