// Linear layers, then GELU, or a residual and LayerNorm.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "products.h"

namespace {

constexpr int PANEL = 2 * LANES;   // columns of a panel of weights
constexpr int CHUNK = 512 * 1024;  // bytes of packed rows that stay in the second-level cache

// How a row of activations became uint8: x = scale · (q - zero_point).
struct Scale {
    float scale, zero_point;
};

constexpr float STEPS = 254, SMALLEST_SCALE = 1e-30f, ROUNDER = 0x1.8p23f;  // as in int8.py

Scale quantize(const float* row, int numbers, uint8_t* to) {
    __m512 low = _mm512_setzero_ps(), high = low, nothing = low;
    for (int i = 0; i < numbers; i += LANES) {
        __m512 x = load(row + i, first(numbers - i));
        low = _mm512_min_ps(low, x);
        high = _mm512_max_ps(high, x);
        nothing = _mm512_fmadd_ps(x, _mm512_setzero_ps(), nothing);
    }
    float smallest = _mm512_reduce_min_ps(low), largest = _mm512_reduce_max_ps(high);
    float scale = std::max((largest - smallest) / STEPS, SMALLEST_SCALE);
    scale += _mm512_reduce_add_ps(nothing);  // NaN if a number is none, which min and max pass over
    float steps = 1 / scale, zero_point = std::nearbyint(-smallest * steps);
    __m512 each = _mm512_set1_ps(steps), rounder = _mm512_set1_ps(zero_point + ROUNDER);
    for (int i = 0; i < numbers; i += LANES) {
        __mmask16 mask = first(numbers - i);
        __m512 q = _mm512_add_ps(_mm512_mul_ps(load(row + i, mask), each), rounder);
        _mm512_mask_cvtepi32_storeu_epi8(to + i, mask, (__m512i)q);
    }
    return {scale, zero_point};
}

// The fields of these two are those of __init__.py.
struct Layer {
    int32_t kind, inputs, outputs;  // kind: 0 Float32, 1 BFloat16, 2 Int8, 3 Widened
    const void* panels;
    const float* bias;     // [outputs], like the next two, which only Int8 has
    const float* channel;  // scale of each output
    const float* row_sum;  // -channel · sum of its integers
};

struct Norm {
    const float *weight, *bias;
    float eps;
};

template <class Kind>
using Activation = std::conditional_t<
    std::is_same_v<Kind, BFloat16>, bfloat16,
    std::conditional_t<std::is_same_v<Kind, Widened>, plain_bfloat16, float>>;

// Rows of activations as blocks; in Int8 quantised, each with a scale of its own.
template <class Kind>
void pack(const Activation<Kind>* x, int rows, int inputs, uint32_t* blocks, Scale* scales) {
    int units = units_of<Kind>(inputs), count = blocks_of(rows);
    for (int i = 0; i < count; i++) {
        int start = begin(rows, count, i), height = begin(rows, count, i + 1) - start;
        const Activation<Kind>* from = x + (int64_t)start * inputs;
        uint32_t* to = blocks + (int64_t)start * units;
        if constexpr (std::is_same_v<Kind, Int8>) {
            auto q = reinterpret_cast<uint8_t*>(scratch<For::quantized>((size_t)BLOCK * inputs));
            for (int row = 0; row < height; row++) {
                scales[start + row] = quantize(from + row * inputs, inputs, q + row * inputs);
            }
            transpose(q, inputs, height, inputs, to, height);
        } else {
            transpose_as<Kind>(from, inputs, height, inputs, to, height);
        }
    }
}

int panels_of(int outputs) { return (outputs + PANEL - 1) / PANEL; }

enum class Then { nothing, gelu, add };

// x W^T + b of some rows and some panels, then GELU or a residual; all matrices row by row.
// `blocks` and `scales` come from pack().
template <class Kind, Then THEN, class Output>
void product(const Layer& layer, const uint32_t* blocks, const Scale* scales, int rows,
             int first_panel, int last_panel, const Activation<Kind>* residual, Output* output) {
    int units = units_of<Kind>(layer.inputs);
    int64_t stored = stored_units<Kind>(layer.inputs);
    auto sums = reinterpret_cast<__m512i*>(scratch<For::sums>((size_t)rows * PANEL * 4));
    for (int panel = first_panel; panel < last_panel; panel++) {
        auto columns = static_cast<const __m512i*>(layer.panels) + panel * stored * 2;
        multiply<Kind, 2>(rows, blocks, columns, units, sums);
        for (int v = 0; v < 2; v++) {
            int column = panel * PANEL + v * LANES;
            __mmask16 mask = first(layer.outputs - column);
            __m512 bias = load(layer.bias + column, mask), channel, row_sum;
            if constexpr (std::is_same_v<Kind, Int8>) {
                channel = load(layer.channel + column, mask);
                row_sum = load(layer.row_sum + column, mask);
            }
            for (int row = 0; row < rows; row++) {
                __m512i result = sums[row * 2 + v];
                int64_t place = (int64_t)row * layer.outputs + column;
                __m512 sum;
                if constexpr (std::is_same_v<Kind, Int8>) {
                    auto [scale, zero_point] = scales[row];
                    __m512 offset = _mm512_fmadd_ps(_mm512_set1_ps(scale * zero_point), row_sum, bias);
                    sum = _mm512_mul_ps(_mm512_cvtepi32_ps(result), channel);
                    sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(scale), offset);
                } else {
                    sum = _mm512_add_ps((__m512)result, bias);
                }
                if constexpr (THEN == Then::gelu) sum = gelu(sum);
                if constexpr (THEN == Then::add) {
                    sum = _mm512_add_ps(sum, load(residual + place, mask));
                }
                store(output + place, sum, mask);
            }
        }
    }
}

// (x - mean) / sqrt(variance + eps) · weight + bias of one row
template <class Output>
void normalize(const float* x, int size, const Norm& norm, Output* output) {
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int i = 0; i < size; i += LANES) total = _mm512_add_ps(total, load(x + i, first(size - i)));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / size);
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = first(size - i);
        __m512 centred = _mm512_maskz_sub_ps(mask, load(x + i, mask), mean);
        squares = _mm512_fmadd_ps(centred, centred, squares);
    }
    float variance = _mm512_reduce_add_ps(squares) / size;
    __m512 factor = _mm512_set1_ps(1 / std::sqrt(variance + norm.eps));
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = first(size - i);
        __m512 centred = _mm512_mul_ps(_mm512_sub_ps(load(x + i, mask), mean), factor);
        __m512 weight = load(norm.weight + i, mask), bias = load(norm.bias + i, mask);
        store(output + i, _mm512_fmadd_ps(centred, weight, bias), mask);
    }
}

template <class Output>
void normalize(const float* x, int rows, int size, const Norm& norm, Output* output) {
    for (int row = 0; row < rows; row++, x += size, output += size) {
        normalize(x, size, norm, output);
    }
}

// The rows of a chunk, packed; `use(packed blocks, scales)` while they are.
template <class Kind, class Use>
void packed(const Activation<Kind>* x, int rows, int inputs, Use use) {
    size_t bytes = units_of<Kind>(inputs) * 4 + sizeof(Scale);
    auto scales = reinterpret_cast<Scale*>(scratch<For::packed>(rows * bytes + 64));
    auto blocks = reinterpret_cast<uint32_t*>(scales + rows);
    pack<Kind>(x, rows, inputs, blocks, scales);
    use(blocks, scales);
}

// Some rows through a layer, then GELU, or residual and LayerNorm, by one thread.
template <class Kind, Then THEN, class Output>
void apply(const Layer& layer, const Activation<Kind>* x, int rows,
           const Activation<Kind>* residual, const Norm* norm, Output* output) {
    packed<Kind>(x, rows, layer.inputs, [&](const uint32_t* blocks, const Scale* scales) {
        int panels = panels_of(layer.outputs);
        if constexpr (THEN == Then::add) {
            size_t numbers = (size_t)rows * layer.outputs;
            auto sums = reinterpret_cast<float*>(scratch<For::unnormalized>(numbers * 4));
            product<Kind, THEN>(layer, blocks, scales, rows, 0, panels, residual, sums);
            normalize(sums, rows, layer.outputs, *norm, output);
        } else {
            product<Kind, THEN>(layer, blocks, scales, rows, 0, panels, residual, output);
        }
    });
}

// `call(start, count)` for `total` rows from `first` in parts that stay in the cache.
template <class Call>
void by_chunks(int first, int total, int most, Call call) {
    int chunks = total ? (total + most - 1) / most : 0;
    for (int i = 0; i < chunks; i++) {
        int start = begin(total, chunks, i);
        call(first + start, int(begin(total, chunks, i + 1) - start));
    }
}

// Rows of a chunk with `bytes` each: two blocks at least, since each chunk reads all weights anew,
// and many in Widened, which also widens them anew (8 times as many: large .90 of the time).
template <class Kind>
int rows_of_chunk(size_t bytes) {
    return std::max<int>(2, CHUNK / bytes / BLOCK) * BLOCK * (Kind::PARTS > 1 ? 8 : 1);
}

// Whether each thread of a team takes rows of its own. Few rows share each panel instead, and
// the threads share the panels.
bool share_rows(int rows, int threads) { return rows >= 2 * BLOCK * threads; }

// `call(start, count)` for the rows of this thread.
template <class Call>
void own_rows(int rows, int most, Call call) {
    int part = omp_get_thread_num(), parts = omp_get_num_threads();
    int start = begin(rows, parts, part);
    by_chunks(start, int(begin(rows, parts, part + 1) - start), most, call);
}

// All rows through a layer as in apply(), by a team whose threads share the panels. Each calls
// it, and returns when all are done. `sums` [rows][outputs] is theirs together.
template <class Kind, Then THEN, class Output>
void apply_together(const Layer& layer, const Activation<Kind>* x, int rows,
                    const Activation<Kind>* residual, const Norm* norm, Output* output,
                    float* sums) {
    int part = omp_get_thread_num(), parts = omp_get_num_threads();
    int panels = panels_of(layer.outputs);
    int first_panel = begin(panels, parts, part), last_panel = begin(panels, parts, part + 1);
    int most = rows_of_chunk<Kind>(units_of<Kind>(layer.inputs) * 4);
    by_chunks(0, rows, most, [&](int start, int count) {
        int64_t place = (int64_t)start * layer.outputs;
        auto from = x + (int64_t)start * layer.inputs;
        packed<Kind>(from, count, layer.inputs, [&](const uint32_t* blocks, const Scale* scales) {
            auto multiplied = [&](auto* to) {
                product<Kind, THEN>(layer, blocks, scales, count, first_panel, last_panel,
                                    residual + place, to + place);
            };
            if constexpr (THEN == Then::add) multiplied(sums);
            else multiplied(output);
        });
    });
#pragma omp barrier
    if constexpr (THEN == Then::add) {
        own_rows(rows, rows, [&](int start, int count) {
            int64_t place = (int64_t)start * layer.outputs;
            normalize(sums + place, count, layer.outputs, *norm, output + place);
        });
#pragma omp barrier
    }
}

}  // namespace
