"""Cosine similarity, and the lengths that it divides by."""

from typing import Any

import numpy as np
import numpy.typing as npt

from e5core.vectors.arrays import as_array

_FLOAT32 = np.finfo(np.float32)
# Between these, squares that are summed in float32 neither vanish nor overflow.
_SAFE_SQUARES = (1e-30, 1e30)


def similarity(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Cosine similarity of every vector of `a` with every vector of `b`.

    a, b     [n, hidden_size] and [m, hidden_size], of any length, or [hidden_size] for one vector
    returns  [n, m] float32, without the axis of a single vector

    For E5 most values lie between 0.7 and 1.0: the models were trained with a temperature of
    0.01, so only their order means something (microsoft/unilm#1588).
    Raises ValueError if sizes differ, or if a vector is zero or has a NaN or an infinity.
    """
    unit_a, unit_b = unit_vectors("a", a), unit_vectors("b", b)
    check_same_size("a", unit_a, "b", unit_b)
    scores: npt.NDArray[np.float32] = unit_a @ unit_b.T
    return scores.reshape(as_array(a).shape[:-1] + as_array(b).shape[:-1])


def unit_vectors(name: str, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Vectors as [n, hidden_size] float32 of unit length."""
    array = np.atleast_2d(as_array(vectors))
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


def rough_lengths(
    name: str, vectors: npt.NDArray[np.float32], first: int
) -> npt.NDArray[np.float32]:
    """The same lengths, each with up to hidden_size / 2 roundings, in a sixth of the time."""
    squares = np.einsum("ij,ij->i", vectors, vectors)
    low, high = _SAFE_SQUARES
    doubtful = np.flatnonzero(~((squares > low) & (squares < high)))
    lengths: npt.NDArray[np.float32] = np.sqrt(squares)
    if len(doubtful):
        lengths[doubtful] = vector_lengths(name, vectors[doubtful], numbers=first + doubtful)
    return lengths


def exact_cosines(query: npt.NDArray[Any], passages: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Cosines [m], summed row by row in float64, so that each depends on its own pair alone."""
    wide, query = passages.astype(np.float64), query.astype(np.float64)
    squares = (wide * wide).sum(axis=1) * (query * query).sum()
    cosines: npt.NDArray[np.float64] = (wide * query).sum(axis=1) / np.sqrt(squares)
    return cosines.astype(np.float32)


def check_same_size(a_name: str, a: npt.NDArray[Any], b_name: str, b: npt.NDArray[Any]) -> None:
    """ValueError if the vectors of `a` and `b` have different numbers of dimensions."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{a_name} has vectors of {a.shape[1]} numbers, {b_name} of {b.shape[1]}: "
            "they come from different models"
        )
