"""Chunks hold every text once, are full, and have few sizes."""

import numpy as np
import pytest

from e5core.batching import plan_batches
from e5core.train.chunks import PER_DOUBLING, filler, plan_chunks


def lengths_of(kind: str) -> list[int]:
    generator = np.random.default_rng(0)
    if kind == "mixed":
        return np.exp(generator.uniform(np.log(20), np.log(512), 600)).astype(int).tolist()
    return {"equal": [14] * 500, "long": [300] * 9, "none": [], "one": [700]}[kind]


@pytest.mark.parametrize("kind", ["mixed", "equal", "long", "none", "one"])
def test_every_text_is_in_one_chunk_the_longest_first(kind):
    lengths = lengths_of(kind)
    chunks = plan_chunks(lengths, 600)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        inside = [lengths[i] for i in chunk]
        assert sum(inside) <= 600 or len(chunk) == 1
        assert inside == sorted(inside, reverse=True)
    assert len(chunks) <= len(plan_batches(lengths, 600))


def test_chunks_are_full():
    """All but the last; taking texts in the order of their lengths leaves a tenth empty."""
    lengths = lengths_of("mixed")
    chunks = plan_chunks(lengths, 1024)
    assert all(sum(lengths[i] for i in chunk) > 1000 for chunk in chunks[:-1])
    in_order = [sum(lengths[i] for i in batch) for batch in plan_batches(lengths, 1024)]
    assert np.mean(in_order[:-1]) < 930


@pytest.mark.parametrize("tokens", [1, 7, 600, 641, 1000, 1024, 2047])
def test_a_filled_chunk_has_one_of_few_numbers_of_tokens(tokens):
    chunk = [[5, 6, 7]] * (tokens // 3) + [[5]] * (tokens % 3)
    filled = tokens + sum(map(len, filler(chunk)))
    step = max(1, (1 << (tokens - 1).bit_length()) // (2 * PER_DOUBLING))
    assert tokens <= filled < tokens + step
    assert filled % step == 0
    assert all(0 < len(text) <= 3 for text in filler(chunk))
