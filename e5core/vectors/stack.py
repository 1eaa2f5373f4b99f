"""Parts of an array joined into one, and the number of dimensions that a vector keeps."""

from collections import deque
from numbers import Integral

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


def kept(truncate_dim: int | None, size: int) -> int:
    """The numbers of a vector of `size` that are kept: all, or those asked for, if it has them."""
    whole = isinstance(truncate_dim, Integral) and not isinstance(truncate_dim, bool)
    if truncate_dim is not None and not (whole and 1 <= truncate_dim <= size):
        raise ValueError(
            f"truncate_dim is {truncate_dim!r}, this model's vectors have {size} numbers; pass 1 "
            f"to {size} (--truncate-dim)"
        )
    return size if truncate_dim is None else truncate_dim
