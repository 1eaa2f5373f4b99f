// The operations of an encoder layer for x86 CPUs with AVX-512, as __init__.py calls them.
//
// How a number comes about depends on neither the rows around it nor the threads, so a text's
// vector has the same bits in every batch.

#include "attention.h"
#include "layers.h"

namespace {

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
