"""What experiments measure: how near the right text is, and differences of paired figures."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def accuracy(queries: npt.NDArray[Any], passages: npt.NDArray[Any]) -> float:
    """The share of queries [n, d] whose nearest passage [n, d] is the one in the same row."""
    nearest = (queries @ passages.T).argmax(axis=1)
    return float((nearest == np.arange(len(queries))).mean())


def ndcg_at_10(order: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> Floats:
    """nDCG@10 of each query [n], of which one place is right.

    order  [n, places], the best first
    right  [n]

    It is 1 / log2(rank + 1) within the first ten, and 0 below them.
    """
    found = order[:, :10] == right[:, None]
    return (found / np.log2(np.arange(found.shape[1]) + 2)).sum(axis=1)


def mean_and_error(values: Floats) -> tuple[float, float]:
    """The mean of values [n] and its standard error, in points (hundredths)."""
    return 100 * float(values.mean()), 100 * float(values.std() / len(values) ** 0.5)
