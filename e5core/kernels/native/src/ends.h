// What lies before the layers and behind them: embeddings, and the mean of each text's states.
//
// The caller's thread computes both. A team would halve .4 ms for 1,024 tokens, and on a busy machine
// wait for its threads for longer.

#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "linear.h"

namespace {

constexpr int MEAN_ROWS = 16;  // added up before they join the sum, which rounds less

// The fields are those of library.py. The tables are [rows][hidden] but for the last, one row.
struct Tables {
    const float *word, *position, *token_type;
    const Norm* norm;
    int32_t hidden;
};

// layer_norm(word[id] + token_type + position[place]) of each token.
template <class Output>
void embed(const Tables& tables, const int64_t* ids, const int64_t* places, int tokens,
           Output* output) {
    int size = tables.hidden;
    auto sums = static_cast<float*>(scratch<For::unnormalized>(size * sizeof(float)));
    for (int token = 0; token < tokens; token++, output += size) {
        const float* word = tables.word + ids[token] * size;
        const float* position = tables.position + places[token] * size;
        const float* next = tables.word + ids[std::min(token + 1, tokens - 1)] * size;
        for (int i = 0; i < size; i += LANES) {
            prefetch_soon(next + i);
            Vector sum = load(word + i, size - i) + load(tables.token_type + i, size - i);
            store(sums + i, sum + load(position + i, size - i), size - i);
        }
        normalize_row(sums, size, *tables.norm, output);
    }
}

// The mean of each text's states [tokens][size], which may not depend on the texts around it.
template <class Number>
void mean(const Number* states, const Texts& texts, int size, float* means) {
    constexpr int V = 4;  // sums that do not wait for each other
    for (int text = 0; text < texts.count; text++, means += size) {
        int64_t start = texts.cu_seqlens[text], stop = texts.cu_seqlens[text + 1];
        for (int i = 0; i < size; i += V * LANES) {
            Vector sums[V] = {};
            for (int64_t first = start; first < stop; first += MEAN_ROWS) {
                Vector parts[V] = {};
                for (int64_t row = first; row < std::min(stop, first + MEAN_ROWS); row++) {
                    for (int v = 0, at = i; v < V; v++, at += LANES) {
                        parts[v] = parts[v] + load(states + row * size + at, size - at);
                    }
                }
                for (int v = 0; v < V; v++) sums[v] = sums[v] + parts[v];
            }
            for (int v = 0, at = i; v < V; v++, at += LANES) {
                store(means + at, sums[v] / splat(float(stop - start)), size - at);
            }
        }
    }
}

}  // namespace
