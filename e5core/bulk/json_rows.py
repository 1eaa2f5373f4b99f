"""Rows from JSON: an object a line, or one array of objects."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

from e5core.bulk.blocks import Blocks
from e5core.bulk.rows import (
    BadRow,
    Columns,
    Row,
    describe_bytes,
    list_names,
    make_row,
    without_end,
)

# An element of an array that is not whole after so many characters is a fault.
ELEMENT_LIMIT = 64_000_000
_SPACE = re.compile(r"[ \t\r\n]*")
_ABSENT: Any = object()


class Value(NamedTuple):
    """What a line, or an element of an array, holds; `kind` is which of the two."""

    line: int
    kind: str
    content: object


def read_json(
    blocks: Blocks, file: str, columns: Columns, delimiter: str | None
) -> Iterator[Row | BadRow]:
    """A row for each line that holds a JSON object, or for each object of an array."""
    for value in read_values(blocks, file):
        yield value if isinstance(value, BadRow) else _row(value, file, columns)


def read_values(blocks: Blocks, file: str) -> Iterator[Value | BadRow]:
    """The value of each line that is not blank, or of each element of one array."""
    if blocks.begins_with(b"["):
        return _read_array(iter(blocks), file)
    return _read_lines(blocks.lines(), file)


def _read_lines(lines: Iterator[bytes], file: str) -> Iterator[Value | BadRow]:
    """The value of each line; blank lines have none."""
    for number, line in enumerate(lines, 1):
        line = without_end(line, number)
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield BadRow(file, number, describe_bytes(error))
        except (ValueError, RecursionError) as error:
            yield BadRow(file, number, f"the line is not JSON: {error}")
        else:
            yield Value(number, "line", fields)


def _row(value: Value, file: str, columns: Columns) -> Row | BadRow:
    line, kind, fields = value
    if not isinstance(fields, dict):
        return BadRow(file, line, describe_other(value))
    values = [_find(fields, name) for name in columns.names]
    for name, value in zip(columns.names, values, strict=True):
        if value is _ABSENT:
            reason = f"there is no field {name!r}; the {kind} has {list_names(fields)}"
            return BadRow(file, line, reason)
    return make_row(file, line, values[0], values[1] if columns.id is not None else None, columns)


def describe_other(value: Value) -> str:
    """What is wrong with a value that is no object."""
    return f"the {value.kind} is a JSON {type(value.content).__name__}, expected an object"


def _find(fields: object, name: str) -> Any:
    """The field of a name, or of a path such as "data.text" where no field has that name."""
    if not isinstance(fields, dict):
        return _ABSENT
    if name in fields:
        return fields[name]
    place = name.find(".")
    while place > 0:
        if name[:place] in fields:
            found = _find(fields[name[:place]], name[place + 1 :])
            if found is not _ABSENT:
                return found
        place = name.find(".", place + 1)
    return _ABSENT


def _read_array(blocks: Iterator[bytes], file: str) -> Iterator[Value]:
    """Each element of one array, a few of which are in memory at a time.

    Raises ValueError where the file is no JSON, since nothing behind the fault can be trusted.
    """
    reader = _Reader(blocks, file)
    reader.take("[")
    separator = reader.take("]") if reader.peek() == "]" else ""
    while separator != "]":
        reader.peek()  # over spaces to where the element begins
        line, element = reader.line, reader.element()
        yield Value(line, "element", element)
        separator = reader.take(",]")
    if reader.peek():
        raise ValueError(f"{file}, line {reader.line}: there is more behind the array")


class _Reader:
    """The text of some blocks. Only as much of it as one element takes is in memory."""

    def __init__(self, blocks: Iterator[bytes], file: str) -> None:
        # A byte that is not UTF-8 becomes a lone surrogate, which is a fault of its own row alone.
        decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        ends = ((block, False) for block in blocks)
        self._parts = (decoder.decode(*part) for part in chain(ends, [(b"", True)]))
        self._file = file
        self._text = ""
        self._place = 0
        self._more = True
        self._decoder = json.JSONDecoder()
        self.line = 1

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            end = _SPACE.match(self._text, self._place).end()  # type: ignore[union-attr]
            self._go(end)
            if end < len(self._text):
                return self._text[end]
            if not self._read(1):
                return ""

    def take(self, expected: str) -> str:
        """Go over the next character, which must be in `expected`; else ValueError."""
        found = self.peek()
        if not found or found not in expected:
            shown = repr(found) if found else "the end of the file"
            wanted = " or ".join(map(repr, expected))
            raise ValueError(f"{self._file}, line {self.line}: found {shown}, expected {wanted}")
        self._go(self._place + 1)
        return found

    def element(self) -> Any:
        """The next value, whole; what follows it is read too, as a number may go on."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
                if end < len(self._text) or not self._more:
                    self._go(end)
                    return value
            except (ValueError, RecursionError) as error:
                left = len(self._text) - self._place
                if not self._more or left > ELEMENT_LIMIT or isinstance(error, RecursionError):
                    line = self.line
                    raise ValueError(
                        f"{self._file}, line {line}: the element of the array that begins there "
                        f"is not JSON: {getattr(error, 'msg', error)}; mend the file"
                    ) from error
            self._read(len(self._text) - self._place)

    def _go(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place

    def _read(self, size: int) -> bool:
        """Take `size` more characters or a few more; False if there are none."""
        parts = [self._text[self._place :]]
        self._place = 0
        while size > 0 and self._more:
            part = next(self._parts, None)
            self._more = part is not None
            parts.append(part or "")
            size -= len(parts[-1])
        self._text = "".join(parts)
        return bool(self._text)
