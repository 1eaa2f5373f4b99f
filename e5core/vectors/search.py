"""Search: exact, or with candidates from a smaller form of the vectors."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from e5core.vectors.arrays import as_array
from e5core.vectors.best import Best
from e5core.vectors.cosine import (
    check_same_size,
    exact_cosines,
    rough_lengths,
    unit_vectors,
    vector_lengths,
)

# A block of scores takes 16 MB, whatever the size of the collection.
BLOCK_PASSAGES = 16_384
BLOCK_QUERIES = 256

EXACT_ROWS = 2048  # passages that are scored exactly at a time, in float64


@dataclass(frozen=True)
class SearchResult:
    """The best passages of each query, best first.

    indices  [queries, k] int64    positions in the passages; [k] for a single query
    scores   [queries, k] float32  cosine similarities
    """

    indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


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
    wins. An Index does the same, and keeps what it knows of the passages for the next search.
    Raises ValueError as `similarity` does.
    """
    check_top_k(top_k)
    vectors = as_array(passages)
    if quantized is None:
        return Collection(vectors, center).search(queries, top_k)
    return rescored(queries, vectors, Collection(as_array(quantized), center), top_k, oversample)


def check_top_k(top_k: int) -> None:
    """ValueError unless something is asked for."""
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected 1 or more")


def rescored(
    queries: npt.ArrayLike,
    vectors: npt.NDArray[Any],
    small: "Collection",
    top_k: int,
    oversample: int,
) -> SearchResult:
    """The best of the candidates that a smaller form of the vectors gives, by the vectors."""
    if oversample < 1:
        raise ValueError(f"oversample is {oversample}, expected 1 or more")
    if len(small.vectors) != len(vectors):
        raise ValueError(f"quantized has {len(small.vectors)} vectors, passages {len(vectors)}")
    # Ascending, so that a stable sort prefers the lower index.
    near = np.sort(small.search(queries, top_k * oversample).indices)
    wide = np.atleast_2d(as_array(queries))
    check_same_size("queries", wide, "passages", vectors)
    near = near.reshape(len(wide), -1)
    k = min(top_k, near.shape[1])
    scores = np.empty((len(wide), k), dtype=np.float32)
    indices = np.empty((len(wide), k), dtype=np.int64)
    for query, found in enumerate(near):
        rows = vectors[found]
        vector_lengths("passages", rows, numbers=found)
        exact = exact_cosines(wide[query], rows)
        best = np.argsort(-exact, kind="stable")[:k]
        scores[query], indices[query] = exact[best], found[best]
    shape = (*as_array(queries).shape[:-1], k)
    return SearchResult(indices.reshape(shape), scores.reshape(shape))


class Collection:
    """Vectors that are searched in one form: numbers, or the signs of numbers as bits.

    Their lengths are computed in the first search, on the way, and kept.
    """

    def __init__(self, vectors: npt.NDArray[Any], center: npt.ArrayLike | None = None) -> None:
        """vectors [m, hidden_size], or [m, hidden_size / 8] uint8 with the center of the bits."""
        if vectors.ndim != 2:
            raise ValueError(f"passages has the shape {vectors.shape}, expected [m, hidden_size]")
        self.vectors = vectors
        self._center = center
        self._lengths: npt.NDArray[np.float32] | None = None  # once all are known

    def search(self, queries: npt.ArrayLike, top_k: int) -> SearchResult:
        """The `top_k` vectors of highest cosine similarity, as `search` describes them."""
        raw = np.atleast_2d(as_array(queries))
        unit = unit_vectors("queries", raw)
        hidden_size = raw.shape[1]
        packed = self._holds_bits(hidden_size)
        if packed:
            raw = raw - _check_center(self._center, hidden_size)
            unit = unit_vectors("queries", raw)
        else:
            check_same_size("queries", unit, "passages", self.vectors)
            if self._center is not None:
                raise ValueError("center is given, but there are no bits; leave it out")
        k = min(top_k, len(self.vectors))
        indices = np.zeros((len(unit), k), dtype=np.int64)
        scores = np.empty((len(unit), k), dtype=np.float32)
        if k and len(unit):
            self._fill(indices, scores, raw, unit, packed)
        shape = (*as_array(queries).shape[:-1], k)
        return SearchResult(indices.reshape(shape), scores.reshape(shape))

    def _fill(
        self,
        indices: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
        raw: npt.NDArray[Any],
        unit: npt.NDArray[np.float32],
        packed: bool,
    ) -> None:
        """Write the best k of each query, [queries, k], and their scores."""
        # It bounds the error of two float32 scores: hidden_size roundings for each, as many for
        # the lengths, and a few.
        margin = float((2 * unit.shape[1] + 8) * np.finfo(np.float32).eps)
        parts = [slice(row, row + BLOCK_QUERIES) for row in range(0, len(unit), BLOCK_QUERIES)]
        best = [
            Best(len(unit[part]), indices.shape[1], margin, partial(self._exact, raw[part], packed))
            for part in parts
        ]
        # One for all blocks: fresh memory for each would cost more than looking at the scores.
        most = min(BLOCK_QUERIES, len(unit))
        rows = self._block_rows(most)
        room = min(rows, len(self.vectors)) * most
        rough, mask = np.empty(room, dtype=np.float32), np.empty(room, dtype=np.bool_)
        for start, block, lengths in self._blocks(rows, unit.shape[1], packed):
            for part, kept in zip(parts, best, strict=True):
                queries = unit[part].T
                shape = (len(block), queries.shape[1])
                found = rough[: shape[0] * shape[1]].reshape(shape)
                # The passages first: BLAS is faster so for a few queries.
                np.matmul(block, queries, out=found)
                # Dividing the scores by the lengths is cheaper than dividing the vectors.
                found /= lengths[:, None]
                kept.offer(found, start, mask[: found.size].reshape(shape))
        for part, kept in zip(parts, best, strict=True):
            indices[part], scores[part] = kept.result()

    def _block_rows(self, queries: int) -> int:
        """Vectors of a block. With a few queries they are more, if no copy is made of them.

        BLAS' threads wait for each other at the end of every product, which on a busy machine
        takes longer than the product of a small block with one query.
        """
        if self.vectors.dtype != np.float32:
            return BLOCK_PASSAGES
        return BLOCK_PASSAGES * max(1, BLOCK_QUERIES // (4 * queries))

    def _blocks(
        self, size: int, hidden_size: int, packed: bool
    ) -> Iterator[tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Blocks of `size` vectors: where each starts, its numbers and their lengths [b]."""
        lengths = np.empty(0 if packed else len(self.vectors), dtype=np.float32)
        for start in range(0, len(self.vectors), size):
            rows = slice(start, start + size)
            if packed:
                signs = _signs(self.vectors[rows], hidden_size, np.float32)
                yield start, signs, np.full(len(signs), hidden_size**0.5, dtype=np.float32)
                continue
            block = self.vectors[rows].astype(np.float32, copy=False)
            if self._lengths is None:
                lengths[rows] = rough_lengths("passages", block, start)
            yield start, block, (lengths if self._lengths is None else self._lengths)[rows]
        if not packed and self._lengths is None:
            self._lengths = lengths

    def _exact(
        self, raw: npt.NDArray[Any], packed: bool, query: int, passages: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """The scores [n] of some passages for one of the queries."""
        scores = np.empty(len(passages), dtype=np.float32)
        for start in range(0, len(passages), EXACT_ROWS):
            rows = self.vectors[passages[start : start + EXACT_ROWS]]
            if packed:
                rows = _signs(rows, raw.shape[1], np.float64)
            scores[start : start + len(rows)] = exact_cosines(raw[query], rows)
        return scores

    def _holds_bits(self, hidden_size: int) -> bool:
        size = self.vectors.shape[1]
        return self.vectors.dtype == np.uint8 and size == -(-hidden_size // 8) != hidden_size


def _check_center(center: npt.ArrayLike | None, hidden_size: int) -> npt.NDArray[Any]:
    if center is None:
        raise ValueError(
            f"there are bits of {hidden_size} dimensions, but no center; pass the one that "
            "quantize_vectors got"
        )
    array = as_array(center)
    if array.shape != (hidden_size,):
        raise ValueError(f"center has the shape {array.shape}, expected [{hidden_size}]")
    return array


# Eight signs for each byte: 0 stands for -1. Looking them up is faster than unpacking bits.
_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) * np.float32(2) - 1


def _signs(bits: npt.NDArray[np.uint8], hidden_size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """[m, hidden_size] of 1 and -1 from the bits of as many vectors."""
    wide = np.take(_SIGNS, bits, axis=0).reshape(len(bits), -1)
    return wide[:, :hidden_size].astype(dtype, copy=False)
