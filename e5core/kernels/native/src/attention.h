// Attention within each text, one head of one text at a time.
//
// The queries lie in the lanes of vectors, and the keys come tile by tile:
// scores^T = key · query^T, a softmax down its columns, context^T = value^T · weights^T
// (Dao et al. 2022, arXiv:2205.14135).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "blocks.h"

namespace {

// Texts whose tokens lie one after another.
struct Texts {
    const int32_t* cu_seqlens;
    int count, heads, head_size;
    int tokens() const { return cu_seqlens[count]; }
};

// The scores of a tile of keys stay in the first-level cache (14 KiB of them with AVX-512), and
// more keys at a time would round more. Tiles are of whole blocks and of whole units.
constexpr int TILE = 112 / (2 * BLOCK) * (2 * BLOCK);

// One head of one text. The pointers go to its first token, rows are `stride` numbers apart.
template <class Input>
struct Head {
    const Input *query, *key, *value;
    int length, head_size;
    int64_t stride;
};

// The memory of a thread for a head whose queries come V vectors at a time.
template <class Kind, int V>
struct HeadMemory {
    Integers* queries;  // [units][V], a panel
    Vector* context;    // [head_size][V]
    Vector* scores;     // [keys of a tile][V], and then the weights in their place, a panel
    uint32_t* keys;     // blocks of [units][keys], tile after tile
    uint32_t* values;   // blocks of [units of tokens][numbers of a head]

    HeadMemory(int length, int head_size) {
        int units = units_of<Kind>(head_size), tokens = units_of<Kind>(length);
        int64_t vectors = V * ((int64_t)units + std::min(length, TILE) + head_size);
        int64_t numbers = (int64_t)length * units + (int64_t)tokens * head_size;
        int64_t bytes = vectors * VECTOR_BYTES + numbers * 4 + VECTOR_BYTES;
        queries = static_cast<Integers*>(scratch<For::attention>(bytes));
        context = reinterpret_cast<Vector*>(queries + V * units);
        scores = context + V * head_size;
        keys = reinterpret_cast<uint32_t*>(scores + V * std::min(length, TILE));
        values = keys + (int64_t)length * units;
    }
};

template <class Kind, class Input>
void block_keys(const Head<Input>& head, uint32_t* keys) {
    int units = units_of<Kind>(head.head_size);
    for (int tile = 0; tile < head.length; tile += TILE) {
        for_each_block(std::min(TILE, head.length - tile), [&](int start, int height) {
            transpose_rows<Kind>(head.key + (tile + start) * head.stride, head.stride, height,
                                 head.head_size, keys + (int64_t)(tile + start) * units, height);
        });
    }
}

// The rows of the blocks are those of the transposed values, and their units run along the tokens.
template <class Kind, class Input>
void block_values(const Head<Input>& head, uint32_t* values) {
    for_each_block(head.head_size, [&](int start, int height) {
        for (int row = 0; row < head.length; row += Kind::NUMBERS, values += height) {
            const Input* from = head.value + row * head.stride + start;
            prefetch_soon(from + LANES * head.stride);
            for (int i = 0; i < height; i += LANES) {
                // More than the block takes is read where the head has it, and what is written
                // too far is overwritten by the next unit.
                int left = head.head_size - start - i;
                Vector x = load(from + i, left);
                Integers units = bits_of(x);
                if constexpr (Kind::NUMBERS == 2) {
                    bool is_last = row + 1 == head.length;
                    units = Kind::pair(x, load(from + head.stride + i, is_last ? 0 : left));
                }
                store_at_least(values + i, units, height - i);
            }
        }
    });
}

// V vectors of queries as a panel. Queries behind the last one are 0.
template <class Kind, int V, class Input>
void lay_queries(const Head<Input>& head, int first_query, Integers* queries) {
    for (int v = 0; v < V; v++) {
        int start = first_query + v * LANES, rows = std::clamp(head.length - start, 0, LANES);
        transpose_rows<Kind>(head.query + start * head.stride, head.stride, rows, head.head_size,
                             reinterpret_cast<uint32_t*>(queries + v), V * LANES);
    }
}

// A softmax down the columns of scores that come in tiles. The weight of a score is
// 2^(score - largest); what was added up with an earlier largest score must be multiplied by
// `rescale`.
template <int V>
struct Softmax {
    Vector largest[V], total[V], rescale[V];
};

// The scores [length][V] of a tile become weights, as a panel in their place: a unit is written
// when its scores have been read.
template <class Kind, int V>
void weigh(Vector* scores, int length, float score_factor, bool is_first_tile,
           Softmax<V>& softmax) {
    auto weights = reinterpret_cast<Integers*>(scores);
    Vector factor = splat(score_factor);
    for (int v = 0; v < V; v++) {
        Vector largest = scores[v];
        for (int row = 1; row < length; row++) largest = max(scores[row * V + v], largest);
        largest = largest * factor;
        if (!is_first_tile) {
            largest = max(largest, softmax.largest[v]);
            softmax.rescale[v] = exp2(softmax.largest[v] - largest);
        }
        softmax.largest[v] = largest;
        auto weight = [&](int row) { return exp2(fmadd(scores[row * V + v], factor, -largest)); };
        Vector sum = Vector{};
        for (int row = 0; row < length; row += Kind::NUMBERS) {
            Vector one = weight(row);
            sum = sum + one;
            if constexpr (Kind::NUMBERS == 1) {
                weights[row * V + v] = bits_of(one);
            } else {
                Vector next = row + 1 < length ? weight(row + 1) : Vector{};
                sum = sum + next;
                weights[row / 2 * V + v] = Kind::pair(one, next);
            }
        }
        softmax.total[v] = is_first_tile ? sum : fmadd(softmax.total[v], softmax.rescale[v], sum);
    }
}

// V vectors of queries attend to all keys, tile by tile. This fills memory.context.
template <class Kind, int V, class Input>
void attend_to_keys(const Head<Input>& head, const HeadMemory<Kind, V>& memory) {
    int units = units_of<Kind>(head.head_size), tokens = units_of<Kind>(head.length);
    float factor = LOG2_E / std::sqrt((float)head.head_size);
    Vector *scores = memory.scores, *context = memory.context;
    auto weights = reinterpret_cast<const Integers*>(scores);
    Softmax<V> softmax;
    for (int tile = 0; tile < head.length; tile += TILE) {
        int rows = std::min(TILE, head.length - tile);
        multiply<Kind, V>(rows, memory.keys + (int64_t)tile * units, memory.queries, units, units,
                          scores);
        weigh<Kind, V>(scores, rows, factor, tile == 0, softmax);
        for (int i = 0; tile && i < V * head.head_size; i++) {
            context[i] = context[i] * softmax.rescale[i % V];
        }
        multiply_units<Kind, V>(head.head_size, memory.values, tokens, tile / Kind::NUMBERS,
                                units_of<Kind>(rows), weights, tile, context);
    }
    for (int v = 0; v < V; v++) {
        Vector normalizer = splat(1) / softmax.total[v];
        for (int i = v; i < V * head.head_size; i += V) context[i] = context[i] * normalizer;
    }
}

// The columns of the context become rows, which are `width` apart.
template <int V, class Output>
void write_context(const Vector* context, int queries, int head_size, Output* output,
                   int64_t width) {
    for (int v = 0; v * LANES < queries; v++, output += LANES * width) {
        int rows = std::min(LANES, queries - v * LANES);
        for (int start = 0; start < head_size; start += LANES) {
            Integers square[LANES];
            for (int i = 0; i < LANES; i++) {
                bool is_inside = start + i < head_size;
                square[i] = is_inside ? bits_of(context[V * (start + i) + v]) : Integers{};
            }
            transpose(square);
            for (int row = 0; row < rows; row++) {
                store(output + row * width + start, from_bits(square[row]), head_size - start);
            }
        }
    }
}

template <class Kind, int V, class Input, class Output>
void attend_in_head(const Head<Input>& head, Output* output, int64_t width) {
    HeadMemory<Kind, V> memory(head.length, head.head_size);
    block_keys<Kind>(head, memory.keys);
    block_values<Kind>(head, memory.values);
    for (int query = 0; query < head.length; query += V * LANES) {
        lay_queries<Kind, V>(head, query, memory.queries);
        attend_to_keys<Kind, V>(head, memory);
        int queries = std::min(V * LANES, head.length - query);
        write_context<V>(memory.context, queries, head.head_size, output + query * width, width);
    }
}

// Heads of texts, head after head of one text after the other, `first` and those behind it by
// the numbers taken: qkv [tokens][3][heads][head_size] to output [tokens][heads][head_size].
template <class Kind, class Input, class Output, class Take>
void attend_in_shares(const Input* qkv, const Texts& texts, int first, Output* output, Take take) {
    int64_t width = (int64_t)texts.heads * texts.head_size, stride = 3 * width;
    for (int share; (share = take()) >= 0;) {
        int i = first + share;
        const int32_t* text = texts.cu_seqlens + i / texts.heads;
        int64_t start = text[0], column = i % texts.heads * texts.head_size;
        int length = int(text[1] - start);
        const Input* query = qkv + start * stride + column;
        Head<Input> head{query, query + width, query + 2 * width, length, texts.head_size, stride};
        auto attend = length <= LANES ? attend_in_head<Kind, 1, Input, Output>
                                      : attend_in_head<Kind, PANEL_VECTORS, Input, Output>;
        attend(head, output + start * width + column, width);
    }
}

}  // namespace
