// Linear layers, then GELU, or a residual and LayerNorm.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "blocks.h"

namespace {

constexpr int PANEL = PANEL_VECTORS * LANES;  // columns of a panel of weights
constexpr int CACHE_BYTES = 512 * 1024;       // of blocked rows, which stay in the second level
// Rows for which the weights are read at once. Beside 12 and 18 of them, large and base in float32
// with AVX2 take .85 and .88 of the time; beside 28, base with AVX-512 takes .98 (Zen 4, 2026-11).
constexpr int LEAST_ROWS = 84;

// The fields of these two are those of library.py.
struct Linear {
    int32_t kind, inputs, outputs;  // kind is a KindNumber
    int32_t stretch;                // units added up before they join the sum
    const void* panels;
    const float* bias;     // [outputs], like the next two, which only Int8 has
    const float* channel;  // the scale of each output
    const float* row_sum;  // -channel · the sum of its integers
};

struct Norm {
    const float *weight, *bias;
    float eps;
};

// ---------------------------------------------------------------- activations as blocks

// How a row of activations became uint8: x = scale · (q - zero_point).
struct Scale {
    float scale, zero_point;
};

// STEPS and SMALLEST_SCALE are those of Python's int8 kernels. Adding ROUNDER to a number of
// less than 2^22 leaves the nearest integer in its lowest bits.
constexpr float STEPS = 254, SMALLEST_SCALE = 1e-30f, ROUNDER = 0x1.8p23f;

template <class Kind>
Scale quantize(const float* row, int size, typename Kind::Number* quantized) {
    Vector low{}, high{}, nan_if_any{};
    for (int i = 0; i < size; i += LANES) {
        Vector x = load(row + i, size - i);
        low = min(low, x);
        high = max(high, x);
        nan_if_any = fmadd(x, Vector{}, nan_if_any);
    }
    float smallest = smallest_of(low), largest = largest_of(high);
    float scale = std::max((largest - smallest) / STEPS, SMALLEST_SCALE);
    // min and max may ignore NaN; this makes the scale NaN if any input is NaN or infinite.
    scale += sum_of(nan_if_any);
    float steps = 1 / scale, zero_point = std::nearbyint(-smallest * steps) + Kind::LOWEST;
    Vector factor = splat(steps), rounder = splat(zero_point + ROUNDER);
    for (int i = 0; i < size; i += LANES) {
        Vector rounded = load(row + i, size - i) * factor + rounder;
        Kind::store_numbers(quantized + i, bits_of(rounded), size - i);
    }
    return {scale, zero_point};
}

template <class Kind>
using Activation = typename Kind::Activation;

// Rows of activations as blocks. In Int8 each row has a scale of its own.
struct BlockedRows {
    uint32_t* blocks;
    Scale* scales;
    int rows;
};

template <class Kind>
BlockedRows block_rows(const Activation<Kind>* x, int rows, int inputs) {
    int units = units_of<Kind>(inputs);
    size_t bytes = rows * (units * 4 + sizeof(Scale)) + VECTOR_BYTES;
    auto scales = static_cast<Scale*>(scratch<For::blocked>(bytes));
    auto blocks = reinterpret_cast<uint32_t*>(scales + rows);
    for_each_block(rows, [&](int start, int height) {
        const Activation<Kind>* from = x + (int64_t)start * inputs;
        uint32_t* to = blocks + (int64_t)start * units;
        if constexpr (std::is_same_v<Kind, Int8>) {
            // The numbers behind the last one are multiplied by weights of 0.
            using Number = typename Kind::Number;
            int width = units * Kind::NUMBERS, bytes = width * sizeof(Number);
            auto q = static_cast<Number*>(scratch<For::quantized>(BLOCK * bytes + VECTOR_BYTES));
            for (int row = 0; row < height; row++) {
                scales[start + row] = quantize<Kind>(from + row * inputs, inputs, q + row * width);
            }
            transpose_bytes(q, bytes, height, bytes, to, height);
        } else {
            transpose_rows<Kind>(from, inputs, height, inputs, to, height);
        }
    });
    return {blocks, scales, rows};
}

// ---------------------------------------------------------------- the product and what follows

int panels_of(int outputs) { return (outputs + PANEL - 1) / PANEL; }

enum class Then { nothing, gelu, add_residual };

// What a vector of outputs needs beside its weights.
struct Columns {
    int first, count;
    Vector bias, channel, row_sum;
};

template <class Kind>
Columns load_columns(const Linear& linear, int first) {
    int count = linear.outputs - first;
    Columns columns{first, count, load(linear.bias + first, count), {}, {}};
    if constexpr (std::is_same_v<Kind, Int8>) {
        columns.channel = load(linear.channel + first, count);
        columns.row_sum = load(linear.row_sum + first, count);
    }
    return columns;
}

// x W^T + b from the sums of the products.
template <class Kind>
Vector finish(typename Kind::Sum sum, const Columns& columns, const Scale* row_scale) {
    if constexpr (std::is_same_v<Kind, Int8>) {
        auto [scale, zero_point] = *row_scale;
        Vector offset = fmadd(splat(scale * zero_point), columns.row_sum, columns.bias);
        return fmadd(to_float(sum) * columns.channel, splat(scale), offset);
    } else {
        return sum + columns.bias;
    }
}

// x W^T + b of some rows and some panels, then GELU or a residual; all matrices row by row.
template <class Kind, Then THEN, class Output>
void multiply_panels(const Linear& linear, BlockedRows x, int first_panel, int last_panel,
                     const Activation<Kind>* residual, Output* output) {
    using Sum = typename Kind::Sum;
    int units = units_of<Kind>(linear.inputs);
    int64_t panel_size = (int64_t)stored_units<Kind>(linear.inputs) * PANEL_VECTORS;
    auto panels = static_cast<const Integers*>(linear.panels);
    auto sums = static_cast<Sum*>(scratch<For::sums>((size_t)x.rows * PANEL * 4));
    for (int panel = first_panel; panel < last_panel; panel++) {
        multiply<Kind, PANEL_VECTORS>(x.rows, x.blocks, panels + panel * panel_size, units,
                                      linear.stretch, sums);
        for (int v = 0; v < PANEL_VECTORS; v++) {
            Columns columns = load_columns<Kind>(linear, panel * PANEL + v * LANES);
            for (int row = 0; row < x.rows; row++) {
                int64_t place = (int64_t)row * linear.outputs + columns.first;
                Vector y = finish<Kind>(sums[row * PANEL_VECTORS + v], columns, x.scales + row);
                if constexpr (THEN == Then::gelu) {
                    y = std::is_same_v<Kind, Int8> ? gelu_for_int8(y) : gelu(y);
                }
                if constexpr (THEN == Then::add_residual) {
                    y = y + load(residual + place, columns.count);
                }
                store(output + place, y, columns.count);
            }
        }
    }
}

// (x - mean) / sqrt(variance + eps) · weight + bias of one row.
template <class Output>
void normalize_row(const float* x, int size, const Norm& norm, Output* output) {
    Vector total{}, squares{};
    for (int i = 0; i < size; i += LANES) total = total + load(x + i, size - i);
    Vector mean = splat(sum_of(total) / size);
    for (int i = 0; i < size; i += LANES) {
        Vector centred = keep_first(load(x + i, size - i) - mean, size - i);
        squares = fmadd(centred, centred, squares);
    }
    float variance = sum_of(squares) / size;
    Vector factor = splat(1 / std::sqrt(variance + norm.eps));
    for (int i = 0; i < size; i += LANES) {
        Vector centred = (load(x + i, size - i) - mean) * factor;
        Vector weight = load(norm.weight + i, size - i), bias = load(norm.bias + i, size - i);
        store(output + i, fmadd(centred, weight, bias), size - i);
    }
}

template <class Output>
void normalize_rows(const float* x, int rows, int size, const Norm& norm, Output* output) {
    for (int row = 0; row < rows; row++, x += size, output += size) {
        normalize_row(x, size, norm, output);
    }
}

// ---------------------------------------------------------------- by one thread, or in shares

// Rows through a linear layer, then GELU, or residual and LayerNorm, by one thread.
template <class Kind, Then THEN, class Output>
void apply_alone(const Linear& linear, const Activation<Kind>* x, int rows,
                 const Activation<Kind>* residual, const Norm* norm, Output* output) {
    BlockedRows blocked = block_rows<Kind>(x, rows, linear.inputs);
    int panels = panels_of(linear.outputs);
    if constexpr (THEN == Then::add_residual) {
        size_t numbers = (size_t)rows * linear.outputs;
        auto sums = static_cast<float*>(scratch<For::unnormalized>(numbers * 4));
        multiply_panels<Kind, THEN>(linear, blocked, 0, panels, residual, sums);
        normalize_rows(sums, rows, linear.outputs, *norm, output);
    } else {
        multiply_panels<Kind, THEN>(linear, blocked, 0, panels, residual, output);
    }
}

// How many slices rows are cut into, so that a slice of `bytes` a row stays in the cache. Each
// reads all weights anew, so it has LEAST_ROWS, and many in kinds that unpack weights, which do
// that anew as well (with 8 times as many rows, e5-large takes .90 of the time).
template <class Kind>
int slices_of(int rows, size_t bytes) {
    int cached = CACHE_BYTES / bytes * (Kind::STORED_UNITS == 2 ? 8 : 1);
    int most = std::max(cached / BLOCK * BLOCK, LEAST_ROWS);
    return (rows + most - 1) / most;
}

// Where a slice of rows starts. All have whole blocks but the last one.
int slice_start(int rows, int slices, int slice) {
    int blocks = (rows + BLOCK - 1) / BLOCK;
    return int(std::min<int64_t>(rows, share_start(blocks, slices, slice) * BLOCK));
}

// The panels of a linear layer in shares: some panels of a slice of rows, one slice after the
// other. A thread lays out a slice for all shares of it that it takes.
struct PanelShares {
    int slices, parts;

    template <class Kind>
    static PanelShares of(const Linear& linear, int rows, int threads) {
        return {slices_of<Kind>(rows, units_of<Kind>(linear.inputs) * 4),
                std::min(panels_of(linear.outputs), threads > 1 ? 2 * threads : 1)};
    }
    int count() const { return slices * parts; }
};

// x W^T + b of all rows, then GELU or a residual, share by share.
template <class Kind, Then THEN, class Output, class Take>
void multiply_shares(const Linear& linear, const Activation<Kind>* x, int rows,
                     const Activation<Kind>* residual, Output* output, PanelShares shares,
                     Take take) {
    BlockedRows blocked;
    int slice = -1, panels = panels_of(linear.outputs);
    for (int share; (share = take()) >= 0;) {
        int start = slice_start(rows, shares.slices, share / shares.parts);
        int64_t place = (int64_t)start * linear.outputs;
        if (slice != share / shares.parts) {
            slice = share / shares.parts;
            int count = slice_start(rows, shares.slices, slice + 1) - start;
            blocked = block_rows<Kind>(x + (int64_t)start * linear.inputs, count, linear.inputs);
        }
        int part = share % shares.parts;
        multiply_panels<Kind, THEN>(linear, blocked, share_start(panels, shares.parts, part),
                                    share_start(panels, shares.parts, part + 1),
                                    residual + place, output + place);
    }
}

template <class Output, class Take>
void normalize_shares(const float* x, int rows, int size, const Norm& norm, Output* output,
                      int shares, Take take) {
    for (int share; (share = take()) >= 0;) {
        int64_t start = share_start(rows, shares, share), place = start * size;
        int count = int(share_start(rows, shares, share + 1) - start);
        normalize_rows(x + place, count, size, norm, output + place);
    }
}

}  // namespace
