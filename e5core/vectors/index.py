"""An index: vectors that are searched again and again, with what they stand for."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from e5core.texts.containers import several
from e5core.vectors.arrays import as_array
from e5core.vectors.compress import Form, quantize_vectors
from e5core.vectors.search import Collection, SearchResult, check_top_k, rescored
from e5core.vectors.stored import Row, open_stored

_BLOCK = 16_384  # vectors that are quantised at a time


class Index:
    """Vectors to search in, and the ids and texts that they stand for.

    vectors    [m, hidden_size], as they were given; in the file after `open`
    ids        a name for each vector, or None
    texts      the text of each vector, or None
    rows       after `open`, where each vector comes from: {"id", "file", "line"}, and of a passage
               of a longer text {"passage", "start", "end"} too
    made_from  after `open`, the model and the options that made the vectors, from `<output>.json`

    One index can be shared between threads.
    """

    def __init__(
        self,
        vectors: npt.ArrayLike,
        ids: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        *,
        quantize: Form | None = None,
        center: npt.ArrayLike | None = None,
    ) -> None:
        """Take vectors as they are: no copy is made, and none is read before the first search.

        vectors   [m, hidden_size] floats of any length, or what quantize_vectors returned
        ids       of anything; vectors with equal ids are passages of one document
        texts     one for each vector
        quantize  "int8" or "binary": make this form of the vectors and find candidates in it. Only
                  these are scored by `vectors`, which may then be larger than the memory
        center    of the bits, if `vectors` are the bits of quantize_vectors

        Raises ValueError if the numbers of vectors, ids and texts differ, TypeError for ids or
        texts that stand in no order.
        """
        self.vectors = as_array(vectors)
        self.ids, self.texts = _in_order(ids, "ids"), _in_order(texts, "texts")
        self.rows: Sequence[Row] | None = None
        self.made_from: dict[str, Any] | None = None
        self._whole = Collection(self.vectors, center)
        for name, others in (("ids", self.ids), ("texts", self.texts)):
            if others is not None and len(others) != len(self.vectors):
                raise ValueError(f"there are {len(self.vectors)} vectors and {len(others)} {name}")
        if quantize is not None and center is not None:
            raise ValueError("center is of vectors that are bits already; leave quantize out")
        self._small = None if quantize is None else _quantized(self.vectors, quantize)
        self._documents: npt.NDArray[np.int64] | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        texts: Sequence[str] | None = None,
        quantize: Form | None = None,
    ) -> "Index":
        """Open what `e5core embed` wrote: .npy, .safetensors, or a folder of .parquet shards.

        The vectors stay in the file, except those of Parquet, which needs pyarrow. Their ids are
        read when they are asked for; a row without an id is known by its file and line.

        Raises OSError, or ValueError if the file is damaged or does not fit what lies beside it.
        """
        stored = open_stored(Path(path))
        index = cls(stored.vectors, None, texts, quantize=quantize)
        index.rows, index.made_from = stored.rows, stored.made_from
        index.ids = None if stored.rows is None else _Ids(stored.rows)
        return index

    def __len__(self) -> int:
        return len(self.vectors)

    def search(
        self,
        queries: npt.ArrayLike,
        top_k: int = 10,
        *,
        by_document: bool = False,
        oversample: int = 8,
    ) -> SearchResult:
        """Find the `top_k` vectors of highest cosine similarity for each query.

        queries      [n, hidden_size], or [hidden_size] for one query
        top_k        vectors a query; m if there are fewer
        by_document  take the best passage of each document alone; `top_k` then counts documents
        oversample   candidates for each of the `top_k`, of an index that is quantised

        returns      indices and scores [n, top_k], without the first axis for one query, as
                     `e5core.search` returns them: exact unless the index is quantised, and of
                     equal scores the first vector wins

        Raises ValueError if sizes differ, or a vector is zero or not finite.
        """
        check_top_k(top_k)
        if by_document:
            return self._search_documents(queries, top_k, oversample)
        if self._small is None:
            return self._whole.search(queries, top_k)
        return rescored(queries, self.vectors, self._small, top_k, oversample)

    def _search_documents(
        self, queries: npt.ArrayLike, top_k: int, oversample: int
    ) -> SearchResult:
        """The best passage of each document: of more and more passages, until there are enough."""
        if self._documents is None:
            self._documents = self._number_documents()
        k = min(top_k, int(self._documents.max(initial=-1)) + 1)
        wanted = top_k
        while True:
            wanted = min(4 * wanted, max(len(self), 1))
            found = self.search(queries, wanted, oversample=oversample)
            indices, scores = np.atleast_2d(found.indices), np.atleast_2d(found.scores)
            firsts = [
                np.sort(np.unique(documents, return_index=True)[1])[:k]
                for documents in self._documents[indices]
            ]
            if wanted >= len(self) or all(len(first) == k for first in firsts):
                break
        best = np.array(firsts, dtype=np.int64).reshape(len(indices), k)
        shape = (*found.indices.shape[:-1], k)
        return SearchResult(
            np.take_along_axis(indices, best, axis=1).reshape(shape),
            np.take_along_axis(scores, best, axis=1).reshape(shape),
        )

    def _number_documents(self) -> npt.NDArray[np.int64]:
        """The document of each vector [m], counted from 0."""
        if self.rows is not None:  # the passages of a document lie side by side
            documents = np.empty(len(self), dtype=np.int64)
            number, before = -1, None
            for place, row in enumerate(self.rows):
                if (origin := (row["file"], row["line"])) != before:
                    number, before = number + 1, origin
                documents[place] = number
            return documents
        if self.ids is None:
            raise ValueError("by_document needs ids that say which passages are of one document")
        numbers: dict[Hashable, int] = {}
        found = (numbers.setdefault(name, len(numbers)) for name in self.ids)
        return np.fromiter(found, dtype=np.int64, count=len(self))


def _in_order(values: Any, name: str) -> Sequence[Any] | None:
    """What there is one of for each vector, by place: a Series is asked by its labels otherwise."""
    if values is None:
        return None
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{name} is a {type(values).__name__}, expected one for each vector")
    values = several(values, name)
    keep = isinstance(values, (Sequence, np.ndarray))
    return cast(Sequence[Any], values) if keep else list(values)


class _Ids(Sequence[Any]):
    """The ids of rows, which are read when they are asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [_name(row) for row in self._rows[place]]
        return _name(self._rows[place])


def _name(row: Row) -> Any:
    return row["id"] if "id" in row else f"{row['file']}, line {row['line']}"


def _quantized(vectors: npt.NDArray[Any], form: Form) -> Collection:
    """The vectors in a smaller form, made block by block; bits are taken around the mean."""
    starts = range(0, len(vectors), _BLOCK)
    center = None
    if form == "binary":
        sums = [vectors[start : start + _BLOCK].sum(axis=0, dtype=np.float64) for start in starts]
        center = np.sum(sums, axis=0) / max(len(vectors), 1)
    parts = [
        quantize_vectors(vectors[start : start + _BLOCK], form, center=center) for start in starts
    ]
    return Collection(np.concatenate(parts) if parts else vectors, center if parts else None)
