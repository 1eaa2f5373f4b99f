"""Token ids to one row a sequence, whatever they are mixed with."""

import pickle

import pytest
import torch
from support.models import TINY, tiny_encoder

from e5core import Encoder, Pipeline, TextError, cls_pool, mean_pool, pack
from e5core.parity.samples import spread_weights

SEQUENCES = [[0, *range(5, 5 + n), 2] for n in (3, 40, 1, 17, 3, 60, 9)]


def alone(encoder: Encoder, ids: list[int]) -> torch.Tensor:
    batch = pack([ids], encoder.config)
    return mean_pool(encoder(batch), batch.cu_seqlens)[0]


@pytest.mark.parametrize("max_tokens", [1, 30, 64, 10_000, None])
def test_rows_come_in_the_callers_order(dialect: str, max_tokens: int | None) -> None:
    encoder = tiny_encoder(dialect).double()
    with torch.inference_mode():
        rows = Pipeline(encoder).run(SEQUENCES, max_tokens)
        expected = torch.stack([alone(encoder, ids) for ids in SEQUENCES])
    assert rows.dtype == torch.float64
    assert torch.allclose(rows, expected, rtol=0, atol=1e-12)


def test_every_sequence_is_counted_once(dialect: str) -> None:
    seen: list[int] = []
    with torch.inference_mode():
        Pipeline(tiny_encoder(dialect)).run(SEQUENCES, 50, seen.extend)
    assert sorted(seen) == list(range(len(SEQUENCES)))


def test_a_reduction_of_the_callers_own(dialect: str) -> None:
    encoder = tiny_encoder(dialect)
    with torch.inference_mode():
        first = Pipeline(encoder, "cls").run(SEQUENCES, 50)
        largest = Pipeline(encoder, lambda states, starts: cls_pool(states, starts).amax(dim=1))
        # It sees all tokens, and "cls" the first ones alone: products of other heights.
        torch.testing.assert_close(largest.run(SEQUENCES, 50), first.amax(dim=1))


def test_gradients_are_those_of_the_sequences_one_by_one(dialect: str) -> None:
    """In float64, where a batch and its sequences alone differ by rounding only."""
    encoder = spread_weights(Encoder(TINY[dialect])).double().eval()
    weights = torch.linspace(-1, 1, len(SEQUENCES) * encoder.config.hidden_size).double()

    def gradients(rows: torch.Tensor) -> list[torch.Tensor]:
        loss = (rows * weights.view_as(rows)).sum()
        return list(torch.autograd.grad(loss, list(encoder.parameters())))

    together = gradients(Pipeline(encoder).run(SEQUENCES, 40))
    apart = gradients(torch.stack([alone(encoder, ids) for ids in SEQUENCES]))
    for found, expected in zip(together, apart, strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_without_sequences_there_are_no_rows(dialect: str) -> None:
    assert Pipeline(tiny_encoder(dialect)).run([]).shape == (0, TINY[dialect].hidden_size)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0] * 100, "text 3 has 100 tokens, the model takes 1 to 64"),
        ([], "text 3 has 0 tokens"),
        ([0, 120, 2], "text 3 has the id 120, the vocabulary has rows 0 to 119"),
    ],
)
def test_a_fault_is_named_by_the_callers_index(ids: list[int], message: str) -> None:
    """Batches are sorted by length, and an error counts as the caller does."""
    sequences = [[0, 5, 2], [0, 6, 7, 2], [0, 2], ids, [0, 9, 2]]
    with pytest.raises(TextError, match=message) as caught:
        Pipeline(tiny_encoder("bert")).run(sequences, 10_000)
    assert caught.value.indices == (3,)
    assert caught.value.naming(lambda index: f"line {index + 1}").startswith("line 4 has ")
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (str(copied), copied.indices) == (str(caught.value), (3,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("max",), r"pooling is 'max', expected one of \['cls', 'mean'\]"),
        (("mean", 0), "max_tokens_per_batch is 0, expected 1 or more"),
        (("mean", "64"), "max_tokens_per_batch is '64', expected 1 or more"),
        (("mean", 64.5), "max_tokens_per_batch is 64.5, expected 1 or more"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], message: str) -> None:
    pooling, *budget = arguments
    with pytest.raises(ValueError, match=message):
        Pipeline(tiny_encoder("bert"), pooling).run(SEQUENCES, *budget)  # type: ignore[arg-type]


# What is raised where torch's allocator, cuBLAS' or the system's has nothing left.
FULL = [
    torch.OutOfMemoryError("full"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize("full", FULL, ids=["torch", "cublas", "cpu"])
@pytest.mark.parametrize("most", [1, 62, 70, 90, 10**6])
def test_out_of_memory_halves_the_batch(
    dialect: str, most: int, full: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that has memory for so many tokens of several texts, and for any one text."""
    encoder = tiny_encoder(dialect).double()
    forward = encoder.forward
    tokens: list[int] = []

    def limited(batch, *rest):
        if len(batch.input_ids) > most and len(batch.cu_seqlens) > 2:
            raise full
        tokens.append(len(batch.input_ids))
        return forward(batch, *rest)

    seen: list[int] = []
    with torch.inference_mode():
        expected = Pipeline(encoder).run(SEQUENCES, 10_000)
        monkeypatch.setattr(encoder, "forward", limited)
        pipeline = Pipeline(encoder)
        found = pipeline.run(SEQUENCES, 10_000, seen.extend, halve=True)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        assert sorted(seen) == list(range(len(SEQUENCES)))
        assert sum(tokens) == sum(map(len, SEQUENCES))
        # Of 147 tokens half, which again is halved where it is too many, and so it stays.
        wanted = {1: 4, 62: 36, 70: 36, 90: 73, 10**6: 10_000}[most]
        assert pipeline.budget(10_000) == wanted
        if most < sum(tokens):
            with pytest.raises(torch.OutOfMemoryError):
                Pipeline(encoder).run(SEQUENCES, 10_000)


def test_other_errors_halve_nothing(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, calls = tiny_encoder(dialect), []

    def broken(*_):
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(encoder, "forward", broken)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="illegal memory access"):
        Pipeline(encoder).run(SEQUENCES, halve=True)
    assert calls == [1]


def test_one_sequence_that_has_no_memory_is_an_error(
    dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_encoder(dialect)

    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(encoder, "forward", full)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError, match="full"):
        Pipeline(encoder).run(SEQUENCES, halve=True)
