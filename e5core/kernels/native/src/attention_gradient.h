// Attention as training needs it: with dropout of its weights, and its gradient.
//
// The weights are not kept for the way back but computed again from the scores, tile by tile (Dao
// 2023, arXiv:2307.08691, algorithm 2). As in attention.h, queries lie in lanes and keys in rows.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "training.h"

namespace {

// One head of one text. The weight of a key for a query is dropped by its place in
// [texts][heads][keys][queries], without gaps between texts of different lengths.
struct TrainedHead {
    const Dropout& dropout;
    uint32_t place;
    int length;
    float* log_sums;  // [queries]: the logarithms to base two of the sums of all powers of two

    Vector keep(Vector weights, int key, int query) const {
        return ::keep(weights, dropout, place + uint32_t(key) * length + query);
    }
    void note(int query, Vector largest, Vector total) const {
        float powers[LANES], sums[LANES];
        store(powers, largest, LANES);
        store(sums, total, LANES);
        for (int i = 0; i < std::min(LANES, length - query); i++) {
            log_sums[query + i] = powers[i] + std::log2(sums[i]);
        }
    }
};

// All heads of texts; log_sums is [heads][tokens].
struct Trained {
    const Texts& texts;
    const Dropout& dropout;
    float* log_sums;
    std::vector<uint32_t> places;  // of the first weight of each text

    Trained(const Texts& texts, const Dropout& dropout, float* log_sums)
        : texts(texts), dropout(dropout), log_sums(log_sums) {
        uint32_t place = 0;
        for (int i = 0; i < texts.count; i++) {
            places.push_back(place);
            uint32_t length = texts.cu_seqlens[i + 1] - texts.cu_seqlens[i];
            place += length * length * texts.heads;
        }
    }

    TrainedHead of(int i) const {
        int text = i / texts.heads, head = i % texts.heads, start = texts.cu_seqlens[text];
        int length = texts.cu_seqlens[text + 1] - start;
        return {dropout, places[text] + uint32_t(head) * length * length, length,
                log_sums + (int64_t)head * texts.tokens() + start};
    }
};

// The memory of a thread for the gradient of a head whose queries come V vectors at a time. What
// is "outer" is the gradient of the context. A panel across has units of queries, and its columns
// are numbers of the head, of which it takes several panels.
template <class Kind, int V>
struct GradientMemory {
    static constexpr int COLUMNS = V * LANES;
    const int across = units_of<Kind>(COLUMNS);  // units of the queries of a panel
    int panels;                                  // across
    Integers *queries, *outer;                   // [units][V]
    Integers *queries_across, *outer_across;     // [panels][across][V]
    Integers* of_scores_panel;                   // [units of keys of a tile][V]
    Vector *scores, *of_scores;                  // [keys of a tile][V]
    Vector* of_queries;                          // [head_size][V]
    Vector *of_keys, *of_values;                 // [panels][length][V]
    uint32_t *keys, *values;                     // blocks of [units][keys], tile after tile
    uint32_t* keys_across;                       // blocks of [units of tokens][numbers of a head]
    uint32_t *kept_across, *of_scores_across;    // blocks of [across][keys of a tile]

    GradientMemory(int length, int head_size) : panels((head_size + COLUMNS - 1) / COLUMNS) {
        int64_t units = units_of<Kind>(head_size), tokens = units_of<Kind>(length);
        int64_t most = std::min(length, TILE), turned = most * across / LANES + 2;
        int64_t vectors[] = {V * units, V * units, panels * across * V, panels * across * V,
                             V * most, V * most, V * most, V * head_size,
                             (int64_t)panels * length * V, (int64_t)panels * length * V,
                             length * units / LANES + 2, length * units / LANES + 2,
                             tokens * head_size / LANES + 2, turned, turned};
        int64_t all = 0;
        for (int64_t count : vectors) all += count;
        auto at = static_cast<Integers*>(scratch<For::attention>(all * VECTOR_BYTES));
        const int64_t* next = vectors;
        auto take = [&](auto*& place) {
            place = reinterpret_cast<std::decay_t<decltype(place)>>(at);
            at += *next++;
        };
        take(queries), take(outer), take(queries_across), take(outer_across);
        take(of_scores_panel), take(scores), take(of_scores);
        take(of_queries), take(of_keys), take(of_values);
        take(keys), take(values), take(keys_across), take(kept_across), take(of_scores_across);
    }
};

// For each query the sum of its weights times their gradients, which is context · outer.
template <int V, class Number>
void sum_gradients(const Number* context, const Number* outer, int64_t width, int queries,
                   int head_size, Vector (&totals)[V]) {
    float sums[V * LANES] = {};
    for (int query = 0; query < queries; query++, context += width, outer += width) {
        Vector sum = Vector{};
        for (int i = 0; i < head_size; i += LANES) {
            sum = fmadd(load(context + i, head_size - i), load(outer + i, head_size - i), sum);
        }
        sums[query] = sum_of(sum);
    }
    for (int v = 0; v < V; v++) totals[v] = load(sums + v * LANES, LANES);
}

// Rows of floats as blocks of a kind whose units run along them.
template <class Kind, int V>
void turn(const Vector* rows, int count, int units, uint32_t* blocks) {
    auto numbers = reinterpret_cast<const float*>(rows);
    for_each_block(count, [&](int start, int height) {
        transpose_rows<Kind>(numbers + (int64_t)start * V * LANES, V * LANES, height, V * LANES,
                             blocks + (int64_t)start * units, height);
    });
}

// Up to V vectors of rows of a head as panels whose units run across them.
template <class Kind, int V, class Number>
void lay_across(const Number* rows, int64_t stride, int count, int head_size, Integers* panels) {
    constexpr int COLUMNS = V * LANES;
    for (int start = 0; start < head_size; start += COLUMNS) {
        pair_rows<Kind>(rows + start, stride, count, head_size - start, COLUMNS,
                        reinterpret_cast<uint32_t*>(panels), COLUMNS);
        panels += units_of<Kind>(COLUMNS) * V;
    }
}

// Of a tile, [rows][V]: what is kept of the weights takes the place of the scores, and the scores'
// gradient, which also becomes a panel, that of the kept weights'. `keep(weights, row, v)` is what
// joined the context.
template <class Kind, int V, class Keep>
void weigh_again(Vector* scores, Vector* of_kept, int rows, int head_size,
                 const Vector (&log_sums)[V], const Vector (&totals)[V], Keep keep,
                 Integers* of_scores) {
    float root = std::sqrt((float)head_size);
    Vector factor = splat(LOG2_E / root), scale = splat(1 / root);
    auto differentiate = [&](int row, int v) {
        if (row >= rows) return Vector{};
        Vector &kept = scores[row * V + v], &gradient = of_kept[row * V + v];
        Vector weight = exp2(fmadd(kept, factor, -log_sums[v]));
        kept = keep(weight, row, v);
        gradient = fnmadd(weight, totals[v], kept * gradient) * scale;
        return gradient;
    };
    for (int row = 0; row < rows; row += Kind::NUMBERS) {
        for (int v = 0; v < V; v++, of_scores++) {
            Vector one = differentiate(row, v);
            if constexpr (Kind::NUMBERS == 1) *of_scores = bits_of(one);
            else *of_scores = Kind::pair(one, differentiate(row + 1, v));
        }
    }
}

// Panels [panels][length][V] as the rows of a head, `stride` apart.
template <int V, class Number>
void write_rows(const Vector* panels, int length, int head_size, Number* rows, int64_t stride) {
    for (int row = 0; row < length; row++, rows += stride) {
        for (int start = 0; start < head_size; start += LANES) {
            int panel = start / (V * LANES), v = start / LANES % V;
            Vector x = panels[((int64_t)panel * length + row) * V + v];
            store(rows + start, x, head_size - start);
        }
    }
}

// The gradients of the query, the key and the value of a head, at `of_query` and 1 and 2 times
// `width` behind it. context and outer are [tokens][width].
template <class Kind, int V, class Number>
void differentiate_in_head(const Head<Number>& head, const Number* context, const Number* outer,
                           Number* of_query, int64_t width, const TrainedHead& training) {
    constexpr int COLUMNS = V * LANES;
    GradientMemory<Kind, V> memory(head.length, head.head_size);
    int units = units_of<Kind>(head.head_size), tokens = units_of<Kind>(head.length);
    int length = head.length, size = head.head_size, across = memory.across;
    Vector *scores = memory.scores, *of_scores = memory.of_scores;
    block_keys<Kind>(head, head.key, memory.keys);
    block_keys<Kind>(head, head.value, memory.values);
    block_values<Kind>(head, head.key, memory.keys_across);
    for (int query = 0; query < length; query += COLUMNS) {
        int queries = std::min(COLUMNS, length - query);
        const Number *own = head.query + query * head.stride, *outer_own = outer + query * width;
        lay_queries<Kind, V>(own, head.stride, queries, size, memory.queries);
        lay_queries<Kind, V>(outer_own, width, queries, size, memory.outer);
        lay_across<Kind, V>(own, head.stride, queries, size, memory.queries_across);
        lay_across<Kind, V>(outer_own, width, queries, size, memory.outer_across);
        Vector totals[V], log_sums[V];
        sum_gradients(context + query * width, outer_own, width, queries, size, totals);
        for (int v = 0; v < V; v++) {
            int first = query + v * LANES;
            log_sums[v] = load(training.log_sums + first, length - first);
        }
        for (int tile = 0; tile < length; tile += TILE) {
            int rows = std::min(TILE, length - tile);
            int64_t before = (int64_t)tile * units;
            multiply<Kind, V>(rows, memory.keys + before, memory.queries, units, units, scores);
            multiply<Kind, V>(rows, memory.values + before, memory.outer, units, units, of_scores);
            auto keep = [&](Vector x, int row, int v) {
                return training.keep(x, tile + row, query + v * LANES);
            };
            weigh_again<Kind, V>(scores, of_scores, rows, size, log_sums, totals, keep,
                                 memory.of_scores_panel);
            multiply_units<Kind, V>(size, memory.keys_across, tokens, tile / Kind::NUMBERS,
                                    units_of<Kind>(rows), memory.of_scores_panel, tile,
                                    memory.of_queries);
            turn<Kind, V>(scores, rows, across, memory.kept_across);
            turn<Kind, V>(of_scores, rows, across, memory.of_scores_across);
            for (int i = 0; i < memory.panels; i++) {
                int64_t panel = (int64_t)i * across * V, result = ((int64_t)i * length + tile) * V;
                multiply_units<Kind, V>(rows, memory.kept_across, across, 0,
                                        units_of<Kind>(queries), memory.outer_across + panel,
                                        query, memory.of_values + result);
                multiply_units<Kind, V>(rows, memory.of_scores_across, across, 0,
                                        units_of<Kind>(queries), memory.queries_across + panel,
                                        query, memory.of_keys + result);
            }
        }
        write_context<V>(memory.of_queries, queries, size, of_query + query * head.stride,
                         head.stride);
    }
    write_rows<V>(memory.of_keys, length, size, of_query + width, head.stride);
    write_rows<V>(memory.of_values, length, size, of_query + 2 * width, head.stride);
}

// of_qkv [tokens][3][heads][head_size] from qkv, what attention has made of it, and the gradient of
// that, [tokens][heads][head_size].
template <class Kind, class Number>
void attention_gradient(const Number* qkv, const Trained& training, const Number* context,
                        const Number* outer, Number* of_qkv, int threads) {
    const Texts& texts = training.texts;
    int heads = texts.count * texts.heads;
    if (!heads) return;
    int64_t width = (int64_t)texts.heads * texts.head_size;
    run_by_team({std::min(threads, heads), false}, 1, 1, [&](int, int) { return heads; },
                [&](int, int, auto take) {
        for_each_head(qkv, texts, 0, take, [&](int i, const Head<Number>& head, int64_t place) {
            auto differentiate = head.length <= LANES
                                     ? differentiate_in_head<Kind, 1, Number>
                                     : differentiate_in_head<Kind, PANEL_VECTORS, Number>;
            differentiate(head, context + place, outer + place, of_qkv + (head.query - qkv), width,
                          training.of(i));
        });
    });
}

}  // namespace
