// The operations of an encoder layer, and a whole encoder, as Python calls them.
//
// The compiler's command line includes a header of isa/, which says what a vector is, before this
// file. How a number comes about depends on neither the rows around it nor the threads, so a
// text's vector has the same bits in every batch.

#include "attention.h"
#include "attention_gradient.h"
#include "ends.h"
#include "linear.h"
#include "training.h"

namespace {

// The fields are those of library.py.
struct EncoderLayer {
    const Linear *qkv, *attention_output, *intermediate, *output;
    const Norm *attention_norm, *output_norm;
};

constexpr int STRAND_ROWS = 256;

// ---------------------------------------------------------------- one operation

// All rows through a linear layer, then GELU, or residual and LayerNorm.
template <class Kind, Then THEN>
void apply(const Linear& linear, const void* input, int rows, const void* residual_memory,
           const Norm* norm, void* output_memory, int threads) {
    constexpr bool HAS_NORM = THEN == Then::add_residual;
    using Number = Activation<Kind>;
    auto x = static_cast<const Number*>(input);
    auto residual = static_cast<const Number*>(residual_memory);
    auto output = static_cast<Number*>(output_memory);
    if (!rows) return;
    auto shares = PanelShares::of<Kind>(linear, rows, threads);
    size_t bytes = HAS_NORM ? (size_t)rows * linear.outputs * 4 : 0;
    auto sums = static_cast<float*>(scratch<For::team_unnormalized>(bytes));
    auto shares_of = [&](int, int step) { return step ? threads : shares.count(); };
    run_by_team({threads, false}, 1, HAS_NORM ? 2 : 1, shares_of, [&](int, int step, auto take) {
        if constexpr (!HAS_NORM) {
            multiply_shares<Kind, THEN>(linear, x, rows, residual, output, shares, take);
        } else if (step == 0) {
            multiply_shares<Kind, THEN>(linear, x, rows, residual, sums, shares, take);
        } else {
            normalize_shares(sums, rows, linear.outputs, *norm, output, threads, take);
        }
    });
}

template <class Kind, class AttentionKind, class Training = Untrained>
void attention(const void* qkv, const Texts& texts, void* output, int threads,
               const Training& training = {}) {
    using Number = Activation<Kind>;
    int heads = texts.count * texts.heads;
    if (!heads) return;
    run_by_team({std::min(threads, heads), false}, 1, 1, [&](int, int) { return heads; },
                [&](int, int, auto take) {
        attend_in_shares<AttentionKind>(static_cast<const Number*>(qkv), texts, 0,
                                        static_cast<Number*>(output), take, training);
    });
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
        if (!tokens) return;
        // Each thread takes rows of its own, if there are enough of them.
        if (tokens >= 2 * BLOCK * threads) run_by_rows(threads);
        else run_by_panels(threads);
    }

    // Neighbouring texts that go through all layers whatever becomes of the others.
    struct Group {
        int first_text, texts, start, rows, slices;
    };

    // About STRAND_ROWS to a group, since each reads all weights anew, and all groups as equal as
    // whole texts allow: a text belongs where its middle is.
    std::vector<Group> groups(int threads) {
        std::vector<Group> found;
        const int32_t* starts = texts.cu_seqlens;
        int64_t most = std::max(1, (tokens + STRAND_ROWS / 2) / STRAND_ROWS);
        auto place_of = [&](int text) {
            return most * (starts[text] + starts[text + 1]) / (2 * tokens);
        };
        for (int text = 0; text < texts.count;) {
            int first = text, start = starts[first];
            while (++text < texts.count && place_of(text) == place_of(first)) {}
            int rows = starts[text] - start;
            int slices = slices_of<Kind>(rows, width * (sizeof(Number) + 4 / Kind::NUMBERS));
            // Others help with a group that is larger than a thread's part: as many for each.
            bool is_large = (int64_t)rows * threads > tokens + tokens / 8;
            int sharers = is_large ? std::clamp(rows / (2 * BLOCK), 1, threads) : 1;
            slices = std::max(1, (slices + sharers - 1) / sharers) * sharers;
            found.push_back({first, text - first, start, rows, slices});
        }
        return found;
    }

    // The steps of a group: the first query, key and value; then in each layer attention, and
    // what follows it up to the next query, key and value, for rows that stay in the cache.
    void run_by_rows(int threads) {
        auto all = groups(threads);
        auto shares_of = [&](int group, int step) {
            return step % 2 ? all[group].texts * texts.heads : all[group].slices;
        };
        run_by_team({threads, false}, all.size(), 1 + 2 * count, shares_of,
                    [&](int number, int step, auto take) {
            const Group& group = all[number];
            if (step % 2) {
                attend_in_shares<AttentionKind>(qkv, texts, group.first_text * texts.heads, context,
                                                take);
                return;
            }
            for (int slice; (slice = take()) >= 0;) {
                int start = slice_start(group.rows, group.slices, slice);
                int rows = slice_start(group.rows, group.slices, slice + 1) - start;
                if (step) follow_attention(step / 2 - 1, group.start + start, rows);
                else project(*layers, x, group.start + start, rows);
            }
        });
    }

    // The query, key and value of some rows, by one thread.
    void project(const EncoderLayer& layer, const Number* from, int start, int rows) {
        apply_alone<Kind, Then::nothing>(*layer.qkv, from + (int64_t)start * hidden, rows, nullptr,
                                         nullptr, qkv + 3 * (int64_t)start * hidden);
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
        if (i + 1 < count) project(layers[i + 1], output, start, rows);
    }

    // All threads go through all rows, and share the panels of each linear layer.
    void run_by_panels(int threads) {
        constexpr int STEPS = 7;
        size_t numbers = (size_t)tokens * hidden, bytes = tokens * sizeof(Number);
        auto sums = static_cast<float*>(scratch<For::team_unnormalized>(numbers * 4));
        auto attended = static_cast<Number*>(scratch<For::attention_output>(bytes * hidden));
        auto wide = static_cast<Number*>(scratch<For::intermediate>(bytes * width));
        int heads = texts.count * texts.heads;
        auto panels = [&](const Linear* linear) {
            return PanelShares::of<Kind>(*linear, tokens, threads);
        };
        PanelShares qkv_shares = panels(layers->qkv), hidden_shares = panels(layers->output),
                    attention_shares = panels(layers->attention_output),
                    wide_shares = panels(layers->intermediate);
        const int shares[STEPS] = {qkv_shares.count(), heads, attention_shares.count(), threads,
                                   wide_shares.count(), hidden_shares.count(), threads};
        auto shares_of = [&](int, int step) { return shares[step % STEPS]; };
        run_by_team({threads, true}, 1, STEPS * count, shares_of, [&](int, int step, auto take) {
            auto& layer = layers[step / STEPS];
            const Number* from = step < STEPS ? x : output;
            switch (step % STEPS) {
                case 0: return multiply_shares<Kind, Then::nothing>(
                    *layer.qkv, from, tokens, nullptr, qkv, qkv_shares, take);
                case 1: return attend_in_shares<AttentionKind>(qkv, texts, 0, context, take);
                case 2: return multiply_shares<Kind, Then::add_residual>(
                    *layer.attention_output, context, tokens, from, sums, attention_shares, take);
                case 3: return normalize_shares(sums, tokens, hidden, *layer.attention_norm,
                                                attended, threads, take);
                case 4: return multiply_shares<Kind, Then::gelu>(
                    *layer.intermediate, attended, tokens, nullptr, wide, wide_shares, take);
                case 5: return multiply_shares<Kind, Then::add_residual>(
                    *layer.output, wide, tokens, attended, sums, hidden_shares, take);
                case 6: return normalize_shares(sums, tokens, hidden, *layer.output_norm, output,
                                                threads, take);
            }
        });
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

// How many threads PyTorch's operators use that this thread calls.
void e5core_set_threads(int threads) { omp_set_num_threads(threads); }

// Columns of a panel of weights.
int e5core_panel_columns() { return PANEL; }

// The limit of int8_rows.py for weights in int8; 0 if there is none.
int e5core_largest_sum() { return LARGEST_SUM; }

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

// output [tokens][hidden] = layer_norm(word[ids] + token_type + position[places])
int e5core_embed(int kind, const Tables* tables, const int64_t* ids, const int64_t* places,
                 int tokens, void* output) {
    return with_kind(Kinds(), kind, [&](auto kind) {
        auto numbers = static_cast<Activation<decltype(kind)>*>(output);
        embed(*tables, ids, places, tokens, numbers);
    });
}

// states [tokens][size] to means [texts][size] in float32
int e5core_mean(int kind, const void* states, const Texts* texts, int size, float* means) {
    return with_kind(Kinds(), kind, [&](auto kind) {
        auto numbers = static_cast<const Activation<decltype(kind)>*>(states);
        mean(numbers, *texts, size, means);
    });
}

// ---------------------------------------------------------------- training
//
// See training.h and attention_gradient.h.
// A kind says what is not float32, by its activations.

int e5core_add_dropped(int kind, const float* residual, const void* x, int64_t count,
                       const Dropout* dropout, float* sum, int threads) {
    return with_kind(Kinds(), kind, [&](auto kind) {
        auto numbers = static_cast<const Activation<decltype(kind)>*>(x);
        add_dropped(residual, numbers, count, *dropout, sum, threads);
    });
}

int e5core_drop(int kind, const float* gradient, int64_t count, const Dropout* dropout, void* of_x,
                int threads) {
    return with_kind(Kinds(), kind, [&](auto kind) {
        auto numbers = static_cast<Activation<decltype(kind)>*>(of_x);
        drop(gradient, count, *dropout, numbers, threads);
    });
}

int e5core_gelu(int kind, const void* x, void* result, int64_t count, int threads) {
    return with_kind(Kinds(), kind, [&](auto kind) {
        using Number = Activation<decltype(kind)>;
        gelu(static_cast<const Number*>(x), static_cast<Number*>(result), count, threads);
    });
}

int e5core_gelu_gradient(int kind, const void* x, void* gradient, int64_t count, int threads) {
    return with_kind(Kinds(), kind, [&](auto kind) {
        using Number = Activation<decltype(kind)>;
        gelu_gradient(static_cast<const Number*>(x), static_cast<Number*>(gradient), count,
                      threads);
    });
}

// As e5core_attention, with dropout; log_sums [heads][tokens] is for the gradient.
int e5core_attention_forward(int kind, int attention_kind, const void* qkv, const Texts* texts,
                             const Dropout* dropout, float* log_sums, void* output, int threads) {
    return with_kinds(kind, attention_kind, [&](auto linear, auto attends_in) {
        Trained training(*texts, *dropout, log_sums);
        attention<decltype(linear), decltype(attends_in)>(qkv, *texts, output, threads, training);
    });
}

// of_qkv from what e5core_attention_forward got and gave, and from the gradient of its output
int e5core_attention_backward(int kind, int attention_kind, const void* qkv, const Texts* texts,
                              const Dropout* dropout, float* log_sums, const void* output,
                              const void* gradient, void* of_qkv, int threads) {
    return with_kinds(kind, attention_kind, [&](auto linear, auto attends_in) {
        using Number = Activation<decltype(linear)>;
        Trained training(*texts, *dropout, log_sums);
        attention_gradient<decltype(attends_in)>(
            static_cast<const Number*>(qkv), training, static_cast<const Number*>(output),
            static_cast<const Number*>(gradient), static_cast<Number*>(of_qkv), threads);
    });
}
}
