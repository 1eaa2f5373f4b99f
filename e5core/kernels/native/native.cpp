// The operations of an encoder layer for x86 CPUs with AVX-512, as __init__.py calls them.
//
// How a number comes about depends on neither the rows around it nor the threads, so a text's
// vector has the same bits in every batch.

#include "attention.h"
#include "layers.h"

namespace {

// The fields are those of __init__.py.
struct EncoderLayer {
    const Layer *qkv, *attention_output, *intermediate, *output;
    const Norm *attention_norm, *output_norm;
};

// Texts that lie one after another.
struct Texts {
    const int32_t* cu_seqlens;
    int count, heads, head_size;
    int rows() const { return cu_seqlens[count]; }
};

// More threads than a layer of few rows has panels would only wait.
int team(int rows, int outputs, int threads) {
    return share_rows(rows, threads) ? threads : std::min(threads, panels_of(outputs));
}

// All rows through a layer by one team, as in apply(). `sums` as in apply_together().
template <class Kind, Then THEN>
void apply_to_all(const Layer& layer, const void* input, int rows, const void* residual_memory,
                  const Norm* norm, void* output_memory, int threads) {
    using Number = Activation<Kind>;
    auto x = static_cast<const Number*>(input), residual = static_cast<const Number*>(residual_memory);
    auto output = static_cast<Number*>(output_memory);
    bool share = share_rows(rows, threads);
    float* sums = nullptr;
    if (THEN == Then::add && !share) {
        sums = reinterpret_cast<float*>(scratch<For::together>((size_t)rows * layer.outputs * 4));
    }
#pragma omp parallel num_threads(team(rows, layer.outputs, threads))
    if (share) {
        int most = rows_of_chunk<Kind>(units_of<Kind>(layer.inputs) * 4);
        own_rows(rows, most, [&](int start, int count) {
            int64_t place = (int64_t)start * layer.outputs;
            apply<Kind, THEN>(layer, x + (int64_t)start * layer.inputs, count, residual + place,
                              norm, output + place);
        });
    } else {
        apply_together<Kind, THEN>(layer, x, rows, residual, norm, output, sums);
    }
}

template <class Kind>
void linear(const Layer& layer, const void* x, int rows, bool then_gelu, void* output, int threads) {
    auto call = then_gelu ? apply_to_all<Kind, Then::gelu> : apply_to_all<Kind, Then::nothing>;
    call(layer, x, rows, nullptr, nullptr, output, threads);
}

template <class Kind>
void linear_residual_norm(const Layer& layer, const void* x, int rows, const void* residual,
                          const Norm& norm, void* output, int threads) {
    apply_to_all<Kind, Then::add>(layer, x, rows, residual, &norm, output, threads);
}

template <class Kind, class Input>
void attention(const void* qkv, const Texts& texts, void* output, int threads) {
#pragma omp parallel num_threads(std::min(threads, texts.count * texts.heads))
    attend<Kind>(static_cast<const Input*>(qkv), texts.cu_seqlens, texts.count, texts.heads,
                 texts.head_size, static_cast<Input*>(output));
}

// What follows attention in a layer, and the query, key and value of the next one, by one thread
// for rows that stay in its cache. x becomes output, which may be the same.
template <class Kind, class Attended>
void after_attention(const EncoderLayer& layer, const EncoderLayer* next, int rows,
                     const Activation<Kind>* context, const Activation<Kind>* x,
                     Activation<Kind>* output, Attended* qkv) {
    using Number = Activation<Kind>;
    size_t hidden = layer.output->outputs, width = layer.intermediate->outputs;
    auto middle = reinterpret_cast<Number*>(scratch<For::middle>(rows * hidden * sizeof(Number)));
    auto wide = reinterpret_cast<Number*>(scratch<For::wide>(rows * width * sizeof(Number)));
    apply<Kind, Then::add>(*layer.attention_output, context, rows, x, layer.attention_norm, middle);
    apply<Kind, Then::gelu>(*layer.intermediate, middle, rows, nullptr, nullptr, wide);
    apply<Kind, Then::add>(*layer.output, wide, rows, middle, layer.output_norm, output);
    if (next) apply<Kind, Then::nothing>(*next->qkv, output, rows, nullptr, nullptr, qkv);
}

// The layers of an encoder in order, by one team of threads. x becomes output, [tokens][hidden];
// qkv [tokens][3][hidden] and context, as large as output, are memory for what lies between.
template <class Kind, class Attention>
void encode(const EncoderLayer* layers, int count, const Texts& texts, const void* input,
            void* qkv_memory, void* context_memory, void* output_memory, int threads) {
    using Number = Activation<Kind>;
    // In Int8 what attention would round to anyway.
    using Attended =
        std::conditional_t<std::is_same_v<Kind, Int8>, typename Attention::Number, Number>;
    auto x = static_cast<const Number*>(input);
    auto context = static_cast<Number*>(context_memory), output = static_cast<Number*>(output_memory);
    auto qkv = static_cast<Attended*>(qkv_memory);
    int rows = texts.rows(), hidden = layers->output->outputs, width = layers->intermediate->outputs;
    auto attended = [&] {
        attend<Attention>(qkv, texts.cu_seqlens, texts.count, texts.heads, texts.head_size, context);
    };
    if (share_rows(rows, threads)) {
        int most = rows_of_chunk<Kind>(width * (sizeof(Number) + 4 / Kind::PER_UNIT));
#pragma omp parallel num_threads(threads)
        {
            own_rows(rows, most, [&](int start, int count) {
                apply<Kind, Then::nothing>(*layers->qkv, x + (int64_t)start * hidden, count, nullptr,
                                           nullptr, qkv + 3 * (int64_t)start * hidden);
            });
            for (int i = 0; i < count; i++) {
#pragma omp barrier
                attended();
                own_rows(rows, most, [&](int start, int many) {
                    int64_t place = (int64_t)start * hidden;
                    after_attention<Kind>(layers[i], i + 1 < count ? layers + i + 1 : nullptr, many,
                                          context + place, (i ? output : x) + place, output + place,
                                          qkv + 3 * place);
                });
            }
        }
        return;
    }
    size_t numbers = (size_t)rows * hidden;
    auto sums = reinterpret_cast<float*>(scratch<For::together>(numbers * 4));
    auto middle = reinterpret_cast<Number*>(scratch<For::middle>(numbers * sizeof(Number)));
    auto wide = reinterpret_cast<Number*>(scratch<For::wide>((size_t)rows * width * sizeof(Number)));
#pragma omp parallel num_threads(team(rows, width, threads))
    for (int i = 0; i < count; i++) {
        auto& layer = layers[i];
        auto from = i ? output : x;
        apply_together<Kind, Then::nothing>(*layer.qkv, from, rows, nullptr, nullptr, qkv, nullptr);
        attended();
        apply_together<Kind, Then::add>(*layer.attention_output, context, rows, from,
                                        layer.attention_norm, middle, sums);
        apply_together<Kind, Then::gelu>(*layer.intermediate, middle, rows, nullptr, nullptr, wide,
                                         nullptr);
        apply_together<Kind, Then::add>(*layer.output, wide, rows, middle, layer.output_norm,
                                        output, sums);
    }
}

// `call` with the kind of that number
template <class Call>
void by_kind(int number, Call call) {
    if (number == 0) call(Float32());
    if (number == 1) call(BFloat16());
    if (number == 2) call(Int8());
    if (number == 3) call(Widened());
}

}  // namespace

extern "C" {

// The checksum of the source, from the compiler's command line.
uint32_t e5core_source() { return E5CORE_SOURCE; }

// Whether the CPU has the instructions of a kind.
int e5core_supports(int kind) {
    __builtin_cpu_init();
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide && (kind == 1   ? bool(__builtin_cpu_supports("avx512bf16"))
                    : kind == 2 ? bool(__builtin_cpu_supports("avx512vnni"))
                                : true);
}

// Whether BFloat16 is faster than Widened and Float32.
int e5core_prefers_bfloat16() { return e5core_supports(1) && __builtin_cpu_is("amd"); }

// output [rows][outputs] = x [rows][inputs] W^T + b, then GELU if `gelu`
void e5core_linear(const Layer* layer, const void* x, int rows, int gelu, void* output,
                   int threads) {
    by_kind(layer->kind, [&](auto kind) {
        linear<decltype(kind)>(*layer, x, rows, gelu, output, threads);
    });
}

// output [rows][outputs] = layer_norm(x [rows][inputs] W^T + b + residual [rows][outputs])
void e5core_linear_residual_norm(const Layer* layer, const void* x, int rows, const void* residual,
                                 const Norm* norm, void* output, int threads) {
    by_kind(layer->kind, [&](auto kind) {
        linear_residual_norm<decltype(kind)>(*layer, x, rows, residual, *norm, output, threads);
    });
}

// qkv [tokens][3][heads][head_size] to output [tokens][heads][head_size]; kind: that of the
// layers, or 2 for products in bfloat16 from float32 to float32
void e5core_attention(int kind, const void* qkv, const Texts* texts, void* output, int threads) {
    auto call = kind == 0   ? attention<Float32, float>
                : kind == 1 ? attention<BFloat16, bfloat16>
                : kind == 2 ? attention<BFloat16, float>
                            : attention<Float32, plain_bfloat16>;
    call(qkv, *texts, output, threads);
}

// x [tokens][hidden] to output; the memory is encode()'s, attention_kind e5core_attention's
void e5core_layers(const EncoderLayer* layers, int count, int attention_kind, const Texts* texts,
                   const void* x, void* qkv, void* context, void* output, int threads) {
    int kind = layers->qkv->kind;
    auto call = kind == 0             ? encode<Float32, Float32>
                : kind == 1           ? encode<BFloat16, BFloat16>
                : kind == 3           ? encode<Widened, Float32>
                : attention_kind == 0 ? encode<Int8, Float32>
                                      : encode<Int8, BFloat16>;
    call(layers, count, *texts, x, qkv, context, output, threads);
}
}
