"""A stream of texts in slices of bounded size, and the next one ahead of time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from e5core.texts.containers import describe_item

Item = TypeVar("Item")
_END: Any = object()

# Texts are tokenized, sorted by length and embedded in slices of at most this many texts
# and about this many characters, so that memory does not grow with the input.
SLICE_TEXTS = 4096
SLICE_CHARACTERS = 4_000_000


def slices(texts: Iterable[str], most_characters: int | None = None) -> Iterator[list[str]]:
    """Cut a stream of texts into lists of bounded size, in order.

    most_characters  that start another text; None takes SLICE_CHARACTERS

    Raises TypeError, naming the text, if one is not a str.
    """
    most_characters = most_characters or SLICE_CHARACTERS
    some: list[str] = []
    characters = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(describe_item(index, text))
        some.append(text)
        characters += len(text)
        if len(some) == SLICE_TEXTS or characters >= most_characters:
            yield some
            some, characters = [], 0
    if some:
        yield some


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items in the same order; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        pending = executor.submit(next, items, _END)
        while (item := pending.result()) is not _END:
            pending = executor.submit(next, items, _END)
            yield item


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the same items in the same order, each when the next one has been made."""
    last = _END
    for item in items:
        if last is not _END:
            yield last
        last = item
    if last is not _END:
        yield last
