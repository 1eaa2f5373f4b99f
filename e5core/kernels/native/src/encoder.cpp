// The operations of an encoder layer, and a whole encoder, as Python calls them.
//
// The compiler's command line includes a header of isa/, which says what a vector is, before this
// file. How a number comes about depends on neither the rows around it nor the threads, so a
// text's vector has the same bits in every batch.

#include "attention.h"
#include "linear.h"

namespace {

// The fields are those of library.py.
struct EncoderLayer {
    const Linear *qkv, *attention_output, *intermediate, *output;
    const Norm *attention_norm, *output_norm;
};

// More threads than a linear layer has panels would only wait, where they share panels.
int team_size(int rows, int outputs, int threads) {
    return threads_share_rows(rows, threads) ? threads : std::min(threads, panels_of(outputs));
}

// ---------------------------------------------------------------- one operation

// All rows through a linear layer by one team, as in apply_alone().
template <class Kind, Then THEN>
void apply(const Linear& linear, const void* input, int rows, const void* residual_memory,
           const Norm* norm, void* output_memory, int threads) {
    using Number = Activation<Kind>;
    auto x = static_cast<const Number*>(input);
    auto residual = static_cast<const Number*>(residual_memory);
    auto output = static_cast<Number*>(output_memory);
    bool share_rows = threads_share_rows(rows, threads);
    float* sums = nullptr;
    if (THEN == Then::add_residual && !share_rows) {
        size_t bytes = (size_t)rows * linear.outputs * 4;
        sums = static_cast<float*>(scratch<For::team_unnormalized>(bytes));
    }
#pragma omp parallel num_threads(team_size(rows, linear.outputs, threads))
    if (share_rows) {
        int max_rows = rows_in_cache<Kind>(units_of<Kind>(linear.inputs) * 4);
        for_own_rows(rows, max_rows, [&](int start, int count) {
            int64_t place = (int64_t)start * linear.outputs;
            apply_alone<Kind, THEN>(linear, x + (int64_t)start * linear.inputs, count,
                                    residual + place, norm, output + place);
        });
    } else {
        apply_together<Kind, THEN>(linear, x, rows, residual, norm, output, sums);
    }
}

template <class Kind, class AttentionKind>
void attention(const void* qkv, const Texts& texts, void* output, int threads) {
    using Number = Activation<Kind>;
#pragma omp parallel num_threads(std::min(threads, texts.count * texts.heads))
    attend_in_texts<AttentionKind>(static_cast<const Number*>(qkv), texts,
                                   static_cast<Number*>(output));
}

// ---------------------------------------------------------------- the whole encoder

// The layers of an encoder in order, by one team of threads. x becomes output, [tokens][hidden];
// qkv [tokens][3][hidden] and context, as large as output, are memory for what lies between.
template <class Kind, class AttentionKind>
struct Encoder {
    using Number = Activation<Kind>;
    // Int8 gives attention its query, key and value already rounded to attention's own type.
    using Attended = std::conditional_t<std::is_same_v<Kind, Int8>,
                                        typename AttentionKind::Number, Number>;
    const EncoderLayer* layers;
    int count;
    Texts texts;
    const Number* x;
    Attended* qkv;
    Number *context, *output;
    int tokens = texts.tokens();
    int hidden = layers->output->outputs, width = layers->intermediate->outputs;

    void run(int threads) {
        if (threads_share_rows(tokens, threads)) run_by_rows(threads);
        else run_by_panels(threads);
    }

    // Each thread takes rows of its own from one attention to the next.
    void run_by_rows(int threads) {
        int max_rows = rows_in_cache<Kind>(width * (sizeof(Number) + 4 / Kind::NUMBERS));
#pragma omp parallel num_threads(threads)
        {
            for_own_rows(tokens, max_rows, [&](int start, int rows) {
                project(*layers, x + (int64_t)start * hidden, start, rows);
            });
            for (int i = 0; i < count; i++) {
#pragma omp barrier
                attend_in_texts<AttentionKind>(qkv, texts, context);
                for_own_rows(tokens, max_rows, [&](int start, int rows) {
                    follow_attention(i, start, rows);
                });
            }
        }
    }

    // The query, key and value of some rows, by one thread.
    void project(const EncoderLayer& layer, const Number* from, int start, int rows) {
        apply_alone<Kind, Then::nothing>(*layer.qkv, from, rows, nullptr, nullptr,
                                         qkv + 3 * (int64_t)start * hidden);
    }

    // What follows attention in a layer, and the query, key and value of the next one, by one
    // thread for rows that stay in its cache.
    void follow_attention(int i, int start, int rows) {
        const EncoderLayer& layer = layers[i];
        int64_t place = (int64_t)start * hidden;
        size_t bytes = rows * sizeof(Number);
        auto attended = static_cast<Number*>(scratch<For::attention_output>(bytes * hidden));
        auto wide = static_cast<Number*>(scratch<For::intermediate>(bytes * width));
        apply_alone<Kind, Then::add_residual>(*layer.attention_output, context + place, rows,
                                              (i ? output : x) + place, layer.attention_norm,
                                              attended);
        apply_alone<Kind, Then::gelu>(*layer.intermediate, attended, rows, nullptr, nullptr, wide);
        apply_alone<Kind, Then::add_residual>(*layer.output, wide, rows, attended,
                                              layer.output_norm, output + place);
        if (i + 1 < count) project(layers[i + 1], output + place, start, rows);
    }

    // All threads go through all rows, and share the panels of each linear layer.
    void run_by_panels(int threads) {
        size_t numbers = (size_t)tokens * hidden, bytes = tokens * sizeof(Number);
        auto sums = static_cast<float*>(scratch<For::team_unnormalized>(numbers * 4));
        auto attended = static_cast<Number*>(scratch<For::attention_output>(bytes * hidden));
        auto wide = static_cast<Number*>(scratch<For::intermediate>(bytes * width));
#pragma omp parallel num_threads(team_size(tokens, width, threads))
        for (int i = 0; i < count; i++) {
            auto& layer = layers[i];
            const Number* from = i ? output : x;
            apply_together<Kind, Then::nothing>(*layer.qkv, from, tokens, nullptr, nullptr, qkv,
                                                nullptr);
            attend_in_texts<AttentionKind>(qkv, texts, context);
            apply_together<Kind, Then::add_residual>(*layer.attention_output, context, tokens,
                                                     from, layer.attention_norm, attended, sums);
            apply_together<Kind, Then::gelu>(*layer.intermediate, attended, tokens, nullptr,
                                             nullptr, wide, nullptr);
            apply_together<Kind, Then::add_residual>(*layer.output, wide, tokens, attended,
                                                     layer.output_norm, output, sums);
        }
    }
};

// `call` with the kind of the linear layers and that of attention. Returns whether this
// instruction set has them and attention takes what the linear layers give.
template <class Call>
bool with_kinds(int kind, int attention_kind, Call call) {
    bool has_both = false;
    with_kind(Kinds(), kind, [&](auto linear) {
        using AttentionKinds = typename decltype(linear)::AttentionKinds;
        has_both = with_kind(AttentionKinds(), attention_kind,
                             [&](auto attention) { call(linear, attention); });
    });
    return has_both;
}

}  // namespace

// Kinds are given by their KindNumber. What computes returns 0, and computes nothing, if this
// instruction set lacks one of them.
extern "C" {

const char* e5core_instruction_set() { return INSTRUCTION_SET; }

// Columns of a panel of weights.
int e5core_panel_columns() { return PANEL; }

// output [rows][outputs] = x [rows][inputs] W^T + b, then GELU if `gelu`
int e5core_linear(const Linear* linear, const void* x, int rows, int gelu, void* output,
                  int threads) {
    return with_kind(Kinds(), linear->kind, [&](auto kind) {
        using Kind = decltype(kind);
        auto call = gelu ? apply<Kind, Then::gelu> : apply<Kind, Then::nothing>;
        call(*linear, x, rows, nullptr, nullptr, output, threads);
    });
}

// output [rows][outputs] = layer_norm(x [rows][inputs] W^T + b + residual [rows][outputs])
int e5core_linear_residual_norm(const Linear* linear, const void* x, int rows,
                                const void* residual, const Norm* norm, void* output,
                                int threads) {
    return with_kind(Kinds(), linear->kind, [&](auto kind) {
        apply<decltype(kind), Then::add_residual>(*linear, x, rows, residual, norm, output,
                                                  threads);
    });
}

// qkv [tokens][3][heads][head_size] to output [tokens][heads][head_size], both with the
// activations of the linear layers' kind, multiplied in attention_kind
int e5core_attention(int kind, int attention_kind, const void* qkv, const Texts* texts,
                     void* output, int threads) {
    return with_kinds(kind, attention_kind, [&](auto linear, auto attention_kind) {
        attention<decltype(linear), decltype(attention_kind)>(qkv, *texts, output, threads);
    });
}

// x [tokens][hidden] to output; the memory is that of Encoder
int e5core_encoder(const EncoderLayer* layers, int count, int attention_kind, const Texts* texts,
                   const void* x, void* qkv, void* context, void* output, int threads) {
    int kind = layers->qkv->kind;
    return with_kinds(kind, attention_kind, [&](auto linear, auto attention) {
        using E = Encoder<decltype(linear), decltype(attention)>;
        using Number = typename E::Number;
        E encoder{layers, count, *texts, static_cast<const Number*>(x),
                  static_cast<typename E::Attended*>(qkv), static_cast<Number*>(context),
                  static_cast<Number*>(output)};
        encoder.run(threads);
    });
}
}
