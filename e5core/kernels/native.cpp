// The operations of an encoder layer for x86 CPUs with AVX-512; native.py calls them.
//
// Behind everything is one product: a block of at most 14 rows times a panel of 32 columns, in
// float32, bfloat16 or int8, the whole result in registers. How a number comes about depends on
// neither the rows around it nor the threads: a text's vector has the same bits in every batch.
//
//   unit   32 bits of a row: one float32, two bfloat16 or four int8, taken in one instruction
//   block  rows of the left matrix, unit by unit: [units][rows]
//   panel  32 columns of the right matrix, unit by unit: [units][32]

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

namespace {

constexpr int LANES = 16;          // 32-bit numbers in a vector
constexpr int PANEL = 2 * LANES;   // columns of a panel
constexpr int BLOCK = 14;          // rows of a block: 28 of the 32 registers hold its result
constexpr int CHUNK = 512 * 1024;  // bytes of packed rows that stay in the second-level cache
constexpr int AHEAD = 16;          // vectors of a panel to fetch in advance
constexpr int STRETCH = 384;       // units added up before they join the sum: rounds less

// Memory of a thread that only grows.
template <class Use>
char* scratch(size_t bytes) {
    struct Memory {
        char* data = nullptr;
        size_t size = 0;
        ~Memory() { std::free(data); }
    };
    thread_local Memory memory;
    if (memory.size < bytes) {
        std::free(memory.data);
        memory.size = (bytes + 4095) / 4096 * 4096;
        memory.data = static_cast<char*>(std::aligned_alloc(64, memory.size));
        if (!memory.data) throw std::bad_alloc();
    }
    return memory.data;
}

// ---------------------------------------------------------------------------------- numbers

struct bfloat16 {
    uint16_t bits;
};

__mmask16 first(int lanes) {
    return lanes >= LANES ? 0xFFFF : lanes <= 0 ? 0 : (1u << lanes) - 1;
}

__m512 load(const float* from, __mmask16 mask = 0xFFFF) { return _mm512_maskz_loadu_ps(mask, from); }

__m512 load(const bfloat16* from, __mmask16 mask = 0xFFFF) {
    __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

void store(float* to, __m512 x, __mmask16 mask = 0xFFFF) { _mm512_mask_storeu_ps(to, mask, x); }

void store(bfloat16* to, __m512 x, __mmask16 mask = 0xFFFF) {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

template <size_t N>
__m512 polynomial(const float (&coefficients)[N], __m512 x) {
    __m512 sum = _mm512_set1_ps(coefficients[N - 1]);
    for (int i = int(N) - 2; i >= 0; i--) {
        sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(coefficients[i]));
    }
    return sum;
}

// 2^x: the whole part goes to the exponent. Fitted for the least relative error on
// [-0.5, 0.5], 2e-9.
__m512 exp2(__m512 x) {
    static const float c[] = {1.0f,           0.693147206f,   0.240226469f,  0.0555032878f,
                              0.00961848896f, 0.00133999312f, 0.000153458114f};
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(polynomial(c, _mm512_sub_ps(x, whole)), whole);
}

constexpr float LOG2_E = 1.44269504f;

// x times the normal distribution function of x, which is the GELU with erf. Its upper tail
// is exp(-x²/2) u P(u) with u = 1 / (1 + 0.35 x), after Abramowitz and Stegun 7.1.26; P is of
// higher degree, fitted for the least relative error on [0, 14], 3e-8.
__m512 gelu(__m512 x) {
    static const float c[] = {0.139621403577f,  0.139861882444f, 0.119832773572f,
                              0.105508381205f,  -0.023110738253f, 0.159175487771f,
                              -0.255715428199f, 0.143972270818f, -0.029146048882f};
    __m512 size = _mm512_abs_ps(x), one = _mm512_set1_ps(1);
    __m512 below = _mm512_fmadd_ps(size, _mm512_set1_ps(0.35f), one);
    __m512 u = _mm512_rcp14_ps(below);
    u = _mm512_mul_ps(u, _mm512_fnmadd_ps(below, u, _mm512_set1_ps(2)));  // Newton's step
    __m512 bell = exp2(_mm512_mul_ps(_mm512_mul_ps(size, size), _mm512_set1_ps(-LOG2_E / 2)));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(bell, u), polynomial(c, u));
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_blend_ps(negative, _mm512_sub_ps(one, tail), tail));
}

// ---------------------------------------------------------------------------------- products

// A kind of product: what a unit holds, and how one is multiplied and added.
struct Float32 {
    using Number = float;
    using Sum = __m512;
    static constexpr int PER_UNIT = 1;
    static Sum add(Sum sum, uint32_t unit, __m512i panel) {
        __m512 row = _mm512_castsi512_ps(_mm512_set1_epi32(unit));
        return _mm512_fmadd_ps(row, _mm512_castsi512_ps(panel), sum);
    }
    static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
};

struct BFloat16 {
    using Number = bfloat16;
    using Sum = __m512;
    static constexpr int PER_UNIT = 2;
    static Sum add(Sum sum, uint32_t unit, __m512i panel) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(unit), (__m512bh)panel);
    }
    static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
};

struct Int8 {
    using Number = uint8_t;
    using Sum = __m512i;
    static constexpr int PER_UNIT = 4;
    static Sum add(Sum sum, uint32_t unit, __m512i panel) {
        // GCC 12 copies the registers around its own intrinsic, for half of the speed.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(_mm512_set1_epi32(unit)), "v"(panel));
        return sum;
    }
    static Sum plus(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
};

// A block times a panel of V vectors, added to the result or put in its place.
template <class Kind, int V, int ROWS>
void multiply(const uint32_t* block, const __m512i* panel, int units, bool add, __m512i* result) {
    using Sum = typename Kind::Sum;
    Sum sums[ROWS][V] = {};
    for (; units; units--, block += ROWS, panel += V) {
        __m512i columns[V];
        for (int v = 0; v < V; v++) {
            columns[v] = _mm512_load_si512(panel + v);
            _mm_prefetch(panel + v + AHEAD, _MM_HINT_T0);
        }
#pragma GCC unroll 14
        for (int row = 0; row < ROWS; row++) {
            for (int v = 0; v < V; v++) {
                sums[row][v] = Kind::add(sums[row][v], block[row], columns[v]);
            }
        }
    }
    for (int i = 0; i < ROWS * V; i++) {
        Sum sum = sums[i / V][i % V];
        result[i] = (__m512i)(add ? Kind::plus((Sum)result[i], sum) : sum);
    }
}

template <class Kind, int V, int... I>
constexpr auto multiplications(std::integer_sequence<int, I...>) {
    return std::array{multiply<Kind, V, I + 1>...};
}

// `total` in `parts` as equal as can be: where one of them starts.
int64_t begin(int64_t total, int parts, int part) { return total * part / parts; }

int blocks_of(int rows) { return (rows + BLOCK - 1) / BLOCK; }

// Neighbouring blocks of `rows` rows, all times the panel: result [rows][V] vectors. The part of
// the panel that one stretch needs stays in the first-level cache.
template <class Kind, int V>
void multiply(int rows, const uint32_t* blocks, const __m512i* panel, int units, __m512i* result) {
    static constexpr auto by_rows =
        multiplications<Kind, V>(std::make_integer_sequence<int, BLOCK>{});
    int count = blocks_of(rows);
    for (int done = 0; done < units; done += STRETCH) {
        for (int i = 0; i < count; i++) {
            int start = begin(rows, count, i), height = begin(rows, count, i + 1) - start;
            by_rows[height - 1](blocks + (int64_t)start * units + (int64_t)done * height,
                                panel + (int64_t)done * V, std::min(STRETCH, units - done), done,
                                result + (int64_t)start * V);
        }
    }
}

int units_of(int numbers, int per_unit) { return (numbers + per_unit - 1) / per_unit; }

// Up to 16 rows, `stride` bytes apart, to to[unit][row], units `height` apart; what is missing in
// the last unit is 0. Up to 64 bytes behind the last one are overwritten.
void transpose(const void* from, int64_t stride, int rows, int bytes, uint32_t* to, int height) {
    static const int low[] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const __m512i lower = _mm512_loadu_si512(low);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(LANES / 2));
    for (int done = 0; done < bytes; done += 64) {
        int left = bytes - done;
        __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1;
        __m512i x[LANES], y[LANES];
        for (int row = 0; row < LANES; row++) {
            auto place = static_cast<const char*>(from) + row * stride + done;
            _mm_prefetch(place + LANES * stride, _MM_HINT_T0);
            x[row] = row < rows ? _mm512_maskz_loadu_epi8(mask, place) : _mm512_setzero_si512();
        }
        for (int round = 0; round < 4; round++) {  // each interleaves the two halves of the rows
            for (int i = 0; i < LANES / 2; i++) {
                y[2 * i] = _mm512_permutex2var_epi32(x[i], lower, x[i + LANES / 2]);
                y[2 * i + 1] = _mm512_permutex2var_epi32(x[i], upper, x[i + LANES / 2]);
            }
            std::copy(y, y + LANES, x);
        }
        for (int unit = 0; unit < units_of(std::min(left, 64), 4); unit++) {
            _mm512_storeu_si512(to + (done / 4 + unit) * height, x[unit]);
        }
    }
}

// How a row of activations became uint8: x = scale · (q - zero_point).
struct Scale {
    float scale, zero_point;
};

constexpr float STEPS = 254, SMALLEST_SCALE = 1e-30f, ROUNDER = 0x1.8p23f;  // as in int8.py

Scale quantize(const float* row, int numbers, uint8_t* to) {
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int i = 0; i < numbers; i += LANES) {
        __m512 x = load(row + i, first(numbers - i));
        low = _mm512_min_ps(low, x);
        high = _mm512_max_ps(high, x);
    }
    float smallest = _mm512_reduce_min_ps(low), largest = _mm512_reduce_max_ps(high);
    float scale = std::max((largest - smallest) / STEPS, SMALLEST_SCALE);
    float steps = 1 / scale, zero_point = std::nearbyint(-smallest * steps);
    __m512 each = _mm512_set1_ps(steps), rounder = _mm512_set1_ps(zero_point + ROUNDER);
    for (int i = 0; i < numbers; i += LANES) {
        __mmask16 mask = first(numbers - i);
        __m512 q = _mm512_add_ps(_mm512_mul_ps(load(row + i, mask), each), rounder);
        _mm512_mask_cvtepi32_storeu_epi8(to + i, mask, (__m512i)q);
    }
    return {scale, zero_point};
}

// ---------------------------------------------------------------------------------- layers

// The fields of these two are those of native.py.
struct Layer {
    int32_t kind, inputs, outputs;  // kind: 0 Float32, 1 BFloat16, 2 Int8
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
using Activation = std::conditional_t<std::is_same_v<Kind, BFloat16>, bfloat16, float>;

// Rows of activations as blocks, with the scale of each in Int8.
template <class Kind>
void pack(const Activation<Kind>* x, int rows, int inputs, uint32_t* blocks, Scale* scales) {
    int units = units_of(inputs, Kind::PER_UNIT), count = blocks_of(rows);
    for (int i = 0; i < count; i++) {
        int start = begin(rows, count, i), height = begin(rows, count, i + 1) - start;
        const Activation<Kind>* from = x + (int64_t)start * inputs;
        uint32_t* to = blocks + (int64_t)start * units;
        if constexpr (std::is_same_v<Kind, Int8>) {
            auto q = reinterpret_cast<uint8_t*>(scratch<Scale>((size_t)BLOCK * inputs));
            for (int row = 0; row < height; row++) {
                scales[start + row] = quantize(from + row * inputs, inputs, q + row * inputs);
            }
            transpose(q, inputs, height, inputs, to, height);
        } else {
            int bytes = inputs * sizeof(*from);
            transpose(from, bytes, height, bytes, to, height);
        }
    }
}

enum class Then { nothing, gelu, add };

// x W^T + b of some rows and some panels, then GELU or a residual; all matrices row by row.
// The rows come from `x` packed by `pack`.
template <class Kind, Then THEN, class Output>
void product(const Layer& layer, const uint32_t* blocks, const Scale* scales, int rows,
             int first_panel, int last_panel, const Activation<Kind>* residual, Output* output) {
    int units = units_of(layer.inputs, Kind::PER_UNIT);
    auto sums = reinterpret_cast<__m512i*>(scratch<Kind>((size_t)rows * PANEL * 4));
    for (int panel = first_panel; panel < last_panel; panel++) {
        auto columns = static_cast<const __m512i*>(layer.panels) + (int64_t)panel * units * 2;
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

// All rows through a layer; with a norm, through residual and LayerNorm too. Few rows share
// each panel, and the threads share the panels; of many rows each thread takes its own.
template <class Kind, Then THEN>
void apply(const Layer& layer, const Activation<Kind>* x, int rows,
           const Activation<Kind>* residual, const Norm* norm, Activation<Kind>* output,
           int threads) {
    using Output = std::conditional_t<THEN == Then::add, float, Activation<Kind>>;
    int units = units_of(layer.inputs, Kind::PER_UNIT);
    int panels = (layer.outputs + PANEL - 1) / PANEL;
    bool share_rows = rows >= 2 * BLOCK * threads;
    auto direct = [&](int start) -> Output* {  // where a row of the product may be stored
        if constexpr (std::is_same_v<Output, Activation<Kind>>) {
            return output + (int64_t)start * layer.outputs;
        } else {
            return nullptr;
        }
    };
    Output* shared = direct(0);
    if (!shared && !share_rows) {
        shared = reinterpret_cast<Output*>(scratch<Norm>((size_t)rows * layer.outputs * 4));
    }
#pragma omp parallel num_threads(share_rows ? threads : std::min(threads, panels))
    {
        int part = omp_get_thread_num(), parts = omp_get_num_threads();
        int from = share_rows ? begin(rows, parts, part) : 0;
        int to = share_rows ? begin(rows, parts, part + 1) : rows;
        int first_panel = share_rows ? 0 : begin(panels, parts, part);
        int last_panel = share_rows ? panels : begin(panels, parts, part + 1);
        int most = std::max(BLOCK, CHUNK / (units * 4) / BLOCK * BLOCK);
        int chunks = (to - from + most - 1) / most;
        auto packed = scratch<Layer>((size_t)most * (units * 4 + sizeof(Scale)) + 64);
        auto scales = reinterpret_cast<Scale*>(packed);
        auto blocks = reinterpret_cast<uint32_t*>(scales + most);
        for (int i = 0; i < chunks; i++) {
            int start = from + begin(to - from, chunks, i);
            int count = from + begin(to - from, chunks, i + 1) - start;
            Output* sums = shared ? shared + (int64_t)start * layer.outputs : nullptr;
            if (!sums) {
                sums = reinterpret_cast<Output*>(scratch<Norm>((size_t)count * layer.outputs * 4));
            }
            pack<Kind>(x + (int64_t)start * layer.inputs, count, layer.inputs, blocks, scales);
            product<Kind, THEN>(layer, blocks, scales, count, first_panel, last_panel,
                                residual + (int64_t)start * layer.outputs, sums);
            if constexpr (THEN == Then::add) {
                for (int row = 0; share_rows && row < count; row++) {
                    int64_t place = (int64_t)(start + row) * layer.outputs;
                    normalize(sums + (int64_t)row * layer.outputs, layer.outputs, *norm,
                              output + place);
                }
            }
        }
        if constexpr (THEN == Then::add) {
#pragma omp barrier
            int last = share_rows ? 0 : begin(rows, parts, part + 1);
            for (int row = begin(rows, parts, part); row < last; row++) {
                int64_t place = (int64_t)row * layer.outputs;
                normalize(shared + place, layer.outputs, *norm, output + place);
            }
        }
    }
}

// ---------------------------------------------------------------------------------- attention

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
        for (int i = 0; i < rows * head_size; i += head_size, from += stride) {
            _mm_prefetch(from + LANES * stride, _MM_HINT_T0);
            for (int j = 0; j < head_size; j += LANES) {
                __mmask16 mask = first(head_size - j);
                store(buffer + i + j, load(from + j, mask), mask);
            }
        }
        transpose(buffer, bytes, rows, bytes, to, height);
    }
}

// Rows k and k + 1, ... of PER_UNIT as units [columns]; a missing row is 0.
__m512i paired(__m512 even, __m512 odd) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,
                                                   21, 6, 22, 7, 23, 8,  24, 9,  25, 10, 26,
                                                   11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order),
                                    (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// One head of one text, with the queries in the lanes of vectors:
// scores^T = key · query^T, a softmax down its columns, context^T = value^T · weights^T.
// query, key, value and output point to the first token; rows are `stride` and `width` apart.
template <class Kind, int V, class Input>
void attend(const Input* query, const Input* key, const Input* value, int length, int head_size,
            int64_t stride, Input* output, int64_t width) {
    constexpr int QUERIES = V * LANES, PER_UNIT = Kind::PER_UNIT;
    int units = units_of(head_size, PER_UNIT), pairs = units_of(length, PER_UNIT);
    int key_blocks = blocks_of(length), value_blocks = blocks_of(head_size);
    size_t keys = (size_t)length * units, values = (size_t)pairs * head_size;
    size_t bytes = 64 + 4 * ((keys + values + 31) / 16 * 16) + 64 * V * (size_t)(units + 2) +
                   64 * V * (size_t)(length + 2 + head_size);
    auto queries = reinterpret_cast<uint32_t*>(scratch<Kind>(bytes));         // [units][QUERIES]
    auto scores = reinterpret_cast<__m512*>(queries + (size_t)units * QUERIES);  // [length][V]
    auto context = scores + (size_t)(length + 1) * V;                            // [head_size][V]
    auto key_units = reinterpret_cast<uint32_t*>(context + (size_t)head_size * V);
    auto value_units = key_units + keys;

    for (int i = 0; i < key_blocks; i++) {
        int start = begin(length, key_blocks, i);
        int height = begin(length, key_blocks, i + 1) - start;
        transpose_head<Kind>(key + start * stride, stride, height, head_size,
                             key_units + (size_t)start * units, height);
    }
    for (int i = 0; i < value_blocks; i++) {
        int start = begin(head_size, value_blocks, i), stop = begin(head_size, value_blocks, i + 1);
        uint32_t* to = value_units + (size_t)start * pairs;
        for (int row = 0; row < length; row += PER_UNIT) {
            const Input* from = value + row * stride + start;
            _mm_prefetch(from + LANES * stride, _MM_HINT_T0);
            __mmask16 mask = first(stop - start);
            __m512i numbers;
            if constexpr (PER_UNIT == 1) {
                numbers = (__m512i)load(from, mask);
            } else {
                numbers = paired(load(from, mask), load(from + stride, row + 1 < length ? mask : 0));
            }
            _mm512_mask_storeu_epi32(to, mask, numbers);
            to += stop - start;
        }
    }
    __m512 scale = _mm512_set1_ps(LOG2_E / std::sqrt((float)head_size));
    for (int query_start = 0; query_start < length; query_start += QUERIES) {
        int count = std::min(QUERIES, length - query_start);
        for (int v = 0; v < V; v++) {
            int start = query_start + v * LANES, rows = std::clamp(length - start, 0, LANES);
            transpose_head<Kind>(query + start * stride, stride, rows, head_size,
                                 queries + v * LANES, QUERIES);
        }
        multiply<Kind, V>(length, key_units, reinterpret_cast<__m512i*>(queries), units,
                          reinterpret_cast<__m512i*>(scores));
        // Unit by unit the weights take the place of scores that have been read.
        auto weights = reinterpret_cast<__m512i*>(scores);  // [pairs][V]
        __m512 total[V];
        for (int v = 0; v < V; v++) {
            __m512 largest = scores[v];
            for (int row = 1; row < length; row++) {
                largest = _mm512_max_ps(scores[row * V + v], largest);
            }
            auto weight = [&](int row) {
                __m512 below = _mm512_sub_ps(scores[row * V + v], largest);
                return exp2(_mm512_mul_ps(below, scale));
            };
            total[v] = _mm512_setzero_ps();
            for (int row = 0; row < length;) {
                __m512 sum = _mm512_setzero_ps();
                for (int stop = std::min(length, row + STRETCH / 4); row < stop; row += PER_UNIT) {
                    __m512 one = weight(row);
                    sum = _mm512_add_ps(sum, one);
                    if constexpr (PER_UNIT == 1) {
                        weights[row * V + v] = (__m512i)one;
                    } else {
                        __m512 two = row + 1 < length ? weight(row + 1) : _mm512_setzero_ps();
                        sum = _mm512_add_ps(sum, two);
                        weights[row / 2 * V + v] = paired(one, two);
                    }
                }
                total[v] = _mm512_add_ps(total[v], sum);
            }
        }
        multiply<Kind, V>(head_size, value_units, weights, pairs,
                          reinterpret_cast<__m512i*>(context));
        for (int v = 0; v < V; v++) {
            __m512 share = _mm512_div_ps(_mm512_set1_ps(1), total[v]);
            for (int i = 0; i < head_size; i++) {
                context[i * V + v] = _mm512_mul_ps(context[i * V + v], share);
            }
        }
        __m512i lane = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            _mm512_set1_epi32(QUERIES));
        for (int row = 0; row < count; row++) {
            Input* to = output + (query_start + row) * width;
            for (int i = 0; i < head_size; i += LANES) {
                __mmask16 mask = first(head_size - i);
                auto from = reinterpret_cast<const float*>(context) + (size_t)i * QUERIES + row;
                store(to + i, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, lane, from, 4),
                      mask);
            }
        }
    }
}

template <class Kind, class Input>
void attend(const Input* qkv, const int32_t* cu_seqlens, int texts, int heads, int head_size,
            Input* output, int threads) {
    int64_t width = (int64_t)heads * head_size, stride = 3 * width;
#pragma omp parallel for num_threads(std::min(threads, texts * heads)) schedule(dynamic)
    for (int i = 0; i < texts * heads; i++) {
        int64_t start = cu_seqlens[i / heads], head = i % heads * head_size;
        int length = int(cu_seqlens[i / heads + 1] - start);
        const Input* query = qkv + start * stride + head;
        auto one = length <= LANES ? attend<Kind, 1, Input> : attend<Kind, 2, Input>;
        one(query, query + width, query + 2 * width, length, head_size, stride,
            output + start * width + head, width);
    }
}

template <class Kind>
void dispatch(const Layer& layer, const void* x, int rows, Then then, const void* residual,
              const Norm* norm, void* output, int threads) {
    using Number = Activation<Kind>;
    auto call = then == Then::nothing ? apply<Kind, Then::nothing>
                : then == Then::gelu  ? apply<Kind, Then::gelu>
                                      : apply<Kind, Then::add>;
    call(layer, static_cast<const Number*>(x), rows, static_cast<const Number*>(residual), norm,
         static_cast<Number*>(output), threads);
}

}  // namespace

// ---------------------------------------------------------------------------------- interface

extern "C" {

// The checksum of this file, given by the compiler's command line.
uint32_t e5core_source() { return E5CORE_SOURCE; }

// Whether the CPU has the instructions of a kind.
int e5core_supports(int kind) {
    __builtin_cpu_init();
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide && (kind == 0   ? true
                    : kind == 1 ? bool(__builtin_cpu_supports("avx512bf16"))
                                : bool(__builtin_cpu_supports("avx512vnni")));
}

// output [rows][outputs] = x [rows][inputs] W^T + b, then GELU if `gelu`
void e5core_linear(const Layer* layer, const void* x, int rows, int gelu, void* output,
                   int threads) {
    auto call = layer->kind == 0   ? dispatch<Float32>
                : layer->kind == 1 ? dispatch<BFloat16>
                                   : dispatch<Int8>;
    call(*layer, x, rows, gelu ? Then::gelu : Then::nothing, nullptr, nullptr, output, threads);
}

// output [rows][outputs] = layer_norm(x [rows][inputs] W^T + b + residual [rows][outputs])
void e5core_linear_residual_norm(const Layer* layer, const void* x, int rows, const void* residual,
                                 const Norm* norm, void* output, int threads) {
    auto call = layer->kind == 0   ? dispatch<Float32>
                : layer->kind == 1 ? dispatch<BFloat16>
                                   : dispatch<Int8>;
    call(*layer, x, rows, Then::add, residual, norm, output, threads);
}

// qkv [tokens][3][heads][head_size] to output [tokens][heads][head_size]; kind: 0 in float32,
// 1 in bfloat16, 2 from float32 in bfloat16 to float32
void e5core_attention(int kind, const void* qkv, const int32_t* cu_seqlens, int texts, int heads,
                      int head_size, void* output, int threads) {
    if (kind == 1) {
        attend<BFloat16>(static_cast<const bfloat16*>(qkv), cu_seqlens, texts, heads, head_size,
                         static_cast<bfloat16*>(output), threads);
    } else {
        auto call = kind == 0 ? attend<Float32, float> : attend<BFloat16, float>;
        call(static_cast<const float*>(qkv), cu_seqlens, texts, heads, head_size,
             static_cast<float*>(output), threads);
    }
}
}
