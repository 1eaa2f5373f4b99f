"""A stream of texts in slices of bounded size, and what is made of them one behind."""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any, TypeVar

import torch

from e5core.texts.containers import describe_item

Item = TypeVar("Item")
_NONE: Any = object()

# Texts are tokenized, sorted by length and embedded in slices of at most this many texts
# and about this many characters, so that memory does not grow with the input.
SLICE_TEXTS = 4096
SLICE_CHARACTERS = 4_000_000


def slices(texts: Iterable[str], characters: Iterable[int] | None = None) -> Iterator[list[str]]:
    """Cut a stream of texts into lists of bounded size, in order.

    characters  a number for each slice, which is whole when it has so many; there have to be
                enough of them. None takes SLICE_CHARACTERS for all

    Raises TypeError, naming the text, if one is not a str.
    """
    limits = repeat(SLICE_CHARACTERS) if characters is None else iter(characters)
    most = next(limits)
    some: list[str] = []
    size = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(describe_item(index, text))
        some.append(text)
        size += len(text)
        if len(some) == SLICE_TEXTS or size >= most:
            yield some
            some, size, most = [], 0, next(limits)
    if some:
        yield some


def one_behind(items: Iterable[Item], device: torch.device) -> Iterator[Item]:
    """Yield the same items in the same order, beside a GPU each when the next one is begun."""
    if device.type == "cpu":
        yield from items
        return
    last = _NONE
    try:
        for item in items:
            if last is not _NONE:
                yield last
            last = item
    except Exception:  # of the next item; the caller has not seen this one yet
        if last is not _NONE:
            yield last
        raise
    if last is not _NONE:
        yield last
