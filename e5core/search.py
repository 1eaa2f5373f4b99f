"""Cosine similarity and exact search over vectors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Passages scored at a time: the block of scores stays small whatever the collection's size.
BLOCK_PASSAGES = 16_384
BLOCK_QUERIES = 256


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

    a, b     [n, hidden_size] and [m, hidden_size], of any length; a single vector may be
             [hidden_size]
    returns  [n, m] float32, without the axis of a single vector

    For E5 most values lie between 0.7 and 1.0: the models were trained with a temperature of
    0.01, so only their order means something (microsoft/unilm#1588).
    Raises ValueError for vectors of unequal size, zero vectors, NaN and infinities.
    """
    unit_a, unit_b = _unit("a", a), _unit("b", b)
    _same_size("a", unit_a, "b", unit_b)
    scores: npt.NDArray[np.float32] = unit_a @ unit_b.T
    return scores.reshape(np.shape(a)[:-1] + np.shape(b)[:-1])


def search(queries: npt.ArrayLike, passages: npt.ArrayLike, top_k: int = 10) -> SearchResult:
    """The `top_k` passages of highest cosine similarity for each query, exactly.

    queries   [n, hidden_size], or [hidden_size] for one
    passages  [m, hidden_size]; at most m are returned

    Scores are computed in blocks, so memory does not grow with n · m. Of equal scores the
    passage that comes first wins. Raises ValueError as `similarity` does.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected 1 or more")
    if np.ndim(passages) != 2:
        raise ValueError(f"passages has the shape {np.shape(passages)}, expected [m, hidden_size]")
    unit_queries, raw_passages = _unit("queries", queries), np.asarray(passages)
    _same_size("queries", unit_queries, "passages", raw_passages)
    k = min(top_k, len(raw_passages))
    scores = np.full((len(unit_queries), k), -np.inf, dtype=np.float32)
    indices = np.zeros((len(unit_queries), k), dtype=np.int64)
    for start in range(0, len(raw_passages), BLOCK_PASSAGES):
        block = _unit("passages", raw_passages[start : start + BLOCK_PASSAGES], first=start)
        block_indices = np.arange(start, start + len(block))
        for row in range(0, len(unit_queries), BLOCK_QUERIES):
            for query, found in enumerate(unit_queries[row : row + BLOCK_QUERIES] @ block.T, row):
                # Earlier blocks come first, so that a stable sort prefers the lower index.
                candidates = np.concatenate([scores[query], found])
                best = _top(candidates, k)
                positions = np.concatenate([indices[query], block_indices])
                scores[query], indices[query] = candidates[best], positions[best]
    shape = (*np.shape(queries)[:-1], k)
    return SearchResult(indices.reshape(shape), scores.reshape(shape))


def _top(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Indices of the k highest scores, best first, the lower index first among equals."""
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _unit(name: str, vectors: npt.ArrayLike, first: int = 0) -> npt.NDArray[np.float32]:
    """Vectors as [n, hidden_size] float32 of unit length; errors count from `first`."""
    array: npt.NDArray[Any] = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    if array.ndim != 2:
        raise ValueError(f"{name} has the shape {np.shape(vectors)}, expected [n, hidden_size]")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise ValueError(f"vector {first + bad[0]} of {name} is zero or not finite")
    unit: npt.NDArray[np.float32] = array / norms
    return unit


def _same_size(a_name: str, a: npt.NDArray[np.float32], b_name: str, b: npt.NDArray[Any]) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{a_name} has vectors of {a.shape[1]} numbers, {b_name} of {b.shape[1]}: "
            "they come from different models"
        )
