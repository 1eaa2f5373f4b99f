"""Cosine similarity and search: exact, or with candidates from a smaller form of the vectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A block of scores takes 16 MB, whatever the size of the collection.
BLOCK_PASSAGES = 16_384
BLOCK_QUERIES = 256

_FLOAT32 = np.finfo(np.float32)


@dataclass(frozen=True)
class SearchResult:
    """The best passages of each query, best first.

    indices  [queries, k] int64    positions in the passages; [k] for a single query
    scores   [queries, k] float32  cosine similarities
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def similarity(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Cosine similarity of every vector of `a` with every vector of `b`.

    a, b     [n, hidden_size] and [m, hidden_size], of any length, or [hidden_size] for one vector
    returns  [n, m] float32, without the axis of a single vector

    For E5 most values lie between 0.7 and 1.0: the models were trained with a temperature of
    0.01, so only their order means something (microsoft/unilm#1588).
    Raises ValueError if sizes differ, or if a vector is zero or has a NaN or an infinity.
    """
    unit_a, unit_b = _unit("a", a), _unit("b", b)
    _same_size("a", unit_a, "b", unit_b)
    scores: npt.NDArray[np.float32] = unit_a @ unit_b.T
    return scores.reshape(np.shape(a)[:-1] + np.shape(b)[:-1])


def search(
    queries: npt.ArrayLike,
    passages: npt.ArrayLike,
    top_k: int = 10,
    *,
    quantized: npt.ArrayLike | None = None,
    center: npt.ArrayLike | None = None,
    oversample: int = 8,
) -> SearchResult:
    """Find the `top_k` passages of highest cosine similarity for each query.

    queries     [n, hidden_size], or [hidden_size] for one query
    passages    [m, hidden_size] floats, or what quantize_vectors returns: int8 or "binary"
    top_k       passages a query; m if there are fewer
    quantized   a form of the same passages that quantize_vectors returned. The
                `top_k * oversample` best are found in it and scored again by `passages`. Only
                those rows of `passages` are read, so it may lie in a file (numpy.load with
                mmap_mode="r")
    center      the center of the bits, if `passages` or `quantized` is "binary". Scores are then
                cosines of query - center with the signs
    oversample  candidates for each of the `top_k`, with `quantized`

    Without `quantized` the search is exact over the numbers in `passages`. Scores are computed in
    blocks, so memory does not grow with n * m. If scores are equal, the passage that comes first
    wins. Raises ValueError as `similarity` does.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected 1 or more")
    vectors = np.asarray(passages)
    if quantized is None:
        return _search(queries, vectors, top_k, center)
    if oversample < 1:
        raise ValueError(f"oversample is {oversample}, expected 1 or more")
    small = np.asarray(quantized)
    if len(small) != len(vectors):
        raise ValueError(f"quantized has {len(small)} vectors, passages {len(vectors)}")
    # Ascending, so that a stable sort prefers the lower index.
    near = np.sort(_search(queries, small, top_k * oversample, center).indices)
    wide = np.atleast_2d(np.asarray(queries))
    _same_size("queries", wide, "passages", vectors)
    near = near.reshape(len(wide), -1)
    k = min(top_k, near.shape[1])
    scores = np.empty((len(wide), k), dtype=np.float32)
    indices = np.empty((len(wide), k), dtype=np.int64)
    for query, found in enumerate(near):
        rows = vectors[found]
        vector_lengths("passages", rows, numbers=found)
        exact = _cosines(wide[query], rows)
        best = np.argsort(-exact, kind="stable")[:k]
        scores[query], indices[query] = exact[best], found[best]
    shape = (*np.shape(queries)[:-1], k)
    return SearchResult(indices.reshape(shape), scores.reshape(shape))


def _search(
    queries: npt.ArrayLike,
    vectors: npt.NDArray[Any],
    top_k: int,
    center: npt.ArrayLike | None,
) -> SearchResult:
    """Search exactly over `vectors`, which hold numbers, or the signs of numbers as bits."""
    raw_queries = np.atleast_2d(np.asarray(queries))
    unit_queries = _unit("queries", raw_queries)
    if vectors.ndim != 2:
        raise ValueError(f"passages has the shape {vectors.shape}, expected [m, hidden_size]")
    hidden_size = raw_queries.shape[1]
    packed = vectors.dtype == np.uint8 and vectors.shape[1] == -(-hidden_size // 8) != hidden_size
    if packed:
        raw_queries = raw_queries - _center(center, hidden_size)
        unit_queries = _unit("queries", raw_queries)
    else:
        _same_size("queries", unit_queries, "passages", vectors)
        if center is not None:
            raise ValueError("center is given, but there are no bits; leave it out")
    k = min(top_k, len(vectors))
    scores = np.full((len(unit_queries), k), -np.inf, dtype=np.float32)
    indices = np.zeros((len(unit_queries), k), dtype=np.int64)

    # The matrix product finds the candidates. Its rounding depends on a vector's place in the
    # matrix: the scores of equal passages were seen to differ by 1e-7. Therefore every score that
    # rounding could have moved into or out of the best is computed again, each pair by itself. The
    # margin bounds the error of two float32 scores: hidden_size roundings for each and a few for
    # the lengths.
    margin = (hidden_size + 8) * _FLOAT32.eps
    for start in range(0, len(vectors), BLOCK_PASSAGES):
        block = vectors[start : start + BLOCK_PASSAGES]
        if packed:
            block = _signs(block, hidden_size)
        # Dividing the scores by the lengths is cheaper than dividing the vectors.
        lengths = vector_lengths("passages", block, first=start).astype(np.float32)
        columns = block.astype(np.float32, copy=False).T
        for row in range(0, len(unit_queries), BLOCK_QUERIES):
            rough = unit_queries[row : row + BLOCK_QUERIES] @ columns
            rough /= lengths
            for query, found in enumerate(rough, row):
                near = _candidates(found, k, scores[query, -1], margin)
                if not len(near):
                    continue
                # Earlier blocks come first, so that a stable sort prefers the lower index.
                exact = np.concatenate([scores[query], _cosines(raw_queries[query], block[near])])
                positions = np.concatenate([indices[query], start + near])
                best = np.argsort(-exact, kind="stable")[:k]
                scores[query], indices[query] = exact[best], positions[best]
    shape = (*np.shape(queries)[:-1], k)
    return SearchResult(indices.reshape(shape), scores.reshape(shape))


def _center(center: npt.ArrayLike | None, hidden_size: int) -> npt.NDArray[Any]:
    if center is None:
        raise ValueError(
            f"there are bits of {hidden_size} dimensions, but no center; pass the one that "
            "quantize_vectors got"
        )
    array = np.asarray(center)
    if array.shape != (hidden_size,):
        raise ValueError(f"center has the shape {array.shape}, expected [{hidden_size}]")
    return array


def _signs(bits: npt.NDArray[np.uint8], hidden_size: int) -> npt.NDArray[np.int8]:
    """[m, hidden_size] of 1 and -1 from the bits of as many vectors."""
    return np.unpackbits(bits, axis=1, count=hidden_size).astype(np.int8) * 2 - 1


def _candidates(
    scores: npt.NDArray[np.float32], k: int, least: np.float32, margin: np.float32
) -> npt.NDArray[np.int64]:
    """The places, ascending, of scores that may be among the k best and above `least`."""
    near = np.flatnonzero(scores >= least - margin)
    if len(near) > k:
        found = scores[near]
        near = near[found >= np.partition(found, -k)[-k] - margin]
    return near


def _cosines(query: npt.NDArray[Any], passages: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Cosines [m], summed row by row in float64, so that each depends on its own pair alone."""
    wide, query = passages.astype(np.float64), query.astype(np.float64)
    squares = (wide * wide).sum(axis=1) * (query * query).sum()
    cosines: npt.NDArray[np.float64] = (wide * query).sum(axis=1) / np.sqrt(squares)
    return cosines.astype(np.float32)


def _unit(name: str, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Vectors as [n, hidden_size] float32 of unit length."""
    array = np.atleast_2d(np.asarray(vectors))
    if array.ndim != 2:
        raise ValueError(f"{name} has the shape {array.shape}, expected [n, hidden_size]")
    unit: npt.NDArray[np.float64] = array / vector_lengths(name, array)[:, None]
    return unit.astype(np.float32)


def vector_lengths(
    name: str,
    vectors: npt.NDArray[Any],
    first: int = 0,
    numbers: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float64]:
    """Lengths [n] of vectors [n, hidden_size].

    Raises ValueError if a vector is zero or not finite. The error numbers vectors from `first` on,
    or by `numbers`, which holds a number for each.
    """
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    lengths: npt.NDArray[np.float64] = np.sqrt(squares)
    good = (lengths >= _FLOAT32.tiny) & (lengths <= _FLOAT32.max)  # NaN is neither
    if not good.all():
        place = first + np.argmin(good) if numbers is None else numbers[np.argmin(good)]
        raise ValueError(f"vector {place} of {name} is zero or not finite")
    return lengths


def _same_size(a_name: str, a: npt.NDArray[Any], b_name: str, b: npt.NDArray[Any]) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{a_name} has vectors of {a.shape[1]} numbers, {b_name} of {b.shape[1]}: "
            "they come from different models"
        )
