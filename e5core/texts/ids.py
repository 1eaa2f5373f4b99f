"""The ids of several texts as one array, checked against the vocabulary."""

import operator
from array import array
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from e5core.texts.errors import TextError

Ids = npt.NDArray[np.int64]


def flatten(texts: Sequence[Sequence[int]], lengths: Ids, vocab_size: int) -> Ids:
    """The ids of all texts, one after another, from lists or arrays.

    lengths  [texts]  how many each has, none of them 0

    Raises TextError if one is outside the vocabulary, TypeError for what is no integer.
    """
    try:
        ids = _joined(texts, int(lengths.sum()))
        bad = (ids < 0) | (ids >= vocab_size)
    except OverflowError:  # an id of more than 64 bits
        bad = np.array([not 0 <= i < vocab_size for text in texts for i in text])
    if bad.any():
        place, stops = int(np.argmax(bad)), lengths.cumsum()
        index = int(np.searchsorted(stops, place, side="right"))
        culprit = texts[index][place - int(stops[index] - lengths[index])]
        raise TextError(
            f"{{}} has the id {culprit}, the vocabulary has rows 0 to {vocab_size - 1}; tokenize "
            "with the tokenizer of this model",
            index,
        )
    return ids


def _joined(texts: Sequence[Sequence[int]], count: int) -> Ids:
    if any(isinstance(ids, np.ndarray) for ids in texts):
        joined = np.concatenate(texts)
        if joined.dtype.kind in "iu":
            return joined.astype(np.int64, copy=False)
    try:
        # numpy would take "7" and 7.5 as well.
        return np.frombuffer(array("q", chain.from_iterable(texts)), np.int64, count)
    except TypeError:
        index, culprit = next(
            (index, i) for index, text in enumerate(texts) for i in text if not _is_integer(i)
        )
        raise TypeError(
            f"text {index} has {culprit!r:.80} of type {type(culprit).__name__} among its ids, "
            "expected int"
        ) from None


def _is_integer(i: object) -> bool:
    try:
        operator.index(i)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True
