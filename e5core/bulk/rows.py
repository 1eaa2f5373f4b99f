"""Rows as every format gives them: a text with its place and its id, or the reason why not."""

from collections.abc import Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

BLANK = "the text is blank; keep_blank=True (--keep-blank) would embed it"
RECODE = "convert the file, for example with iconv -t UTF-8"


class Span(NamedTuple):
    """Which part of a row's text a passage is.

    passage     its number in the row, counted from 0
    start, end  its characters
    """

    passage: int
    start: int
    end: int


class Row(NamedTuple):
    """A text and where it comes from.

    line  where the row starts, counted from 1; in Parquet the number of the row
    id    what the id column holds, None without one
    span  the part of the row that a vector stands for, None for all of it
    """

    file: str
    line: int
    text: str
    id: str | int | None
    span: Span | None = None


class BadRow(NamedTuple):
    """A row that holds no text, and why."""

    file: str
    line: int
    reason: str


class Columns(NamedTuple):
    """The names of the columns, or fields, that hold the text and the id."""

    text: str
    id: str | None

    @property
    def names(self) -> list[str]:
        return [name for name in self if name is not None]


def make_row(file: str, line: int, text: object, name: object, columns: Columns) -> Row | BadRow:
    """The row, or a bad one if its text or its id is not what it must be."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        name = name.decode() if isinstance(name, bytes) else name
        if not isinstance(text, str):
            return BadRow(file, line, f"{columns.text} is {_show(text)}, expected text")
        name = _as_id(name)
        if columns.id is not None and (not isinstance(name, str | int) or isinstance(name, bool)):
            reason = f"{columns.id} is {_show(name)}, expected text or a whole number"
            return BadRow(file, line, reason)
        assert name is None or isinstance(name, str | int)
        text.encode()
        str(name).encode()
    except UnicodeDecodeError as error:
        return BadRow(file, line, describe_bytes(error))
    except UnicodeEncodeError as error:
        return BadRow(file, line, describe_surrogate(error))
    return Row(file, line, text, name)


def _as_id(value: object) -> object:
    """The id as a text or a whole number, if it is a date, a UUID or the like; else as it is."""
    if isinstance(value, date | time):  # datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | UUID) and value == value:  # a Decimal may be NaN
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)  # as a column of numbers with gaps is stored
    return value


def check_columns(file: str, columns: Columns, names: Sequence[str]) -> None:
    """ValueError unless each of the columns that are wanted is once among those of a file."""
    for name in columns.names:
        if list(names).count(name) != 1:
            times = "no column" if name not in names else "more than one column"
            raise ValueError(
                f"{file} has {times} {name!r}; it has {list_names(names)}: pass "
                'column="..." (--column) or id_column="..." (--id-column)'
            )


def without_end(line: bytes, number: int) -> bytes:
    """A line of a file without what ends it; `number` counts from 1."""
    # Some editors open a file with a byte order mark, which is no part of its text.
    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    return line.removesuffix(b"\n").removesuffix(b"\r")


def describe_bytes(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are no UTF-8."""
    return f"byte {error.start} is not UTF-8; {RECODE}"


def describe_surrogate(error: UnicodeEncodeError) -> str:
    """What is wrong with a text that UTF-8 cannot encode."""
    found = ord(error.object[error.start])
    if 0xDC80 <= found <= 0xDCFF:  # what surrogateescape makes of a byte
        return f"the byte 0x{found - 0xDC00:02X} is not UTF-8; {RECODE}"
    return f"it holds the lone surrogate U+{found:04X} at character {error.start}"


def list_names(names: Sequence[str] | dict[str, Any]) -> str:
    """The first names of a table or an object, for an error."""
    shown = ", ".join(map(repr, list(names)[:20]))
    return shown + (", …" if len(names) > 20 else "") if names else "none"


def _show(value: object) -> str:
    return "null" if value is None else f"{value!r:.80} of type {type(value).__name__}"
