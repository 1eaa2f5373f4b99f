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

// Keys, or values, of a head whose units run along its numbers.
template <class Kind, class Input>
void block_keys(const Head<Input>& head, const Input* from, uint32_t* keys) {
    int units = units_of<Kind>(head.head_size);
    for (int tile = 0; tile < head.length; tile += TILE) {
        for_each_block(std::min(TILE, head.length - tile), [&](int start, int height) {
            transpose_rows<Kind>(from + (tile + start) * head.stride, head.stride, height,
                                 head.head_size, keys + (int64_t)(tile + start) * units, height);
        });
    }
}

// Rows as units of a kind that run across them: [units][width], of the first `columns` of each row,
// with 0 for those behind the `left` ones that it has. What a vector takes beyond the columns is
// overwritten by the next unit, and the last one's goes where the caller writes later.
template <class Kind, class Input>
void pair_rows(const Input* from, int64_t stride, int rows, int left, int columns, uint32_t* to,
               int width) {
    for (int row = 0; row < rows; row += Kind::NUMBERS) {
        prefetch_soon(from + LANES * stride);
        for (int i = 0; i < columns; i += LANES) {
            Vector x = load(from + i, left - i);
            Integers units = bits_of(x);
            if constexpr (Kind::NUMBERS == 2) {
                units = Kind::pair(x, load(from + stride + i, row + 1 == rows ? 0 : left - i));
            }
            store_at_least(to + i, units, columns - i);
        }
        to += width;
        from += Kind::NUMBERS * stride;
    }
}

// The rows of the blocks are those of the transposed values, or keys, and their units run along the
// tokens.
template <class Kind, class Input>
void block_values(const Head<Input>& head, const Input* from, uint32_t* values) {
    for_each_block(head.head_size, [&](int start, int height) {
        pair_rows<Kind>(from + start, head.stride, head.length, head.head_size - start, height,
                        values + (int64_t)start * units_of<Kind>(head.length), height);
    });
}

// V vectors of up to `count` queries as a panel. Queries behind the last one are 0.
template <class Kind, int V, class Input>
void lay_queries(const Input* from, int64_t stride, int count, int head_size, Integers* queries) {
    for (int v = 0; v < V; v++) {
        int start = v * LANES, rows = std::clamp(count - start, 0, LANES);
        transpose_rows<Kind>(from + start * stride, stride, rows, head_size,
                             reinterpret_cast<uint32_t*>(queries + v), V * LANES);
    }
}

// What training adds to attention, see attention_gradient.h: here nothing.
struct Untrained {
    // Of a number of heads, the one that this is for.
    Untrained of(int) const { return {}; }
    // What of the weights of a key for LANES queries joins the context.
    Vector keep(Vector weights, int, int) const { return weights; }
    // Of the scores of LANES queries: the largest, and the sum of their powers of two below it.
    void note(int, Vector, Vector) const {}
};

// A softmax down the columns of scores that come in tiles. The weight of a score is
// 2^(score - largest); what was added up with an earlier largest score must be multiplied by
// `rescale`.
template <int V>
struct Softmax {
    Vector largest[V], total[V], rescale[V];
};

// The scores [length][V] of a tile become weights, as a panel in their place: a unit is written
// when its scores have been read. `keep(weights, row, v)` is what joins the context.
template <class Kind, int V, class Keep>
void weigh(Vector* scores, int length, float score_factor, bool is_first_tile,
           Softmax<V>& softmax, Keep keep) {
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
        auto weight = [&](int row) {
            Vector below = fmadd(scores[row * V + v], factor, -largest);
            return Kind::NUMBERS == 2 ? exp2_for_bfloat16(below) : exp2(below);
        };
        Vector sum = Vector{};
        for (int row = 0; row < length; row += Kind::NUMBERS) {
            Vector one = weight(row);
            sum = sum + one;
            if constexpr (Kind::NUMBERS == 1) {
                weights[row * V + v] = bits_of(keep(one, row, v));
            } else {
                Vector next = row + 1 < length ? weight(row + 1) : Vector{};
                sum = sum + next;
                weights[row / 2 * V + v] = Kind::pair(keep(one, row, v), keep(next, row + 1, v));
            }
        }
        softmax.total[v] = is_first_tile ? sum : fmadd(softmax.total[v], softmax.rescale[v], sum);
    }
}

// V vectors of queries attend to all keys, tile by tile. This fills memory.context.
template <class Kind, int V, class Input, class Training>
void attend_to_keys(const Head<Input>& head, int first_query, const HeadMemory<Kind, V>& memory,
                    const Training& training) {
    int units = units_of<Kind>(head.head_size), tokens = units_of<Kind>(head.length);
    float factor = LOG2_E / std::sqrt((float)head.head_size);
    Vector *scores = memory.scores, *context = memory.context;
    auto weights = reinterpret_cast<const Integers*>(scores);
    Softmax<V> softmax;
    for (int tile = 0; tile < head.length; tile += TILE) {
        int rows = std::min(TILE, head.length - tile);
        multiply<Kind, V>(rows, memory.keys + (int64_t)tile * units, memory.queries, units, units,
                          scores);
        weigh<Kind, V>(scores, rows, factor, tile == 0, softmax, [&](Vector x, int row, int v) {
            return training.keep(x, tile + row, first_query + v * LANES);
        });
        for (int i = 0; tile && i < V * head.head_size; i++) {
            context[i] = context[i] * softmax.rescale[i % V];
        }
        multiply_units<Kind, V>(head.head_size, memory.values, tokens, tile / Kind::NUMBERS,
                                units_of<Kind>(rows), weights, tile, context);
    }
    for (int v = 0; v < V; v++) {
        training.note(first_query + v * LANES, softmax.largest[v], softmax.total[v]);
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

template <class Kind, int V, class Input, class Output, class Training>
void attend_in_head(const Head<Input>& head, Output* output, int64_t width,
                    const Training& training) {
    HeadMemory<Kind, V> memory(head.length, head.head_size);
    block_keys<Kind>(head, head.key, memory.keys);
    block_values<Kind>(head, head.value, memory.values);
    for (int query = 0; query < head.length; query += V * LANES) {
        lay_queries<Kind, V>(head.query + query * head.stride, head.stride, head.length - query,
                             head.head_size, memory.queries);
        attend_to_keys<Kind, V>(head, query, memory, training);
        int queries = std::min(V * LANES, head.length - query);
        write_context<V>(memory.context, queries, head.head_size, output + query * width, width);
    }
}

// Heads of texts, head after head of one text after the other, `first` and those behind it by
// the numbers taken, of qkv [tokens][3][heads][head_size]. `compute(number, head, place)` also gets
// where the head begins in [tokens][heads][head_size].
template <class Input, class Take, class Compute>
void for_each_head(const Input* qkv, const Texts& texts, int first, Take take, Compute compute) {
    int64_t width = (int64_t)texts.heads * texts.head_size, stride = 3 * width;
    for (int share; (share = take()) >= 0;) {
        int i = first + share;
        const int32_t* text = texts.cu_seqlens + i / texts.heads;
        int64_t start = text[0], column = i % texts.heads * texts.head_size;
        int length = int(text[1] - start);
        const Input* query = qkv + start * stride + column;
        compute(i, Head<Input>{query, query + width, query + 2 * width, length, texts.head_size,
                               stride}, start * width + column);
    }
}

// To output [tokens][heads][head_size].
template <class Kind, class Input, class Output, class Take, class Training = Untrained>
void attend_in_shares(const Input* qkv, const Texts& texts, int first, Output* output, Take take,
                      const Training& training = {}) {
    int64_t width = (int64_t)texts.heads * texts.head_size;
    for_each_head(qkv, texts, first, take, [&](int i, const Head<Input>& head, int64_t place) {
        auto one = training.of(i);
        auto attend = head.length <= LANES
                          ? attend_in_head<Kind, 1, Input, Output, decltype(one)>
                          : attend_in_head<Kind, PANEL_VECTORS, Input, Output, decltype(one)>;
        attend(head, output + place, width, one);
    });
}

}  // namespace
