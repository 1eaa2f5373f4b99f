// What lies before the layers and behind them: embeddings, and the mean of each text's states.

#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "linear.h"

namespace {

constexpr int SHARE_ROWS = 128;  // of these, each thread takes so many or more
constexpr int MEAN_ROWS = 16;    // added up before they join the sum, which rounds less

// The fields are those of library.py. The tables are [rows][hidden] but for the last, one row.
struct Tables {
    const float *word, *position, *token_type;
    const Norm* norm;
    int32_t hidden;
};

// layer_norm(word[id] + token_type + position[place]) of each token.
template <class Output>
void embed(const Tables& tables, const int64_t* ids, const int64_t* places, int tokens,
           Output* output, int threads) {
    int size = tables.hidden, shares = std::clamp(tokens / SHARE_ROWS, 1, threads);
    run_by_team({shares, true}, 1, 1, [&](int, int) { return shares; },
                [&](int, int, auto take) {
        auto sums = static_cast<float*>(scratch<For::unnormalized>(size * sizeof(float)));
        for (int share; (share = take()) >= 0;) {
            int64_t stop = share_start(tokens, shares, share + 1);
            for (int64_t token = share_start(tokens, shares, share); token < stop; token++) {
                const float* word = tables.word + ids[token] * size;
                const float* position = tables.position + places[token] * size;
                const float* next = tables.word + ids[std::min(token + 1, stop - 1)] * size;
                for (int i = 0; i < size; i += LANES) {
                    prefetch_soon(next + i);
                    Vector sum = load(word + i, size - i) + load(tables.token_type + i, size - i);
                    store(sums + i, sum + load(position + i, size - i), size - i);
                }
                normalize_row(sums, size, *tables.norm, output + token * size);
            }
        }
    });
}

// The mean of each text's states [tokens][size], which may not depend on the texts around it.
template <class Number>
void mean(const Number* states, const Texts& texts, int size, float* means, int threads) {
    constexpr int V = 4;  // sums that do not wait for each other
    int helpers = std::clamp(texts.tokens() / SHARE_ROWS, 1, std::min(threads, texts.count));
    run_by_team({helpers, true}, 1, 1, [&](int, int) { return texts.count; },
                [&](int, int, auto take) {
        for (int text; (text = take()) >= 0;) {
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
                    Vector mean = sums[v] / splat(float(stop - start));
                    store(means + (int64_t)text * size + at, mean, size - at);
                }
            }
        }
    });
}

}  // namespace
