"""Embeddings and means in C++: what they refuse, and how exact they are."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from e5core import mean_pool
from e5core.kernels import Kernels, select

# LayerNorm's own rounding: a few units in the last place of numbers up to 5.
NORMED = 5e-6
# Of means near 1, as torch's own: 2e-7 to 3e-7 at most for 3 to 512 tokens, whose sums are rounded
# by parts.
MEAN = 4e-7


def parts_of(hidden, dtype=torch.float32):
    """Tables of words, positions and types, and a LayerNorm."""
    torch.manual_seed(0)
    tables = [torch.randn(rows, hidden).to(dtype) for rows in (50, 40, 2)]
    norm = nn.LayerNorm(hidden).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return *tables, norm


def ids_of(tokens):
    return torch.randint(0, 50, (tokens,)), torch.randint(0, 40, (tokens,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("hidden", [4, 20, 33, 384])
@pytest.mark.parametrize("tokens", [1, 14, 300])
def test_embeddings_are_those_of_float64(native, tokens, hidden, dtype):
    *tables, norm = parts_of(hidden, dtype)
    ids = ids_of(tokens)
    doubled = nn.LayerNorm(hidden).double()
    doubled.load_state_dict(norm.state_dict())
    exact = Kernels().embed(*ids, *(table.double() for table in tables), doubled)
    found = select(native).embed(*ids, *tables, norm)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < NORMED
    rounded = select(native, dtype=torch.bfloat16).embed(*ids, *tables, norm)
    assert torch.equal(rounded, found.bfloat16())


def test_a_token_has_the_same_bits_in_every_batch(native):
    *tables, norm = parts_of(40)
    ids, places = ids_of(300)
    kernels = select(native)
    found = kernels.embed(ids, places, *tables, norm)
    for some in (slice(0, 1), slice(17, 150), slice(299, 300)):
        assert torch.equal(kernels.embed(ids[some], places[some], *tables, norm), found[some])


def test_tables_and_ids_that_are_not_contiguous(native):
    word, position, types, norm = parts_of(40)
    ids, places = ids_of(30)
    kernels = select(native)
    expected = kernels.embed(ids, places, word, position, types, norm)
    spread = torch.stack([ids, ids], dim=1)[:, 0]
    found = kernels.embed(spread, places, word.T.contiguous().T, position, types, norm)
    assert torch.equal(found, expected)
    small = kernels.embed(ids.int(), places.int(), word, position, types, norm)
    assert torch.equal(small, expected)


@pytest.mark.parametrize(("table", "rows"), [(0, 50), (1, 40)])
@pytest.mark.parametrize("wrong", ["below", "above"])
def test_an_id_outside_of_its_table_is_refused(native, table, rows, wrong):
    *tables, norm = parts_of(8)
    ids = ids_of(30)
    ids[table][7] = -1 if wrong == "below" else rows
    with pytest.raises(IndexError, match=f"ids go from .* but the table has rows 0 to {rows - 1}"):
        select(native).embed(*ids, *tables, norm)


def test_tables_of_another_width_and_missing_positions_are_refused(native):
    word, position, types, norm = parts_of(8)
    ids, places = ids_of(30)
    with pytest.raises(ValueError, match=r"a table is \[40, 7\], expected \[rows, 8\]"):
        select(native).embed(ids, places, word, position[:, :7], types, norm)
    with pytest.raises(ValueError, match="29 positions are given for 30 tokens"):
        select(native).embed(ids, places[1:], word, position, types, norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [1, 20, 33, 384])
def test_means_are_those_of_float64_in_every_batch(native, hidden, dtype):
    torch.manual_seed(0)
    lengths = [1, 2, 15, 16, 17, 100, 512, 3]
    states = (torch.randn(sum(lengths), hidden) + 1).to(dtype)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    pool = select(native, dtype=dtype).pooling("mean", mean_pool, states.device)
    found = pool(states, bounds)
    assert found.dtype == torch.float32
    parts = states.double().split(lengths)
    exact = torch.stack([part.mean(dim=0) for part in parts])
    assert ((found - exact).abs() <= MEAN * exact.abs().clamp(min=1)).all()
    for text, (start, stop) in enumerate(pairwise(bounds.tolist())):
        alone = pool(states[start:stop], torch.tensor([0, stop - start]).int())
        assert torch.equal(alone[0], found[text])


def test_means_of_what_is_no_text_are_refused(native):
    states = torch.ones(5, 8)
    pool = select(native).pooling("mean", mean_pool, states.device)
    for bounds, message in (
        ([0, 2, 2, 5], "text 1 has no tokens to average"),
        ([0, 2, 6], "cu_seqlens goes from 0 to 6, expected it to rise from 0 to 5"),
        ([0, 4, 2, 5], "cu_seqlens goes from 0 to 5, expected it to rise"),
    ):
        with pytest.raises(ValueError, match=message):
            pool(states, torch.tensor(bounds).int())
    with pytest.raises(ValueError, match=r"hidden states are torch\.float64, expected torch\.f"):
        pool(states.double(), torch.tensor([0, 5]).int())
