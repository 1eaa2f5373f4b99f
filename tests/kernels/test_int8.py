"""Weights and activations in int8: the arithmetic, and what it costs in quality."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import CPU, INSTRUCTION_SETS

from e5core import E5
from e5core.kernels import BACKENDS, BY_NAME, select, why_not
from e5core.kernels.int8_rows import (
    dequantize_rows,
    largest_sum_of_four,
    quantize_rows,
    quantized_weight,
)
from e5core.kernels.onednn_int8 import quantize_tokens
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, TOPICS, text_of_length
from e5core.parity.tolerances import INT8_MEAN_COSINE, INT8_RANKING_LOSS, INT8_WORST_COSINE

reason = why_not(BACKENDS["onednn"], CPU, torch.int8)
usable = pytest.mark.skipif(reason is not None, reason=str(reason))

# Of a GELU, absolute and beside its argument: what torch rounds, and what gelu_for_int8() leaves
# away, which is a hundredth of a step of int8.
GELU_ERRORS = {"onednn": (2e-6, 1e-6), "native": (3e-5, 1e-5)}


@pytest.fixture(scope="module", params=["onednn", *INSTRUCTION_SETS])
def name(request):
    """Of the kernels; skips where they cannot run."""
    if missing := why_not(BY_NAME[request.param], CPU, torch.int8):
        pytest.skip(missing)
    return request.param


@pytest.fixture(scope="module")
def int8_model(real_folder, name):
    return E5.from_pretrained(real_folder, dtype="int8", kernels=name)


def check_tokens(x):
    q, scale, zero_point = quantize_tokens(x)
    assert q.dtype == torch.uint8
    assert int(q.max()) - int(q.min()) <= 255
    back = scale.double() * (q.double() - zero_point.double())
    # Half a step, and float32's own rounding of numbers far from 0 beside a narrow range.
    slack = 0.5 * scale.double() * (1 + 1e-3) + 2e-7 * x.double().abs().amax(1, keepdim=True)
    assert ((back - x.double()).abs() <= slack).all()


@settings(max_examples=200)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=2, max_size=40).filter(
        lambda row: max(row) - min(row) > 1e-3 * max(map(abs, row))
    )
)
def test_a_token_comes_back_within_half_a_step(row):
    check_tokens(torch.tensor([row, row[::-1]]))


def test_both_ends_on_half_a_step():
    """With 255 steps the largest number became 256, which is 0 in a byte: seen on a real text."""
    halves = torch.arange(0.5, 254)
    rows = torch.stack([-halves, 254 - halves], dim=1)
    check_tokens(rows)
    check_tokens(rows * 0.37)


def test_constant_tokens_and_tokens_of_one_sign():
    check_tokens(torch.tensor([[0.0, 0.0], [1.0, 3.0], [-3.0, -1.0], [5.0, 5.0]]))


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 60), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_rows_come_back_within_half_a_scale(rows, columns, size, seed):
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    integers, scales = quantize_rows(weight)
    assert integers.dtype == torch.int8
    assert integers.abs().max() <= 127
    back = dequantize_rows(integers, scales)
    assert ((back - weight).abs() <= 0.5001 * scales[:, None]).all()
    assert (back[0] == 0).all()
    again = quantize_rows(back)[0]
    assert torch.equal(again, integers)  # what a file holds in int8 loses nothing more


@settings(max_examples=50)
@given(st.integers(1, 9), st.integers(1, 60), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_four_integers_that_meet_stay_below_the_largest_sum(rows, columns, size, seed):
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0] = 0
    weight[1:2] = size  # all of four are rounded upwards
    integers, scales = quantize_rows(weight, 128)
    for row in integers.int().abs().tolist():
        row += [0] * (-columns % 8)
        for i in range(0, len(row), 8):
            for a, b in ((i, i + 4), (i + 2, i + 6)):
                assert sum(row[a : a + 2] + row[b : b + 2]) <= 128
    assert ((dequantize_rows(integers, scales) - weight).abs() <= 0.5001 * scales[:, None]).all()
    free = quantize_rows(weight)[0]
    inside = largest_sum_of_four(free.int()) <= 128
    assert torch.equal(integers[inside], free[inside])


def test_rows_of_a_file_keep_their_integers_unless_their_sum_is_too_large():
    linear = torch.nn.Linear(16, 2, bias=False)
    with torch.no_grad():
        linear.weight[0] = 0.1
        linear.weight[1] = torch.tensor([5.0, *15 * [0.01]])
    integers, scales = quantize_rows(linear.weight.detach())
    held = torch.nn.Linear(16, 2, bias=False)
    held.weight = torch.nn.Parameter(integers, requires_grad=False)
    held.register_buffer("weight_scale", scales)
    assert torch.equal(quantized_weight(held)[0], integers)
    limited, limited_scales = quantized_weight(held, 128)
    assert torch.equal(limited[1], integers[1])
    assert (limited[0] == 32).all()
    assert torch.allclose(limited[0] * limited_scales[0], torch.tensor(0.1), rtol=0.02)


def test_the_largest_sums_of_products_do_not_saturate(name):
    """All inputs at the largest number, and weights that are as large as their scale lets them."""
    kernels, layer = select(name, dtype=torch.int8), torch.nn.Linear(40, 4, bias=True)
    with torch.inference_mode():
        layer.weight[:2] = torch.tensor([[1.0], [-1.0]])
        layer.weight[2:] = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(10)
        layer.weight[3] *= -1
        weights = kernels.prepare(layer)
        x = torch.ones(15, 40)
        x[:, -1] = 0.0
        exact = x.double() @ layer.weight.double().T + layer.bias.double()
        assert torch.allclose(kernels.linear(x, weights).double(), exact, rtol=0.02)


@pytest.mark.parametrize("tokens", [1, 2, 14, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (384, 1152), (1536, 384)])
def test_a_product_is_that_of_the_quantised_numbers(name, tokens, inputs, outputs):
    """Against the same integers in float64: what is left is the rounding of float32."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(inputs, outputs), 3 * torch.randn(tokens, inputs) + 1
    q, scale, zero_point = quantize_tokens(x)
    kernels = select(name, dtype=torch.int8)
    integers = quantize_rows(layer.weight.detach(), getattr(kernels, "largest_sum", 0))
    weight = dequantize_rows(*integers).double()
    exact = scale.double() * (q.double() - zero_point.double()) @ weight.T + layer.bias.double()
    with torch.inference_mode():
        weights = kernels.prepare(layer)
        found = kernels.linear(x, weights)
        assert (found - exact).abs().max() <= 3e-6 * exact.abs().max() * inputs**0.5
        gelu = kernels.linear_gelu(x, weights)
        error = (gelu.double() - torch.nn.functional.gelu(found.double())).abs()
        absolute, relative = GELU_ERRORS[name.partition("/")[0]]
        assert (error <= absolute + relative * found.abs()).all()


def test_quality_on_the_real_model(real_model, int8_model, name, measured):
    """The gate: sentences and queries in 28 languages, and texts of 20 to 512 tokens."""
    assert name in (int8_model.encoder.kernels.name, int8_model.encoder.kernels.label)
    tokenizer = real_model.tokenizer
    texts = [*SENTENCES, *QUERIES]
    texts += [text_of_length(tokenizer, n, "query: ", seed=n) for n in range(20, 513, 12)]
    cosines = (real_model.encode_query(texts) * int8_model.encode_query(texts)).sum(axis=1)
    measured(
        f"{name} int8 against float32, {len(texts)} texts: mean cosine {cosines.mean():.5f}, "
        f"worst {cosines.min():.5f}"
    )
    assert cosines.mean() >= INT8_MEAN_COSINE
    assert cosines.min() >= INT8_WORST_COSINE


@usable
def test_quality_in_bfloat16(real_folder, real_model, measured):
    model = E5.from_pretrained(real_folder, dtype="bfloat16")
    texts = [*SENTENCES, *QUERIES]
    cosines = (real_model.encode_query(texts) * model.encode_query(texts)).sum(axis=1)
    measured(f"bfloat16 against float32: worst cosine {cosines.min():.6f}")
    assert cosines.min() >= 0.9998


def test_ranking_language_by_language(real_model, int8_model, name, measured):
    """Translations found first among the sentences of another language, Swahili and all."""

    def found_first(model):
        vectors = model.encode_query(SENTENCES)
        languages, topics = np.array(LANGUAGES), np.array(TOPICS)
        share = {}
        for source in dict.fromkeys(LANGUAGES):
            hits = []
            for target in dict.fromkeys(LANGUAGES):
                if target != source:
                    scores = vectors[languages == source] @ vectors[languages == target].T
                    best = topics[languages == target][scores.argmax(axis=1)]
                    hits.append((best == topics[languages == source]).mean())
            share[source] = float(np.mean(hits))
        return share

    exact, quantised = found_first(real_model), found_first(int8_model)
    for language, share in exact.items():
        measured(
            f"found first, {language}: float32 {share:.1%}, {name} int8 {quantised[language]:.1%}"
        )
        assert quantised[language] >= share - INT8_RANKING_LOSS, language
    assert np.mean(list(quantised.values())) >= np.mean(list(exact.values())) - 0.005


def test_the_first_of_every_query_stays(real_model, int8_model):
    firsts = [
        (model.encode_query(QUERIES) @ model.encode_passage(SENTENCES).T).argmax(axis=1)
        for model in (real_model, int8_model)
    ]
    topics = np.array(TOPICS)
    assert (topics[firsts[0]] == topics[firsts[1]]).all()


def test_on_a_tiny_model_of_each_dialect(tiny_folder, name):
    texts = ["a", "the query", "日本 ing", "x" * 40]
    exact = E5.from_pretrained(tiny_folder, dtype="float32")
    quantised = E5.from_pretrained(tiny_folder, dtype="int8", kernels=name)
    cosines = (exact.encode_query(texts) * quantised.encode_query(texts)).sum(axis=1)
    assert cosines.min() > 0.99


def test_where_int8_does_not_run_the_reason_is_given(tiny_folder, monkeypatch):
    monkeypatch.setattr("e5core.kernels.onednn._fault", lambda dtype: "this CPU is too old")
    monkeypatch.setattr(BACKENDS["native"], "unavailable", lambda *_: "so is the compiler")
    with pytest.raises(
        ValueError, match="no kernels run in int8 on cpu: onednn cannot be used: this"
    ):
        E5.from_pretrained(tiny_folder, dtype="int8")
    with pytest.raises(ValueError, match="kernels 'sdpa' cannot be used: they are for float32 and"):
        E5.from_pretrained(tiny_folder, dtype="int8", kernels="sdpa")
