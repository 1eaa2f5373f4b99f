"""Similarity and search against a brute-force float64 reference."""

import importlib
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from e5core import quantize_vectors, search, similarity

# The package's `search` is the function, so that the module has to be asked for by name.
SEARCH = importlib.import_module("e5core.vectors.search")


def vectors(count: int, size: int = 16, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)


def cosines(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The definition, in float64."""
    wide_a, wide_b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    lengths = np.linalg.norm(wide_a, axis=1)[:, None] * np.linalg.norm(wide_b, axis=1)
    return (wide_a[:, None, :] * wide_b).sum(axis=2) / lengths


def brute_force(
    queries: npt.ArrayLike, passages: npt.ArrayLike, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    scores = cosines(queries, passages).astype(np.float32)
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return indices, np.take_along_axis(scores, indices, axis=1)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SEARCH, "BLOCK_PASSAGES", 7)
    monkeypatch.setattr(SEARCH, "BLOCK_QUERIES", 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("k", [1, 2, 6, 7, 8, 40, 50, 99])
@pytest.mark.parametrize("count", [1, 6, 7, 8, 14, 50])
def test_search_equals_brute_force_over_block_boundaries(count: int, k: int) -> None:
    queries, passages = 5 * vectors(8, seed=1), vectors(count)
    passages *= np.geomspace(0.001, 1000, count, dtype=np.float32)[:, None]
    result = search(queries, passages, top_k=k)
    indices, scores = brute_force(queries, passages, k)
    np.testing.assert_array_equal(result.indices, indices)
    np.testing.assert_array_equal(result.scores, scores)
    assert result.indices.shape == (8, min(k, count))
    assert (result.indices.dtype, result.scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("block", [1, 2, 5, 64, 1000])
@pytest.mark.parametrize("size", [5, 37, 384])
def test_equal_scores_prefer_the_lower_index(
    monkeypatch: pytest.MonkeyPatch, size: int, block: int
) -> None:
    # A matrix product rounds equal vectors differently by where they stand, so that a search
    # that trusts it gets these wrong for the larger sizes.
    passages = np.concatenate([vectors(30, size), np.tile(vectors(1, size, seed=3), (170, 1))])
    np.random.default_rng(5).shuffle(passages)
    queries = vectors(3, size, seed=3)  # the first is the repeated passage
    monkeypatch.setattr(SEARCH, "BLOCK_PASSAGES", block)
    indices, _ = brute_force(queries, passages, 180)
    np.testing.assert_array_equal(search(queries, passages, 180).indices, indices)
    np.testing.assert_array_equal(search(queries, passages, 20).indices, indices[:, :20])


@pytest.mark.usefixtures("small_blocks")
@given(
    vectors=arrays.arrays(
        np.int64,
        st.tuples(st.integers(1, 30), st.integers(1, 4)),
        elements=st.integers(-3, 3),  # few values: many equal and many parallel vectors
    ).filter(lambda array: bool(array.any(axis=1).all())),
    queries=st.integers(0, 5),
    k=st.integers(1, 12),
)
@example(vectors=np.array([[-3, 1, 1, 1], [1, 1, 1, 1]]), queries=1, k=2)  # exactly 0
def test_search_equals_brute_force_with_many_ties(
    vectors: npt.NDArray[np.int64], queries: int, k: int
) -> None:
    result = search(vectors[:queries], vectors, top_k=k)
    indices, scores = brute_force(vectors[:queries], vectors, k)
    np.testing.assert_array_equal(result.scores, scores)
    np.testing.assert_array_equal(result.indices, indices)


@pytest.mark.parametrize("order", [1, -1], ids=["ascending", "descending"])
@pytest.mark.usefixtures("small_blocks")
def test_the_order_of_the_passages_does_not_matter(order: int) -> None:
    angles = np.linspace(0.1, 3.0, 60)[::order]
    passages = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    result = search([1.0, 0.0], passages, top_k=5)
    best = np.argsort(angles)[:5]
    assert result.indices.tolist() == best.tolist()
    np.testing.assert_allclose(result.scores, np.cos(angles[best]), rtol=1e-6)


def test_a_single_query_loses_its_axis() -> None:
    passages = vectors(9)
    result = search(passages[4], passages, top_k=2)
    assert result.indices.shape == result.scores.shape == (2,)
    assert result.indices[0] == 4
    assert result.scores[0] == 1.0


def test_nothing_to_find_and_nothing_to_look_for() -> None:
    none, some = vectors(0), vectors(3)
    assert search(some, none, top_k=5).indices.shape == (3, 0)
    assert search(some[0], none, top_k=5).scores.shape == (0,)
    assert search(none, some, top_k=2).scores.shape == (0, 2)


@pytest.mark.parametrize("convert", [np.float64, np.float16, np.ndarray.tolist])
def test_other_kinds_of_numbers(convert) -> None:  # type: ignore[no-untyped-def]
    queries, passages = convert(vectors(3, seed=1)), convert(vectors(20))
    result = search(queries, passages, top_k=4)
    indices, scores = brute_force(queries, passages, 4)
    np.testing.assert_array_equal(result.indices, indices)
    np.testing.assert_allclose(result.scores, scores, rtol=0, atol=1e-7)
    np.testing.assert_allclose(
        similarity(queries, passages), cosines(queries, passages), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_do_not_overflow(scale: float) -> None:
    passages = vectors(20)
    expected = search(passages[:3], passages)
    result = search(passages[:3] * np.float32(scale), passages * np.float32(scale))
    np.testing.assert_array_equal(result.indices, expected.indices)


def test_search_leaves_its_arguments_as_they_are() -> None:
    queries, passages = 3 * vectors(2, seed=1), 3 * vectors(5)
    before = queries.copy(), passages.copy()
    search(queries, passages)
    similarity(queries, passages)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(passages, before[1])


@pytest.mark.parametrize(
    ("a", "b", "shape"),
    [((2, 4), (3, 4), (2, 3)), ((4,), (3, 4), (3,)), ((2, 4), (4,), (2,)), ((4,), (4,), ())],
)
def test_similarity_has_an_axis_for_each_list(
    a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    left, right = vectors(2, 4)[: a[0]], vectors(3, 4, seed=1)
    left, right = left[0] if len(a) == 1 else left, right[0] if len(b) == 1 else right
    result = similarity(left, right)
    assert result.shape == shape
    expected = cosines(np.atleast_2d(left), np.atleast_2d(right)).reshape(shape)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["queries", "passages"])
@pytest.mark.usefixtures("small_blocks")
def test_a_vector_without_a_direction_is_named(name: str, value: float) -> None:
    arguments = {"queries": vectors(20, seed=1), "passages": vectors(20)}
    arguments[name][17] = value
    with pytest.raises(ValueError, match=f"^vector 17 of {name} is zero or not finite$"):
        search(**arguments)
    with pytest.raises(ValueError, match=r"^vector 17 of [ab] is zero or not finite$"):
        similarity(arguments["queries"], arguments["passages"])


@pytest.mark.parametrize(
    ("queries", "passages", "top_k", "message"),
    [
        ((2, 4), (3, 5), 1, "queries has vectors of 4 numbers, passages of 5"),
        ((2, 4), (0, 5), 1, "queries has vectors of 4 numbers, passages of 5"),
        ((2, 4), (4,), 1, r"passages has the shape \(4,\), expected \[m, hidden_size\]"),
        ((2, 2, 4), (3, 4), 1, r"queries has the shape \(2, 2, 4\), expected \[n, hidden_size\]"),
        ((2, 4), (3, 4), 0, "top_k is 0, expected 1 or more"),
        ((2, 4), (3, 4), -1, "top_k is -1, expected 1 or more"),
    ],
)
def test_bad_arguments(
    queries: tuple[int, ...], passages: tuple[int, ...], top_k: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        search(np.ones(queries), np.ones(passages), top_k)


def test_similarity_of_unequal_sizes() -> None:
    with pytest.raises(ValueError, match="a has vectors of 4 numbers, b of 5"):
        similarity(np.ones(4), np.ones((2, 5)))


def test_memory_does_not_grow_with_queries_times_passages() -> None:
    queries, passages = vectors(2_000, seed=1), vectors(100_000)
    tracemalloc.start()  # numpy reports its arrays to it
    search(queries, passages, top_k=10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The full score matrix has 800 MB; one block of scores has 16,384 × 256 × 4 = 17 MB.
    assert 16e6 < peak < 50e6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_tensors_of_any_dtype(dtype: str) -> None:
    """NumPy has no bfloat16; a tensor with gradients and a list of tensors are vectors too."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    queries, passages = (
        torch.randn(n, 16, generator=generator).to(getattr(torch, dtype)) for n in (3, 40)
    )
    arrays = queries.float().numpy(), passages.float().numpy()
    expected = search(*arrays, top_k=5)
    forms = [(queries, passages), (list(queries), list(passages))]
    forms += [(queries.requires_grad_(), passages.requires_grad_())]
    for form in forms:
        found = search(*form, top_k=5)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        assert similarity(*form).shape == (3, 40)
    assert search(queries[0], passages, top_k=5).indices.shape == (5,)
    assert quantize_vectors(passages, "int8").shape == (40, 16)
