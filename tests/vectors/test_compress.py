"""Storage forms: what they hold, what a search over them finds, and who else reads them."""

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from e5core import E5, quantize_vectors, search
from e5core.parity.samples import QUERIES, SENTENCES

SEARCH = importlib.import_module("e5core.vectors.search")
K = 10
Vectors = npt.NDArray[np.float32]


def vectors(count: int, size: int = 20, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)


@pytest.fixture(scope="module")
def collection(real_model: E5) -> tuple[Vectors, Vectors]:
    """208 queries and 2,000 passages of two sentences each, which are near to many others: each
    sentence has eleven translations, and is part of some twenty passages."""
    generator = random.Random(0)
    pairs: set[tuple[str, ...]] = set()
    while len(pairs) < 2_000:
        pairs.add(tuple(generator.sample(SENTENCES, 2)))
    passages = real_model.encode_passage([" ".join(pair) for pair in sorted(pairs)])
    return real_model.encode_query([*SENTENCES, *QUERIES]), passages


def recall(found: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]) -> float:
    shared = [len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)]
    return sum(shared) / expected.size


def test_recall_on_real_vectors(
    collection: tuple[Vectors, Vectors], measured: Callable[[str], None]
) -> None:
    queries, passages = collection
    exact = search(queries, passages, K).indices
    center = passages.mean(axis=0)
    int8 = quantize_vectors(passages, "int8")
    bits = quantize_vectors(passages, "binary", center=center)
    raw_bits = quantize_vectors(passages, "binary", center=np.zeros_like(center))
    found = {
        "int8": search(queries, int8, K),
        "int8, 2 times as many rescored": search(
            queries, passages, K, quantized=int8, oversample=2
        ),
        "binary": search(queries, bits, K, center=center),
        "binary, 4": search(queries, passages, K, quantized=bits, center=center, oversample=4),
        "binary, 8": search(queries, passages, K, quantized=bits, center=center),
        "binary, 8 rescored by int8": search(queries, int8, K, quantized=bits, center=center),
        "binary around 0": search(queries, raw_bits, K, center=np.zeros_like(center)),
    }
    shares = {name: recall(result.indices, exact) for name, result in found.items()}
    for name, share in shares.items():
        measured(f"recall@{K} of 2,000 passages, {name}: {share:.3f}")
    assert shares["int8"] > 0.98
    assert shares["int8, 2 times as many rescored"] > 0.999
    assert shares["binary, 4"] > 0.97
    assert shares["binary, 8"] > 0.99
    assert shares["binary, 8 rescored by int8"] > 0.97
    # What the center is for.
    assert shares["binary"] > shares["binary around 0"] + 0.2


def test_sizes(collection: tuple[Vectors, Vectors]) -> None:
    passages = collection[1]
    int8 = quantize_vectors(passages, "int8")
    bits = quantize_vectors(passages, "binary", center=passages.mean(axis=0))
    assert (int8.dtype, int8.shape, passages.nbytes / int8.nbytes) == (np.int8, (2_000, 384), 4)
    assert (bits.dtype, bits.shape, passages.nbytes / bits.nbytes) == (np.uint8, (2_000, 48), 32)


FLOATS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 20)),
    elements=st.floats(-(2.0**99), 2.0**99, width=32),
).filter(lambda array: bool((np.abs(array).max(axis=1) > 1e-30).all()))


@given(array=FLOATS)
def test_int8_is_the_nearest_of_255_steps(array: Vectors) -> None:
    integers = quantize_vectors(array, "int8").astype(np.float64)
    steps = np.abs(array.astype(np.float64)).max(axis=1, keepdims=True) / 127
    assert (np.abs(array / steps - integers) <= 0.5 + 1e-4).all()
    assert (np.abs(integers).max(axis=1) == 127).all()


@given(array=FLOATS, center=st.floats(-10, 10, width=32))
def test_bits_are_the_signs_around_the_center(array: Vectors, center: float) -> None:
    middle = np.full(array.shape[1], center, dtype=np.float32)
    bits = quantize_vectors(array, "binary", center=middle)
    unpacked = np.unpackbits(bits, axis=1, count=array.shape[1])
    np.testing.assert_array_equal(unpacked, array - middle > 0)
    assert not np.unpackbits(bits, axis=1)[:, array.shape[1] :].any()


def test_one_vector_has_no_first_axis() -> None:
    array = vectors(3)
    middle = array.mean(axis=0)
    np.testing.assert_array_equal(
        quantize_vectors(array[1], "int8"), quantize_vectors(array, "int8")[1]
    )
    np.testing.assert_array_equal(
        quantize_vectors(array[1], "binary", center=middle),
        quantize_vectors(array, "binary", center=middle)[1],
    )


# Searching


@pytest.mark.parametrize("size", [8, 9, 20, 64])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_bits_are_searched_as_the_signs_they_are(
    monkeypatch: pytest.MonkeyPatch, size: int, k: int
) -> None:
    monkeypatch.setattr(SEARCH, "BLOCK_PASSAGES", 7)
    passages, queries, center = vectors(50, size), vectors(4, size, seed=1), vectors(1, size)[0] / 5
    passages[30:40] = passages[3]  # equal scores, over the bounds of blocks
    bits = quantize_vectors(passages, "binary", center=center)
    signs = np.where(passages > center, 1.0, -1.0)
    expected = search(queries - center, signs, k)
    found = search(queries, bits, k, center=center)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    single = search(queries[0], bits, k, center=center)
    np.testing.assert_array_equal(single.indices, expected.indices[0])


@pytest.mark.parametrize("form", ["int8", "binary"])
@pytest.mark.parametrize("k", [1, 10, 80])
def test_enough_candidates_make_the_search_exact(form: Any, k: int) -> None:
    passages, queries = vectors(60), vectors(5, seed=1)
    passages[40:] = passages[:20]  # of equal scores the first wins here too
    center = passages.mean(axis=0) if form == "binary" else None
    small = quantize_vectors(passages, form, center=center)
    found = search(queries, passages, k, quantized=small, center=center, oversample=60)
    expected = search(queries, passages, k)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    single = search(queries[2], passages, k, quantized=small, center=center, oversample=60)
    np.testing.assert_array_equal(single.indices, expected.indices[2])


def test_oversample_is_what_candidates_there_are() -> None:
    passages, queries = vectors(500), vectors(20, seed=1)
    center = passages.mean(axis=0)
    bits = quantize_vectors(passages, "binary", center=center)
    exact = search(queries, passages).indices
    shares = [
        recall(
            search(queries, passages, quantized=bits, center=center, oversample=times).indices,
            exact,
        )
        for times in (1, 2, 4, 8)
    ]
    assert shares == sorted(shares)
    assert shares[0] + 0.2 < shares[-1]
    candidates = search(queries, bits, 10, center=center).indices
    found = search(queries, passages, 10, quantized=bits, center=center, oversample=1).indices
    np.testing.assert_array_equal(np.sort(found), np.sort(candidates))


def test_only_candidates_are_read(tmp_path: Path) -> None:
    """Rows that are no candidates are NaN in the file, which any search that read them names."""
    passages, query = vectors(400), vectors(1, seed=1)[0]
    small = quantize_vectors(passages, "int8")
    wanted = search(query, passages, 3)
    candidates = search(query, small, 6).indices
    assert set(wanted.indices) <= set(candidates)
    holed = np.full_like(passages, np.nan)
    holed[candidates] = passages[candidates]
    np.save(tmp_path / "passages.npy", holed)
    mapped = np.load(tmp_path / "passages.npy", mmap_mode="r")
    found = search(query, mapped, 3, quantized=small, oversample=2)
    np.testing.assert_array_equal(found.indices, wanted.indices)
    missing = next(i for i in search(query, passages, 400).indices if i not in candidates)
    with pytest.raises(ValueError, match="is zero or not finite"):
        search(query, mapped, 3, quantized=small, oversample=100)
    assert np.isnan(mapped[missing]).all()


# Errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones((2, 4)), "int4"), {}, "form is 'int4', expected 'int8' or 'binary'"),
        ((np.ones((2, 4)), "binary"), {}, r"center is missing.*pass center=vectors\.mean"),
        ((np.ones((2, 4)), "int8"), {"center": np.ones(4)}, "center is given, but int8 takes none"),
        ((np.ones((2, 4)), "binary"), {"center": np.ones(3)}, r"shape \(3,\), expected \(4,\)"),
        ((np.ones((2, 4)), "binary"), {"center": np.full(4, np.nan)}, "center has a NaN"),
        ((np.ones((2, 4, 1)), "int8"), {}, r"shape \(2, 4, 1\), expected \[n, hidden_size\]"),
        ((np.diag([1.0, 0.0]), "int8"), {}, "vector 1 of vectors is zero or not finite"),
        ((np.diag([1.0, np.inf]), "int8"), {}, "vector 1 of vectors is zero or not finite"),
    ],
)
def test_bad_arguments(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_vectors(*arguments, **options)


PASSAGES = vectors(9, 16)
BITS = quantize_vectors(PASSAGES, "binary", center=np.zeros(16))
ZERO = np.zeros(16)


@pytest.mark.parametrize(
    ("passages", "options", "message"),
    [
        (BITS, {}, "bits of 16 dimensions, but no center; pass the one that quantize_vectors got"),
        (BITS, {"center": np.zeros(3)}, r"center has the shape \(3,\), expected \[16\]"),
        (PASSAGES, {"center": ZERO}, "center is given, but there are no bits"),
        (PASSAGES, {"quantized": BITS}, "but no center"),
        (PASSAGES, {"quantized": BITS[:5], "center": ZERO}, "quantized has 5 vectors, passages 9"),
        (PASSAGES, {"quantized": BITS, "center": ZERO, "oversample": 0}, "oversample is 0"),
        (PASSAGES[:, :9], {"quantized": BITS, "center": ZERO}, "vectors of 16 numbers, passages"),
        (BITS[:, :1], {"center": ZERO}, "vectors of 16 numbers, passages of 1"),
    ],
)
def test_bad_arguments_of_search(passages: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(vectors(2, 16, seed=1), passages, **options)


# Other libraries read the files


@pytest.fixture
def files(tmp_path: Path, collection: tuple[Vectors, Vectors]) -> dict[str, Path]:
    """The .npy file of each form, as a program would leave them."""
    passages = collection[1]
    forms = {
        "float32": passages,
        "int8": quantize_vectors(passages, "int8"),
        "binary": quantize_vectors(passages, "binary", center=passages.mean(axis=0)),
    }
    for name, array in forms.items():
        np.save(tmp_path / f"{name}.npy", array)
    return {name: tmp_path / f"{name}.npy" for name in forms}


def hamming(queries: npt.NDArray[np.uint8], passages: npt.NDArray[np.uint8]) -> Any:
    return np.unpackbits(queries[:, None] ^ passages, axis=2).sum(axis=2)


def test_faiss_reads_the_files(collection: tuple[Vectors, Vectors], files: dict[str, Path]) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    queries, passages = collection
    flat = faiss.IndexFlatIP(384)
    flat.add(np.load(files["float32"]))
    exact = search(queries, passages, K)
    scores, found = flat.search(queries, K)
    assert recall(found, exact.indices) > 0.999  # its scores are rounded otherwise
    np.testing.assert_allclose(scores, exact.scores, rtol=0, atol=1e-6)

    bits = np.load(files["binary"])
    asked = quantize_vectors(queries, "binary", center=passages.mean(axis=0))
    binary = faiss.IndexBinaryFlat(384)
    binary.add(bits)
    distances, _ = binary.search(asked, K)
    np.testing.assert_array_equal(distances, np.sort(hamming(asked, bits))[:, :K])


def test_usearch_reads_the_files(
    collection: tuple[Vectors, Vectors], files: dict[str, Path]
) -> None:
    index = pytest.importorskip("usearch.index", reason="usearch is not installed")
    queries, passages = collection
    int8 = np.load(files["int8"])
    exact = search(queries, passages, K).indices
    matches = index.search(int8, quantize_vectors(queries, "int8"), K, metric="cos", exact=True)
    assert recall(np.asarray(matches.keys), exact) > 0.97

    bits = np.load(files["binary"])
    asked = quantize_vectors(queries, "binary", center=passages.mean(axis=0))
    graph = index.Index(ndim=384, metric="hamming", dtype="b1")
    graph.add(np.arange(len(bits)), bits)
    found = graph.search(asked, K, exact=True)
    np.testing.assert_array_equal(found.distances, np.sort(hamming(asked, bits))[:, :K])
