"""The best passages of several queries, kept while blocks of scores come in."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Exact = Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.float32]]

# Rows of a block in which a first bound is looked for: enough for some to be good.
_SAMPLE = 1024


class Best:
    """The passages that may be among the k best of each query.

    A matrix product finds the candidates. Its rounding depends on a vector's place in the matrix:
    the scores of equal passages were seen to differ by 1e-7. Therefore every passage is kept that
    rounding could have moved out of the best, and its score is computed again, each pair by
    itself. Nearly all scores lie below `_least`, so that one comparison is done with them.
    """

    def __init__(self, queries: int, k: int, margin: float, exact: Exact) -> None:
        """Keep `k` passages for each of `queries`.

        margin  the error that two rough scores may have together
        exact   the exact scores of the passages of a query: (query, passages [n]) → [n]
        """
        self._queries, self._k, self._margin, self._exact = queries, k, margin, exact
        # The least rough score that a passage needs: k passages are known to be as good.
        self._least = np.full(queries, -np.inf, dtype=np.float32)
        # Pairs of a query and a passage, and their scores. A query's passages ascend.
        self._pairs = [_no_pairs()]
        self._count = 0  # of pairs
        self._enough = 2 * queries * k  # pairs after which it is worth while to look for the best

    def offer(
        self,
        rough: npt.NDArray[np.float32],
        first: int,
        mask: npt.NDArray[np.bool_],
    ) -> None:
        """Look at the scores of the next passages.

        rough  [passages, queries], of passages from `first` on
        mask   of the same shape, to be written to
        """
        np.greater_equal(rough, self._least, out=mask)
        if np.count_nonzero(mask) > 2 * self._enough and len(rough) > self._k:
            self._raise_least(rough)
            np.greater_equal(rough, self._least, out=mask)
        found = np.flatnonzero(mask)
        if not len(found):
            return
        passages, queries = np.divmod(found, self._queries)
        self._pairs.append((queries, first + passages, rough.ravel()[found]))
        self._count += len(found)
        if self._count > 2 * self._enough:
            self._drop()

    def result(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The best passages [queries, k] and their exact scores, best first."""
        self._drop()
        indices = np.empty((self._queries, self._k), dtype=np.int64)
        scores = np.empty((self._queries, self._k), dtype=np.float32)
        for query, passages in enumerate(self._by_query()):
            exact = self._exact(query, passages)
            # The passages ascend, so that a stable sort prefers the lower index.
            best = np.argsort(-exact, kind="stable")[: self._k]
            indices[query], scores[query] = passages[best], exact[best]
        return indices, scores

    def _raise_least(self, rough: npt.NDArray[np.float32]) -> None:
        """Bound the scores from below by some of a block, taken from all over it."""
        step = max(1, len(rough) // max(_SAMPLE, 8 * self._k))
        sample = np.ascontiguousarray(rough[::step].T)
        kth = np.partition(sample, -self._k, axis=1)[:, -self._k]
        np.maximum(self._least, kth - self._margin, out=self._least)

    def _drop(self) -> None:
        """Forget the pairs that k others of their query beat by more than the margin."""
        queries, passages, scores = map(np.concatenate, zip(*self._pairs, strict=True))
        order = np.lexsort((-scores, queries))
        starts = np.searchsorted(queries[order], np.arange(self._queries + 1))
        have_k = np.flatnonzero(np.diff(starts) >= self._k)
        kth = scores[order[starts[have_k] + self._k - 1]]
        self._least[have_k] = np.maximum(self._least[have_k], kth - self._margin)
        near = scores >= self._least[queries]
        self._pairs = [(queries[near], passages[near], scores[near])]
        self._count = int(near.sum())
        if self._count > self._enough:
            self._decide()

    def _decide(self) -> None:
        """Many scores are nearly equal: keep the k of each query that are exactly the best."""
        kept = []
        for query, passages in enumerate(self._by_query()):
            exact = self._exact(query, passages)
            best = np.sort(np.argsort(-exact, kind="stable")[: self._k])
            kept.append((np.full(len(best), query), passages[best], exact[best]))
        self._pairs = kept
        self._count = sum(len(passages) for _, passages, _ in kept)

    def _by_query(self) -> list[npt.NDArray[np.int64]]:
        """The passages of each query, ascending."""
        queries, passages, _ = map(np.concatenate, zip(*self._pairs, strict=True))
        order = np.argsort(queries, kind="stable")
        starts = np.searchsorted(queries[order], np.arange(1, self._queries))
        return np.split(passages[order], starts)


def _no_pairs() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    none = np.empty(0, dtype=np.int64)
    return none, none, np.empty(0, dtype=np.float32)
