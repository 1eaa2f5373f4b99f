// Calls the kernels of one instruction set without Python and compares them with sums in double,
// so that an emulator or a sanitizer can watch. Prints what is wrong; exits with 1 if anything is.

#include "../../e5core/kernels/native/src/encoder.cpp"

#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

std::mt19937 generator(0);
int faults = 0, compared = 0;

std::vector<float> numbers(size_t count, float spread = 1) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> result(count);
    for (auto& x : result) x = normal(generator);
    return result;
}

void compare(const char* what, int rows, int inputs, int outputs, const std::vector<float>& found,
             const std::vector<double>& expected, double allowed) {
    for (size_t i = 0; i < expected.size(); i++, compared++) {
        if (!(std::abs(found[i] - expected[i]) <= allowed)) {
            std::printf("%s, %d x %d x %d: number %zu is %g, expected %g\n", what, rows, inputs,
                        outputs, i, found[i], expected[i]);
            faults++;
            return;
        }
    }
}

float rounded_to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Weights [outputs][inputs] as [panels][units][columns][numbers of 32 bits], filled up with 0.
template <class Number>
std::vector<Number> lay_panels(const std::vector<float>& weights, int inputs, int outputs) {
    constexpr int NUMBERS = 4 / sizeof(Number);
    int units = (inputs + NUMBERS - 1) / NUMBERS, panels = panels_of(outputs);
    // What is prefetched behind the end is never read, and nothing is there.
    std::vector<Number> laid((size_t)panels * units * PANEL * NUMBERS);
    for (int output = 0; output < outputs; output++) {
        for (int i = 0; i < inputs; i++) {
            size_t unit = (size_t)(output / PANEL) * units + i / NUMBERS;
            Number& place = laid[(unit * PANEL + output % PANEL) * NUMBERS + i % NUMBERS];
            float weight = weights[(size_t)output * inputs + i];
            if constexpr (sizeof(Number) == 2) {
                uint32_t bits;
                std::memcpy(&bits, &weight, 4);
                place = bits >> 16;
            } else {
                place = weight;
            }
        }
    }
    return laid;
}

// x W^T + b of all rows in double; with `quantized` the rows as integers, as linear.h has them.
std::vector<double> product(const std::vector<float>& x, const std::vector<float>& weights,
                            const std::vector<float>& bias, int rows, int inputs, int outputs,
                            bool quantized = false) {
    std::vector<double> result;
    for (int row = 0; row < rows; row++) {
        std::vector<double> from(&x[(size_t)row * inputs], &x[(size_t)row * inputs] + inputs);
        if (quantized) {
            double low = std::min(0.0, *std::min_element(from.begin(), from.end()));
            double high = std::max(0.0, *std::max_element(from.begin(), from.end()));
            float scale = std::max<float>((high - low) / STEPS, SMALLEST_SCALE);
            float zero = std::nearbyint(-(float)low / scale);
            for (auto& number : from) {
                number = scale * (std::nearbyint((float)number * (1 / scale) + zero) - zero);
            }
        }
        for (int output = 0; output < outputs; output++) {
            double sum = bias[output];
            for (int i = 0; i < inputs; i++) sum += from[i] * weights[(size_t)output * inputs + i];
            result.push_back(sum);
        }
    }
    return result;
}

void check_float32(int rows, int inputs, int outputs, int threads) {
    auto x = numbers((size_t)rows * inputs), weights = numbers((size_t)outputs * inputs, .1f);
    auto bias = numbers(outputs), residual = numbers((size_t)rows * outputs);
    auto laid = lay_panels<float>(weights, inputs, outputs);
    Linear linear{int(KindNumber::float32), inputs, outputs, 40, laid.data(), bias.data(), nullptr,
                  nullptr};
    auto expected = product(x, weights, bias, rows, inputs, outputs);
    std::vector<float> found((size_t)rows * outputs);
    e5core_linear(&linear, x.data(), rows, 0, found.data(), threads);
    compare("linear", rows, inputs, outputs, found, expected, 2e-5);

    std::vector<float> last(outputs);  // alone it has the same bits
    e5core_linear(&linear, &x[(size_t)(rows - 1) * inputs], 1, 0, last.data(), threads);
    if (std::memcmp(last.data(), &found[(size_t)(rows - 1) * outputs], outputs * 4)) {
        std::printf("linear, %d x %d x %d: a row has other bits alone\n", rows, inputs, outputs);
        faults++;
    }

    e5core_linear(&linear, x.data(), rows, 1, found.data(), threads);
    auto gelu = expected;
    for (auto& y : gelu) y *= std::erfc(-y / std::sqrt(2)) / 2;
    compare("GELU", rows, inputs, outputs, found, gelu, 2e-5);

    std::vector<float> ones(outputs, 1), zeros(outputs, 0);
    Norm norm{ones.data(), zeros.data(), 1e-5f};
    e5core_linear_residual_norm(&linear, x.data(), rows, residual.data(), &norm, found.data(),
                                threads);
    for (int row = 0; row < rows; row++) {
        double *y = &expected[(size_t)row * outputs], mean = 0, variance = 0;
        for (int i = 0; i < outputs; i++) mean += (y[i] += residual[(size_t)row * outputs + i]);
        mean /= outputs;
        for (int i = 0; i < outputs; i++) variance += (y[i] - mean) * (y[i] - mean) / outputs;
        for (int i = 0; i < outputs; i++) y[i] = (y[i] - mean) / std::sqrt(variance + 1e-5);
    }
    compare("LayerNorm", rows, inputs, outputs, found, expected, 1e-3);
}

void check_widened(int rows, int inputs, int outputs, int threads) {
    auto x = numbers((size_t)rows * inputs), weights = numbers((size_t)outputs * inputs, .1f);
    for (auto* part : {&x, &weights}) {
        for (auto& number : *part) number = rounded_to_bfloat16(number);
    }
    auto bias = numbers(outputs);
    auto laid = lay_panels<uint16_t>(weights, inputs, outputs);
    std::vector<uint16_t> small(x.size()), found((size_t)rows * outputs);
    for (size_t i = 0; i < x.size(); i++) {
        uint32_t bits;
        std::memcpy(&bits, &x[i], 4);
        small[i] = bits >> 16;
    }
    Linear linear{int(KindNumber::widened), inputs, outputs, 40, laid.data(), bias.data(), nullptr,
                  nullptr};
    e5core_linear(&linear, small.data(), rows, 0, found.data(), threads);
    std::vector<float> wide(found.size());
    for (size_t i = 0; i < found.size(); i++) {
        uint32_t bits = (uint32_t)found[i] << 16;
        std::memcpy(&wide[i], &bits, 4);
    }
    compare("bfloat16", rows, inputs, outputs, wide,
            product(x, weights, bias, rows, inputs, outputs), 0.05);
}

// The scale of each channel is 1, so that the weights are the integers themselves.
void check_int8(int rows, int inputs, int outputs, int threads) {
    auto x = numbers((size_t)rows * inputs), weights = numbers((size_t)outputs * inputs, 60);
    float most = LARGEST_SUM ? LARGEST_SUM / 4 : 127;
    for (auto& weight : weights) weight = std::nearbyint(std::clamp(weight, -most, most));
    auto bias = numbers(outputs);
    auto laid = lay_panels<int8_t>(weights, inputs, outputs);
    std::vector<float> channel(outputs, 1), row_sum(outputs), found((size_t)rows * outputs);
    for (int i = 0; i < outputs * inputs; i++) row_sum[i / inputs] -= weights[i];
    Linear linear{int(KindNumber::int8), inputs, outputs, 40, laid.data(), bias.data(),
                  channel.data(), row_sum.data()};
    if (!e5core_linear(&linear, x.data(), rows, 0, found.data(), threads)) return;
    // A number halfway between two integers may go to either: a step is .033, a weight 127.
    compare("int8", rows, inputs, outputs, found,
            product(x, weights, bias, rows, inputs, outputs, true), 0.033 * 127);
}

void check_attention(int length, int head_size, int threads) {
    constexpr int HEADS = 2;
    int tokens = length + 3, width = HEADS * head_size;
    auto qkv = numbers((size_t)tokens * 3 * width);
    int32_t starts[] = {0, length, tokens};
    Texts texts{starts, 2, HEADS, head_size};
    std::vector<float> found((size_t)tokens * width);
    std::vector<double> expected(found.size());
    int kind = int(KindNumber::float32);
    e5core_attention(kind, kind, qkv.data(), &texts, found.data(), threads);
    auto number = [&](int token, int part, int head, int i) {
        return (double)qkv[((size_t)token * 3 + part) * width + head * head_size + i];
    };
    for (int text = 0; text < 2; text++) {
        for (int query = starts[text]; query < starts[text + 1]; query++) {
            for (int head = 0; head < HEADS; head++) {
                double total = 0;
                std::vector<double> sums(head_size);
                for (int key = starts[text]; key < starts[text + 1]; key++) {
                    double score = 0;
                    for (int i = 0; i < head_size; i++) {
                        score += number(query, 0, head, i) * number(key, 1, head, i);
                    }
                    double weight = std::exp(score / std::sqrt(head_size));
                    total += weight;
                    for (int i = 0; i < head_size; i++) sums[i] += weight * number(key, 2, head, i);
                }
                double* place = &expected[(size_t)query * width + head * head_size];
                for (int i = 0; i < head_size; i++) place[i] = sums[i] / total;
            }
        }
    }
    compare("attention", length, head_size, HEADS, found, expected, 1e-5);
}

// A linear in float32 with the memory that it points to.
struct OwnLinear {
    std::vector<float> laid, bias;
    Linear linear;

    OwnLinear(int inputs, int outputs)
        : laid(lay_panels<float>(numbers((size_t)inputs * outputs, .1f), inputs, outputs)),
          bias(numbers(outputs)),
          linear{int(KindNumber::float32), inputs, outputs, 40, laid.data(), bias.data(), nullptr,
                 nullptr} {}
};

// Two layers have the same bits on one thread and on several, and the last text also alone.
void check_encoder(std::vector<int> lengths, int threads) {
    constexpr int HEADS = 3, HIDDEN = 24, WIDTH = 40;
    OwnLinear qkv(HIDDEN, 3 * HIDDEN), attended(HIDDEN, HIDDEN), wide(HIDDEN, WIDTH),
        narrow(WIDTH, HIDDEN);
    auto weight = numbers(HIDDEN), bias = numbers(HIDDEN);
    Norm norm{weight.data(), bias.data(), 1e-5f};
    EncoderLayer layer{&qkv.linear, &attended.linear, &wide.linear, &narrow.linear, &norm, &norm};
    EncoderLayer layers[] = {layer, layer};
    std::vector<int32_t> starts{0};
    for (int length : lengths) starts.push_back(starts.back() + length);
    auto x = numbers((size_t)starts.back() * HIDDEN);
    auto run = [&](const float* from, std::vector<int32_t> starts, int threads) {
        size_t size = (size_t)starts.back() * HIDDEN;
        std::vector<float> qkv(3 * size), context(size), output(size);
        Texts texts{starts.data(), int(starts.size()) - 1, HEADS, HIDDEN / HEADS};
        e5core_encoder(layers, 2, int(KindNumber::float32), &texts, from, qkv.data(),
                       context.data(), output.data(), threads);
        return output;
    };
    auto found = run(x.data(), starts, threads);
    size_t place = (size_t)starts[starts.size() - 2] * HIDDEN;
    auto alone = run(x.data() + place, {0, lengths.back()}, threads);
    compared += int(found.size() + alone.size());
    bool is_same = found == run(x.data(), starts, 1);
    if (is_same && std::equal(alone.begin(), alone.end(), &found[place])) return;
    std::printf("encoder, %zu texts, %d threads: other bits\n", lengths.size(), threads);
    faults++;
}

// Embeddings of tokens from tables of seven rows, and the means of two texts' states.
void check_ends(int tokens, int hidden) {
    constexpr int ROWS = 7;
    auto word = numbers((size_t)ROWS * hidden), position = numbers((size_t)ROWS * hidden);
    auto type = numbers(hidden), weight = numbers(hidden), bias = numbers(hidden);
    Norm norm{weight.data(), bias.data(), 1e-5f};
    Tables tables{word.data(), position.data(), type.data(), &norm, hidden};
    std::vector<int64_t> ids(tokens), places(tokens);
    std::vector<double> expected((size_t)tokens * hidden), means(2 * (size_t)hidden);
    int32_t starts[] = {0, tokens / 2, tokens};
    for (int token = 0; token < tokens; token++) {
        ids[token] = generator() % ROWS, places[token] = generator() % ROWS;
        double *x = &expected[(size_t)token * hidden], sum = 0, variance = 0;
        for (int i = 0; i < hidden; i++) {
            x[i] = (double)word[ids[token] * hidden + i] + type[i] +
                   position[places[token] * hidden + i];
            sum += x[i];
        }
        for (int i = 0; i < hidden; i++) variance += std::pow(x[i] - sum / hidden, 2) / hidden;
        int text = token >= starts[1];
        for (int i = 0; i < hidden; i++) {
            x[i] = (x[i] - sum / hidden) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
            means[(size_t)text * hidden + i] += x[i] / (starts[text + 1] - starts[text]);
        }
    }
    int kind = int(KindNumber::float32);
    std::vector<float> found(expected.size()), found_means(means.size());
    e5core_embed(kind, &tables, ids.data(), places.data(), tokens, found.data());
    // The difference of two numbers, which may be small, is divided by its own size.
    compare("embeddings", tokens, hidden, 1, found, expected, 1e-3);
    Texts texts{starts, 2, 0, 0};
    e5core_mean(kind, found.data(), &texts, hidden, found_means.data());
    compare("mean", tokens, hidden, 1, found_means, means, 1e-3);
}

// The sizes of teams: other callers' threads and late ones are left out.
void check_teams() {
    auto expect = [](const char* what, int found, int expected) {
        compared++;
        if (found == expected) return;
        std::printf("the team %s has %d threads, expected %d\n", what, found, expected);
        faults++;
    };
    {
        Team first(4, false), second(6, false), third(4, true);
        expect("alone", first.size, 4);
        expect("beside 4 threads", second.size, 2);
        expect("beside 6 threads", third.size, 1);
    }
    for (double late : {.5, .2, .5, .2}) {  // one call that waited is chance
        Team team(3, true);
        expect("after one late call", team.size, 3);
        team.note_waiting(late, 1);
    }
    for (int expected : {3, 3, 2}) {
        Team team(3, true);
        expect("after late calls", team.size, expected);
        team.note_waiting(.5, 1);
    }
    expect("of a long call", Team(3, false).size, 3);
    for (int call = 1; call <= 2 * Team::CALLS; call++) {
        Team team(3, true);
        expect("after calls in time", team.size, 1 + call / Team::CALLS);
        team.note_waiting(.2, 1);
    }
    expect("of all callers", threads_at_work, 0);
}

// A thread that leaves a core may go back to it.
void check_cores() {
#ifdef __linux__
    cpu_set_t before, after;
    sched_getaffinity(0, sizeof before, &before);
    for (int core = 0; core < 4; core++) leave_core(core);
    sched_getaffinity(0, sizeof after, &after);
    compared++;
    if (CPU_EQUAL(&before, &after)) return;
    std::printf("other cores are allowed after leaving one\n");
    faults++;
#endif
}

// Whether dropout keeps a place, number by number after training.h.
bool keeps(const Dropout& dropout, uint32_t x) {
    x = (x ^ x >> 16 ^ dropout.seed[0]) * 0x21F0AAADu;
    x = (x ^ x >> 15 ^ dropout.seed[1]) * 0xD35A2D97u;
    x = (x ^ x >> 15) * 0x21F0AAADu;
    return (x ^ x >> 15) >= dropout.threshold;
}

const Dropout TENTH{{0x12345678u, 0x9ABCDEF0u}, 429496730u, 1 / .9f};

// Residual, GELU and their gradients, in float32.
void check_elements(int count, int threads) {
    auto x = numbers(count, 3), residual = numbers(count);
    std::vector<float> found(count);
    std::vector<double> expected(count), slope(count), gelu_of(count), dropped(count);
    for (int i = 0; i < count; i++) {
        double at = x[i], share = std::erfc(-at / std::sqrt(2.0)) / 2;
        double kept = keeps(TENTH, i) ? TENTH.scale : 0;
        expected[i] = residual[i] + at * kept;
        dropped[i] = residual[i] * kept;
        gelu_of[i] = at * share;
        slope[i] = residual[i] * (share + at * std::exp(-at * at / 2) / std::sqrt(2 * M_PI));
    }
    int kind = int(KindNumber::float32);
    e5core_add_dropped(kind, residual.data(), x.data(), count, &TENTH, found.data(), threads);
    compare("residual", count, 1, 1, found, expected, 1e-5);
    e5core_drop(kind, residual.data(), count, &TENTH, found.data(), threads);
    compare("dropout's gradient", count, 1, 1, found, dropped, 1e-5);
    e5core_gelu(kind, x.data(), found.data(), count, threads);
    compare("GELU", count, 1, 1, found, gelu_of, 1e-5);
    found = residual;
    e5core_gelu_gradient(kind, x.data(), found.data(), count, threads);
    compare("GELU's gradient", count, 1, 1, found, slope, 1e-5);
}

std::vector<float> read(const std::vector<float>& x) { return x; }

std::vector<float> read(const std::vector<bfloat16>& x) {
    std::vector<float> result(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        uint32_t bits = (uint32_t)x[i].bits << 16;
        std::memcpy(&result[i], &bits, 4);
    }
    return result;
}

void write(const std::vector<float>& x, std::vector<float>& result) { result = x; }

void write(const std::vector<float>& x, std::vector<bfloat16>& result) {
    result.resize(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        float rounded = rounded_to_bfloat16(x[i]);
        uint32_t bits;
        std::memcpy(&bits, &rounded, 4);
        result[i].bits = bits >> 16;
    }
}

// Attention with dropout, and its gradient: a text and another of three tokens. Rounding to
// `Number` makes up to so much difference.
template <class Number>
void check_training_attention(KindNumber kind_number, KindNumber attention_number, int length,
                              int head_size, int threads, double rounding) {
    constexpr int HEADS = 2;
    int tokens = length + 3, width = HEADS * head_size;
    int kind = int(kind_number), attention_kind = int(attention_number);
    std::vector<Number> given, given_outer, output, given_of_qkv;
    write(numbers((size_t)tokens * 3 * width), given);
    write(numbers((size_t)tokens * width), given_outer);
    write(std::vector<float>(given.size(), 7), given_of_qkv);
    write(std::vector<float>(given_outer.size(), 7), output);
    auto qkv = read(given), outer = read(given_outer);
    int32_t starts[] = {0, length, tokens};
    Texts texts{starts, 2, HEADS, head_size};
    std::vector<float> log_sums(HEADS * tokens, 7);
    std::vector<double> expected(outer.size()), expected_of_qkv(qkv.size());
    uint32_t place = 0;
    for (int text = 0; text < 2; text++) {
        int start = starts[text], count = starts[text + 1] - start;
        for (int head = 0; head < HEADS; head++, place += count * count) {
            auto at = [&](int token, int part, int i) {
                return ((size_t)(start + token) * 3 + part) * width + head * head_size + i;
            };
            auto out = [&](int token, int i) {
                return (size_t)(start + token) * width + head * head_size + i;
            };
            double factor = 1 / std::sqrt((double)head_size);
            for (int query = 0; query < count; query++) {
                std::vector<double> weight(count), kept(count), of_kept(count);
                double total = 0, sum = 0;
                for (int key = 0; key < count; key++) {
                    double score = 0;
                    for (int i = 0; i < head_size; i++) {
                        score += (double)qkv[at(query, 0, i)] * qkv[at(key, 1, i)];
                        of_kept[key] += (double)outer[out(query, i)] * qkv[at(key, 2, i)];
                    }
                    total += weight[key] = std::exp(score * factor);
                }
                for (int key = 0; key < count; key++) {
                    weight[key] /= total;
                    bool is_kept = keeps(TENTH, place + key * count + query);
                    kept[key] = is_kept ? weight[key] * TENTH.scale : 0;
                    sum += kept[key] * of_kept[key];
                }
                for (int key = 0; key < count; key++) {
                    double of_score = factor * (kept[key] * of_kept[key] - weight[key] * sum);
                    for (int i = 0; i < head_size; i++) {
                        expected[out(query, i)] += kept[key] * qkv[at(key, 2, i)];
                        expected_of_qkv[at(query, 0, i)] += of_score * qkv[at(key, 1, i)];
                        expected_of_qkv[at(key, 1, i)] += of_score * qkv[at(query, 0, i)];
                        expected_of_qkv[at(key, 2, i)] += kept[key] * outer[out(query, i)];
                    }
                }
            }
        }
    }
    e5core_attention_forward(kind, attention_kind, given.data(), &texts, &TENTH, log_sums.data(),
                             output.data(), threads);
    compare("attention with dropout", length, head_size, HEADS, read(output), expected, rounding);
    e5core_attention_backward(kind, attention_kind, given.data(), &texts, &TENTH, log_sums.data(),
                              output.data(), given_outer.data(), given_of_qkv.data(), threads);
    compare("gradient of attention", length, head_size, HEADS, read(given_of_qkv), expected_of_qkv,
            5 * rounding);
}

// Many strands whose shares add up in order: every share once, and no step before the last one.
void check_strands(int threads) {
    constexpr int STRANDS = 7, STEPS = 40;
    std::vector<std::atomic<int>> sums(STRANDS);
    std::atomic<int> early{0};
    auto shares_of = [](int strand, int step) { return 1 + (strand + step) % 5; };
    run_by_team({threads, false}, STRANDS, STEPS, shares_of, [&](int strand, int step, auto take) {
        int before = 0;
        for (int i = 0; i < step; i++) before += shares_of(strand, i);
        while (take() >= 0) {
            int sum = sums[strand]++;
            early += sum < before || sum >= before + shares_of(strand, step);
        }
    });
    for (int strand = 0; strand < STRANDS; strand++, compared++) {
        int all = 0;
        for (int step = 0; step < STEPS; step++) all += shares_of(strand, step);
        if (sums[strand] == all && !early) continue;
        std::printf("strand %d: %d shares of %d, %d early\n", strand, int(sums[strand]), all,
                    int(early));
        faults++;
    }
}

}  // namespace

int main() {
    bool has_bfloat16 = with_kind(Kinds(), int(KindNumber::bfloat16), [](auto) {});
#if defined(__x86_64__)
    has_bfloat16 = has_bfloat16 && __builtin_cpu_supports("avx512bf16");
#endif
    check_teams();
    check_cores();
    for (int threads : {1, 2, 3, 8}) {
        for (int i = 0; i < 5; i++) check_strands(threads);
        check_encoder({1}, threads);
        check_encoder({9, 4, 30}, threads);
        check_encoder({300, 200, 140, 60, 50, 1, 1}, threads);
        check_encoder(std::vector<int>(60, 14), threads);
    }
    for (int tokens : {2, 3, 16, 33, 300}) {
        for (int hidden : {2, 4, 9, 33, 130}) check_ends(tokens, hidden);
    }
    for (int threads : {1, 3}) {
        for (int rows : {1, 2, 5, 6, 7, 13, 15, 41}) {
            for (int inputs : {1, 3, 7, 16, 33, 130}) {
                for (int outputs : {1, 5, 16, 33, 70}) {
                    check_float32(rows, inputs, outputs, threads);
                    check_widened(rows, inputs, outputs, threads);
                    check_int8(rows, inputs, outputs, threads);
                }
            }
        }
        for (int count : {1, 3, 4, 5, 8, 15, 16, 17, 33, 2 * DROPOUT_SHARE + 7}) {
            check_elements(count, threads);
        }
        for (int length : {1, 2, 4, 5, 8, 9, 17, 33, 130, 250}) {
            for (int head_size : {4, 8, 20, 32}) check_attention(length, head_size, threads);
            for (int head_size : {4, 8, 33, 70}) {
                auto float32 = KindNumber::float32, bfloat16_kind = KindNumber::bfloat16;
                check_training_attention<float>(float32, float32, length, head_size, threads, 1e-5);
                check_training_attention<bfloat16>(KindNumber::widened, float32, length, head_size,
                                                   threads, .02);
                if (!has_bfloat16) continue;
                check_training_attention<bfloat16>(bfloat16_kind, bfloat16_kind, length, head_size,
                                                   threads, .05);
            }
        }
    }
    std::printf("%s: %d numbers compared, %d faults\n", e5core_instruction_set(), compared, faults);
    return faults > 0;
}
