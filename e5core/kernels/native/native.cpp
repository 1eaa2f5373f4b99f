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
    int panels = (outputs + PANEL - 1) / PANEL;
    return share_rows(rows, threads) ? threads : std::min(threads, panels);
}

// Where products of few rows wait for their LayerNorm; of this thread, used by its whole team.
float* shared_sums(int rows, int outputs, int threads) {
    if (share_rows(rows, threads)) return nullptr;
    return reinterpret_cast<float*>(scratch<Texts>((size_t)rows * outputs * 4));
}

template <class Kind>
void linear(const Layer& layer, const void* x, int rows, bool then_gelu, void* output, int threads) {
    using Number = Activation<Kind>;
    auto call = then_gelu ? apply<Kind, Then::gelu, Number> : apply<Kind, Then::nothing, Number>;
#pragma omp parallel num_threads(team(rows, layer.outputs, threads))
    call(layer, static_cast<const Number*>(x), rows, nullptr, nullptr,
         static_cast<Number*>(output), nullptr);
}

template <class Kind>
void linear_residual_norm(const Layer& layer, const void* x, int rows, const void* residual,
                          const Norm& norm, void* output, int threads) {
    using Number = Activation<Kind>;
    float* sums = shared_sums(rows, layer.outputs, threads);
#pragma omp parallel num_threads(team(rows, layer.outputs, threads))
    apply<Kind, Then::add>(layer, static_cast<const Number*>(x), rows,
                           static_cast<const Number*>(residual), &norm,
                           static_cast<Number*>(output), sums);
}

template <class Kind, class Input>
void attention(const void* qkv, const Texts& texts, void* output, int threads) {
#pragma omp parallel num_threads(std::min(threads, texts.count * texts.heads))
    attend<Kind>(static_cast<const Input*>(qkv), texts.cu_seqlens, texts.count, texts.heads,
                 texts.head_size, static_cast<Input*>(output));
}

// The layers of an encoder in order, by one team of threads. x becomes output, [tokens][hidden];
// context and middle are as large, wide is as wide as the widest layer.
template <class Kind, class Attention>
void encode(const EncoderLayer* layers, int count, const Texts& texts, const void* input,
            void* wide_memory, void* context_memory, void* middle_memory, void* output_memory,
            int threads) {
    using Number = Activation<Kind>;
    using Attended = typename Attention::Number;  // it would round to that anyway
    auto [wide, context, middle, output] =
        std::array{static_cast<Number*>(wide_memory), static_cast<Number*>(context_memory),
                   static_cast<Number*>(middle_memory), static_cast<Number*>(output_memory)};
    auto qkv = static_cast<Attended*>(wide_memory);
    int rows = texts.rows();
    float* sums = shared_sums(rows, layers->output->outputs, threads);
#pragma omp parallel num_threads(team(rows, layers->intermediate->outputs, threads))
    {
        auto x = static_cast<const Number*>(input);
        for (auto layer = layers; layer < layers + count; layer++, x = output) {
            apply<Kind, Then::nothing>(*layer->qkv, x, rows, nullptr, nullptr, qkv, nullptr);
            attend<Attention>(qkv, texts.cu_seqlens, texts.count, texts.heads, texts.head_size,
                              context);
            apply<Kind, Then::add>(*layer->attention_output, context, rows, x,
                                   layer->attention_norm, middle, sums);
            apply<Kind, Then::gelu>(*layer->intermediate, middle, rows, nullptr, nullptr, wide,
                                    nullptr);
            apply<Kind, Then::add>(*layer->output, wide, rows, middle, layer->output_norm, output,
                                   sums);
        }
    }
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
    return wide && (kind == 0   ? true
                    : kind == 1 ? bool(__builtin_cpu_supports("avx512bf16"))
                                : bool(__builtin_cpu_supports("avx512vnni")));
}

// output [rows][outputs] = x [rows][inputs] W^T + b, then GELU if `gelu`
void e5core_linear(const Layer* layer, const void* x, int rows, int gelu, void* output,
                   int threads) {
    auto call = layer->kind == 0   ? linear<Float32>
                : layer->kind == 1 ? linear<BFloat16>
                                   : linear<Int8>;
    call(*layer, x, rows, gelu, output, threads);
}

// output [rows][outputs] = layer_norm(x [rows][inputs] W^T + b + residual [rows][outputs])
void e5core_linear_residual_norm(const Layer* layer, const void* x, int rows, const void* residual,
                                 const Norm* norm, void* output, int threads) {
    auto call = layer->kind == 0   ? linear_residual_norm<Float32>
                : layer->kind == 1 ? linear_residual_norm<BFloat16>
                                   : linear_residual_norm<Int8>;
    call(*layer, x, rows, residual, *norm, output, threads);
}

// qkv [tokens][3][heads][head_size] to output [tokens][heads][head_size]; kind: 0 in float32,
// 1 in bfloat16, 2 from float32 in bfloat16 to float32
void e5core_attention(int kind, const void* qkv, const Texts* texts, void* output, int threads) {
    auto call = kind == 0   ? attention<Float32, float>
                : kind == 1 ? attention<BFloat16, bfloat16>
                            : attention<BFloat16, float>;
    call(qkv, *texts, output, threads);
}

// x [tokens][hidden] to output; the memory is encode()'s, attention_kind e5core_attention's
void e5core_layers(const EncoderLayer* layers, int count, int attention_kind, const Texts* texts,
                   const void* x, void* wide, void* context, void* middle, void* output,
                   int threads) {
    int kind = layers->qkv->kind;
    auto call = kind == 0             ? encode<Float32, Float32>
                : kind == 1           ? encode<BFloat16, BFloat16>
                : attention_kind == 0 ? encode<Int8, Float32>
                                      : encode<Int8, BFloat16>;
    call(layers, count, *texts, x, wide, context, middle, output, threads);
}
}
