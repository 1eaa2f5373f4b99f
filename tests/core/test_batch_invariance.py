"""A text's vector has the same bits alone, in any batch and in any order."""

import random

import pytest
import torch
from support.models import INSTRUCTION_SETS, tiny_encoder

from e5core import E5, mean_pool, pack
from e5core.kernels import BY_NAME, why_not
from e5core.parity.samples import QUERIES, SENTENCES, text_of_length

CASES = [(name, dtype) for name in ("onednn", *INSTRUCTION_SETS) for dtype in BY_NAME[name].dtypes]


def skip_unless_usable(name, dtype):
    if reason := why_not(BY_NAME[name], torch.device("cpu"), dtype):
        pytest.skip(reason)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_bits_in_hundreds_of_random_batches(dialect, name, dtype, exhaustive):
    """Every length that the tiny model takes, batches of 1 to 40 texts in any order."""
    skip_unless_usable(name, dtype)
    encoder = tiny_encoder(dialect).prepare_for_inference(dtype, name)
    generator = random.Random(0)
    longest = encoder.config.max_length
    texts = [
        [0, *(generator.randrange(4, 119) for _ in range(length - 2)), 2][-length:]
        for length in range(1, longest + 1)
    ]
    with torch.inference_mode():
        alone = [encoder(pack([text], encoder.config)) for text in texts]
        for _ in range(300 if exhaustive else 60):
            chosen = generator.choices(range(len(texts)), k=generator.randint(1, 40))
            if generator.random() < 0.5:
                chosen.sort(key=lambda i: -i)  # as plan_batches orders them
            batch = pack([texts[i] for i in chosen], encoder.config)
            states = encoder(batch).split([len(texts[i]) for i in chosen])
            for i, found in zip(chosen, states, strict=True):
                assert torch.equal(found, alone[i]), (dtype, len(texts[i]), chosen)
            first = encoder(batch, first_only=True)  # which goes another way through the last layer
            assert torch.equal(first, torch.stack([alone[i][0] for i in chosen]))
            pooled = mean_pool(torch.cat(states), batch.cu_seqlens)
            for i, vector in zip(chosen, pooled, strict=True):
                assert torch.equal(vector, alone[i].mean(0, dtype=torch.float32))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_bits_of_the_real_model(real_folder, name, dtype):
    """All ways of attention: lengths from 8 to 512, alone and in batches of every budget."""
    skip_unless_usable(name, dtype)
    model = E5.from_pretrained(real_folder, dtype=dtype, kernels=name)
    lengths = (17, 31, 32, 33, 47, 48, 49, 64, 65, 127, 128, 129, 200, 256, 257, 511, 512)
    texts = [text_of_length(model.tokenizer, n, "query: ", seed=n) for n in lengths]
    texts += [*SENTENCES[::16], *QUERIES[::2]]
    alone = [model.encode(text, input_type="query") for text in texts]
    generator = random.Random(0)
    for budget in (512, 3000):
        order = generator.sample(range(len(texts)), len(texts))
        found = model.encode(
            [texts[i] for i in order], input_type="query", max_tokens_per_batch=budget
        )
        for row, i in zip(found, order, strict=True):
            assert (row == alone[i]).all(), (dtype, budget, texts[i][:40])


@pytest.mark.exhaustive(sample=4)
@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_bits_of_a_product_at_every_number_of_rows(name, dtype, threads):
    """What the two tests above rest on, at the shapes of small and large."""
    skip_unless_usable(name, dtype)
    wide = torch.float32 if dtype == torch.int8 else dtype
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for inputs, outputs in ((384, 1152), (1536, 384), (4096, 1024)):
            kernels, layer = BY_NAME[name](dtype), torch.nn.Linear(inputs, outputs, dtype=wide)
            x, residual = torch.randn(700, inputs).to(wide), torch.randn(700, outputs).to(wide)
            norm = torch.nn.LayerNorm(outputs, dtype=wide)
            with torch.inference_mode():
                weights = kernels.prepare(layer)
                whole = kernels.linear_gelu(x, weights)
                normed = kernels.linear_residual_norm(x, weights, residual, norm, 0.0)
                for rows in (*range(1, 90), 127, 128, 129, 255, 256, 257, 511, 513, 699):
                    assert torch.equal(kernels.linear_gelu(x[:rows], weights), whole[:rows]), rows
                    part = x[:rows], weights, residual[:rows], norm, 0.0
                    found = kernels.linear_residual_norm(*part)
                    assert torch.equal(found, normed[:rows]), rows
    finally:
        torch.set_num_threads(before)
