"""Texts as callers hand them over: which containers hold several, and which texts are blank."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, MappingView, Set
from typing import Any

# Characters that print nothing though Unicode calls them letters, marks or symbols: the fillers of
# Hangul, the empty Braille cell, the joiner of graphemes, and the selectors of variants.
_INVISIBLE = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"}
_INVISIBLE |= {*map(chr, (*range(0x180B, 0x180E), 0x180F, *range(0xFE00, 0xFE10)))}
_INVISIBLE |= {*map(chr, range(0xE0100, 0xE01F0))}
_BLANK_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp"}


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: no character, or blanks and zero-width ones alone."""
    # Nearly every text shows within a few characters; of others each kind is looked at once.
    return _all_blank(text[:8]) and _all_blank(set(text))


def _all_blank(characters: Iterable[str]) -> bool:
    return all(
        unicodedata.category(character) in _BLANK_CATEGORIES or character in _INVISIBLE
        for character in characters
    )


def note_blank(texts: Iterable[str], blank: list[bool]) -> Iterator[str]:
    """Yield the same texts, and append to `blank` whether each of them is blank."""
    for text in texts:
        blank.append(isinstance(text, str) and is_blank(text))
        yield text


def several(texts: Any, name: str = "texts") -> Iterable[str]:
    """Texts that can be taken one after another, from whatever holds them in an order.

    name  what errors call the argument

    Tables iterate over the names of their columns, and dicts over their keys. These would be
    embedded in place of the texts, so a TypeError names the column to pass. Raises TypeError too
    if there are no texts, or if they have no order.
    """
    kind = type(texts).__name__
    columns = _columns(texts)
    if columns is not None:
        raise TypeError(
            f"{name} is a {kind} with {_list(columns)}, and its texts are in one of them; pass "
            f"{name}[{next(iter(columns), 'name')!r}], or the column that holds the texts"
        )
    if isinstance(texts, Set) and not isinstance(texts, MappingView):
        raise TypeError(
            f"{name} is a {kind}, whose order is chance: nobody could tell whose vector is whose; "
            f"pass a list, such as sorted({name})"
        )
    dimensions = getattr(texts, "ndim", 1)
    if isinstance(dimensions, int) and dimensions != 1:
        shape = list(getattr(texts, "shape", ()))  # groups of a DataFrame have none
        raise TypeError(
            f"{name} is a {kind} of the shape {shape}, expected one dimension; pass "
            + (f"one column, such as {name}[:, 0]" if dimensions else f"{name}.tolist()")
        )
    if isinstance(texts, (bytes, bytearray, memoryview)) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} is a {kind}, expected a str or several")
    if type(texts).__module__ == "pyarrow.lib" and hasattr(texts, "to_pylist"):
        # Arrow's arrays hand out scalars of their own.
        return (scalar.as_py() for scalar in texts)
    return texts


def one(text: Any, name: str = "text") -> str:
    """A single text; TypeError for anything else, such as a list of one."""
    if not isinstance(text, str):
        raise TypeError(f"{name} is {text!r:.80} of type {type(text).__name__}, expected one str")
    return text


def describe_item(index: int, item: Any) -> str:
    """What is wrong with an item among texts that is no text, and what to pass in its place."""
    sentence = f"text {index} is {item!r:.80} of type {type(item).__name__}, expected str"
    if isinstance(item, Mapping):
        field = next(iter(item), "text")
        return f"{sentence}; pass one field of each, such as [row[{field!r}] for row in rows]"
    return sentence


def _columns(texts: Any) -> list[Any] | None:
    """The names of the columns, fields or keys of a table or a mapping; None for anything else.

    They are looked for on the type, since a Series shows its labels as attributes of its own.
    """
    if isinstance(texts, Mapping):
        return list(texts)
    for attribute in ("column_names", "columns"):  # Arrow's and datasets', pandas' and polars'
        if hasattr(type(texts), attribute) and not isinstance(texts, type):
            names = getattr(texts, attribute)
            return [] if names is None else list(names)  # a stream may not know its own
    fields = getattr(getattr(texts, "dtype", None), "names", None)  # of a structured array
    return list(fields) if fields else None


def _list(columns: list[Any]) -> str:
    shown = ", ".join(f"{column!r:.40}" for column in columns[:10])
    return f"the columns or keys {shown}{', …' if len(columns) > 10 else ''}" if shown else "keys"
