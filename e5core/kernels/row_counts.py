"""The numbers of rows that products are fed with: few, since oneDNN keeps memory for each.

For each number of rows that it meets, oneDNN keeps a primitive for a thousand calls to come:
about 3 MB for the four products of a layer (torch 2.13, e5-small and large alike, 2026-11). So
products get rows of zeros behind their own, up to the next number of a series. A row's bits do
not depend on the rows beside it.
"""

import torch.nn.functional as F
from torch import Tensor

# Numbers in each doubling. Rows of zeros cost as much as others: with 16 numbers they are a 16th
# at most and 2% on the average, and there are 112 numbers up to 1,024 rows.
PER_DOUBLING = 16


def row_count(rows: int) -> int:
    """The least number of the series that is no less: all up to 32, then every 2nd up to 64, …"""
    step = max(1, (1 << (rows - 1).bit_length()) // (2 * PER_DOUBLING))
    return -(-rows // step) * step


def fill_rows(x: Tensor, rows: int) -> Tensor:
    """x [tokens, features] with rows of zeros behind its own."""
    return x if x.shape[0] == rows else F.pad(x, (0, 0, 0, rows - x.shape[0]))


def own_rows(filled: Tensor, x: Tensor) -> Tensor:
    """The first rows, as many as x has."""
    return filled if filled.shape[0] == x.shape[0] else filled[: x.shape[0]]
