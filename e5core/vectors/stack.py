"""Vectors that come in parts, as one array."""

from collections import deque

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def stack(parts: deque[Vectors], rows: int, dimension: int) -> Vectors:
    """Parts as one array. Each is freed as it is copied: there are never all of them twice."""
    stacked = np.empty((rows, dimension), dtype=np.float32)
    place = 0
    while parts:
        part = parts.popleft()
        stacked[place : place + len(part)] = part
        place += len(part)
    return stacked
