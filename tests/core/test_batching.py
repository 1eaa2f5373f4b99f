"""Packing, ordering and cutting a stream."""

from itertools import chain, pairwise, repeat

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import TINY

from e5core import TextError, pack
from e5core.batching import plan_batches
from e5core.kernels.cuda.copies import queue_to_cpu
from e5core.texts import slices as slicing
from e5core.texts.slices import one_behind, slices


def test_pack_lays_texts_end_to_end(dialect):
    batch = pack([[0, 7, 2], [0, 2], [0, 8, 9, 2]], TINY[dialect])
    first = {"bert": 0, "xlm-roberta": 2}[dialect]
    assert batch.input_ids.tolist() == [0, 7, 2, 0, 2, 0, 8, 9, 2]
    assert (batch.position_ids - first).tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 9]
    assert batch.max_seqlen == 4
    assert (batch.input_ids.dtype, batch.position_ids.dtype) == (torch.int64, torch.int64)
    assert batch.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "no text to pack"),
        ([[0, 2], []], "text 1 has 0 tokens"),
        ([[0, 2], [5] * 65], "text 1 has 65 tokens, the model takes 1 to 64"),
        ([[0, 120, 2]], "text 0 has the id 120, the vocabulary has rows 0 to 119"),
        ([[0, 2], [0, -1, 2]], "text 1 has the id -1"),
    ],
)
def test_pack_names_the_culprit(dialect, texts, message):
    with pytest.raises(ValueError, match=message):
        pack(texts, TINY[dialect])


@given(lengths=st.lists(st.integers(1, 50), max_size=60), max_tokens=st.integers(1, 120))
def test_plan_keeps_every_text_once_within_the_budget(lengths, max_tokens):
    plan = plan_batches(lengths, max_tokens)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    for batch in plan:
        assert sum(lengths[i] for i in batch) <= max_tokens or len(batch) == 1
    # Texts of one length stand side by side, so that attention can take them together.
    order = [lengths[i] for batch in plan for i in batch]
    assert order == sorted(order, reverse=True)
    # No two neighbouring batches would fit into one.
    for one, other in pairwise(plan):
        assert sum(lengths[i] for i in one) + lengths[other[0]] > max_tokens


def test_slices_bound_texts_and_characters(monkeypatch):
    monkeypatch.setattr(slicing, "SLICE_TEXTS", 3)
    monkeypatch.setattr(slicing, "SLICE_CHARACTERS", 10)
    texts = ["a", "b", "c", "dddddddddddd", "e", "ffffffffff"]
    assert list(slices(iter(texts))) == [["a", "b", "c"], ["dddddddddddd"], ["e", "ffffffffff"]]


def test_slices_read_no_further_than_they_need(monkeypatch):
    monkeypatch.setattr(slicing, "SLICE_TEXTS", 2)
    read = []
    stream = slices(read.append(i) or str(i) for i in range(100))
    next(stream)
    assert read == [0, 1]


def test_slices_name_what_is_no_text():
    with pytest.raises(TypeError, match="text 2 is None of type NoneType, expected str"):
        list(slices(["a", "b", None]))


def test_arrays_are_packed_like_lists(dialect):
    lists = [[0, 7, 2], [0, 2], [0, 8, 9, 2]]
    for kinds in ([np.int64] * 3, [np.int32, np.int64, list]):
        arrays = [
            ids if kind is list else np.array(ids, kind)
            for ids, kind in zip(lists, kinds, strict=True)
        ]
        found, expected = pack(arrays, TINY[dialect]), pack(lists, TINY[dialect])
        assert torch.equal(found.input_ids, expected.input_ids)
        assert found.input_ids.dtype == torch.int64
        assert torch.equal(found.position_ids, expected.position_ids)
    with pytest.raises(ValueError, match="text 1 has the id 120"):
        pack([np.array([0, 2]), np.array([0, 120, 2])], TINY[dialect])


def test_slices_that_grow():
    texts = ["aa"] * 12
    found = [len(some) for some in slices(texts, chain((2, 4), repeat(6)))]
    assert found == [1, 2, 3, 3, 3]


CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_beside_a_gpu_an_item_comes_when_the_next_one_is_begun():
    for device, wanted in (
        (GPU, [(0, 2), (1, 3), (2, 4), (3, 4)]),
        (CPU, [(i, i + 1) for i in range(4)]),
    ):
        made: list[int] = []
        stream = one_behind((made.append(i) or i for i in range(4)), device)
        assert [(item, len(made)) for item in stream] == wanted
        assert list(one_behind([], device)) == []


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_no_item_is_lost_before_an_error(device):
    def items():
        yield 1
        yield 2
        raise ValueError("the third")

    stream = one_behind(items(), device)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(stream)


def test_ids_of_more_than_64_bits(dialect):
    for bad in (2**63, -(2**70)):
        with pytest.raises(TextError, match=f"text 1 has the id {bad}, the vocabulary") as caught:
            pack([[0, 2], [0, 5, bad, 2]], TINY[dialect])
        assert caught.value.indices == (1,)


def test_rows_of_any_device_come_to_the_cpu():
    """Of those that queue no copies too, such as Apple's."""
    rows = torch.ones(2, 3)
    assert queue_to_cpu(rows)() is rows

    class Elsewhere:
        is_cuda = False

        def cpu(self):
            return rows

    assert queue_to_cpu(Elsewhere())() is rows


@pytest.mark.parametrize(
    "bad",
    [
        [0, "7", 2],
        [0, 7.5, 2],
        [0, None, 2],
        np.array([0.0, 7.5, 2.0]),
        torch.tensor([0.0, 7.5, 2.0]),
    ],
    ids=["str", "float", "None", "array", "tensor"],
)
def test_ids_that_are_no_integers(dialect, bad):
    with pytest.raises(TypeError, match=r"text 1 has .* of type .* among its ids, expected int"):
        pack([[0, 7, 2], bad], TINY[dialect])
