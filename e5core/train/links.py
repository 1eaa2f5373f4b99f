"""Pairs of numbers, and what belongs to a number in all of them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


class Links:
    """Pairs such as a query and its positive, each once; a pair takes eight bytes."""

    def __init__(self, first: Numbers, second: Numbers, count: int) -> None:
        """first, second: the numbers of each pair, from 0 to below `count`."""
        self._count = count
        self._pairs = np.unique(first * count + second)

    def counts(self, numbers: Numbers) -> Numbers:
        """How many pairs have each number as their first one."""
        starts, ends = (np.searchsorted(self._pairs, (numbers + i) * self._count) for i in (0, 1))
        counts: Numbers = ends - starts
        return counts

    def of(self, number: int) -> Numbers:
        """The second numbers, in order, of the pairs whose first one this is."""
        start, end = np.searchsorted(self._pairs, np.array([number, number + 1]) * self._count)
        return self._pairs[start:end] - number * self._count

    def have(self, number: int, seconds: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which of the second numbers make a pair with this one."""
        wanted = number * self._count + np.array(seconds, dtype=np.int64)
        starts, ends = (np.searchsorted(self._pairs, wanted, side) for side in ("left", "right"))
        return starts < ends


def places_of(numbers: Numbers, among: Numbers) -> Numbers:
    """Where those of `numbers` that are there are in `among`; both in order, nothing twice."""
    few, many = (numbers, among) if len(numbers) < len(among) else (among, numbers)
    if not len(few):
        return few
    places = np.searchsorted(many, few)
    found = many[np.minimum(places, len(many) - 1)] == few
    return places[found] if few is numbers else np.flatnonzero(found)
