"""Rows from text: plain lines, JSON Lines, CSV and TSV. Each reader takes the lines of a file."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator

from e5core.bulk.rows import (
    BadRow,
    Columns,
    Row,
    check_columns,
    describe_bytes,
    describe_surrogate,
    list_names,
    make_row,
)

# Python's csv module refuses fields of more than 131,072 characters. With no limit, a quotation
# mark that is never closed would take the rest of the file into memory.
CSV_FIELD_LIMIT = 16_000_000

Reader = Callable[[Iterable[bytes], str, Columns], Iterator[Row | BadRow]]


def read_lines(lines: Iterable[bytes], file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """A row for each line, without its end; an empty line is an empty text."""
    for number, line in enumerate(lines, 1):
        yield make_row(file, number, _without_end(line, number), None, columns)


def read_jsonl(lines: Iterable[bytes], file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """A row for each line that holds a JSON object; blank lines are none."""
    for number, line in enumerate(lines, 1):
        line = _without_end(line, number)
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield BadRow(file, number, describe_bytes(error))
        except (ValueError, RecursionError) as error:
            yield BadRow(file, number, f"the line is not JSON: {error}")
        else:
            if not isinstance(fields, dict):
                kind = type(fields).__name__
                yield BadRow(file, number, f"the line is a JSON {kind}, expected an object")
            elif missing := [name for name in columns.names if name not in fields]:
                reason = f"there is no field {missing[0]!r}; the line has {list_names(fields)}"
                yield BadRow(file, number, reason)
            else:
                name = None if columns.id is None else fields[columns.id]
                yield make_row(file, number, fields[columns.text], name, columns)


def read_csv(lines: Iterable[bytes], file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """RFC 4180 with a header line; a quoted field may hold line ends."""
    csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_LIMIT))
    # A byte that is not UTF-8 becomes a lone surrogate, which is a fault of its own row alone.
    decoded = (
        line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        for number, line in enumerate(lines, 1)
    )
    reader = csv.reader(decoded, strict=True)

    def records() -> Iterator[tuple[int, list[str] | BadRow]]:
        while True:
            line = reader.line_num + 1
            try:
                yield line, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # A quotation mark that is not closed takes the lines behind it along.
                place = f", lines {line} to {reader.line_num}," if reader.line_num > line else ""
                yield line, BadRow(file, line, f"the row{place} is not CSV: {error}")

    return _read_table(records(), file, columns)


def read_tsv(lines: Iterable[bytes], file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """A header line, tabs between fields, no quoting (IANA text/tab-separated-values)."""
    records = (
        (number, _without_end(line, number).decode("utf-8", "surrogateescape").split("\t"))
        for number, line in enumerate(lines, 1)
    )
    return _read_table(
        ((n, fields if fields != [""] else []) for n, fields in records), file, columns
    )


def _read_table(
    records: Iterator[tuple[int, list[str] | BadRow]], file: str, columns: Columns
) -> Iterator[Row | BadRow]:
    """Rows of a table whose first record names the columns; blank lines are no rows."""
    header: list[str] | None = None
    for line, fields in records:
        if isinstance(fields, BadRow):
            if header is None:
                raise ValueError(f"{file}, line {line}: {fields.reason}")
            yield fields
        elif not fields:
            continue
        elif header is None:
            header = fields
            try:
                "".join(header).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{file}, line {line}: {describe_surrogate(error)}") from None
            check_columns(file, columns, header)
            text = header.index(columns.text)
            name = None if columns.id is None else header.index(columns.id)
        elif len(fields) != len(header):
            reason = f"the row has {len(fields)} fields, the header {len(header)}"
            yield BadRow(file, line, reason)
        else:
            yield make_row(
                file, line, fields[text], None if name is None else fields[name], columns
            )


def _without_end(line: bytes, number: int) -> bytes:
    # Some editors open a file with a byte order mark, which is no part of its text.
    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    return line.removesuffix(b"\n").removesuffix(b"\r")


READERS: dict[str, Reader] = {
    "txt": read_lines,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
}
