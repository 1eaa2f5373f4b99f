"""Rows from text: plain lines, CSV and TSV. Each reader takes the bytes of a file in blocks."""

import csv
from collections.abc import Callable, Iterator

from e5core.bulk.blocks import Blocks
from e5core.bulk.json_rows import read_json
from e5core.bulk.quotes import tsv_records
from e5core.bulk.rows import (
    BadRow,
    Columns,
    Row,
    check_columns,
    describe_surrogate,
    make_row,
    without_end,
)

# Python's csv module refuses fields of more than 131,072 characters. With no limit, a quotation
# mark that is never closed would take the rest of the file into memory.
CSV_FIELD_LIMIT = 16_000_000

# A reader takes the blocks, the name of the file, the columns, and the character between two
# fields, which is None if the caller named none.
Reader = Callable[[Blocks, str, Columns, str | None], Iterator[Row | BadRow]]
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def read_lines(
    blocks: Blocks, file: str, columns: Columns, delimiter: str | None
) -> Iterator[Row | BadRow]:
    """A row for each line, without its end; an empty line is an empty text."""
    for number, line in enumerate(blocks.lines(), 1):
        yield make_row(file, number, without_end(line, number), None, columns)


def read_csv(
    blocks: Blocks, file: str, columns: Columns, delimiter: str | None
) -> Iterator[Row | BadRow]:
    """RFC 4180 with a header line; a quoted field may hold line ends."""
    delimiter = delimiter or ","
    return _read_table(csv_records(blocks.lines(), file, delimiter), file, columns, delimiter)


def csv_records(
    lines: Iterator[bytes], file: str, delimiter: str
) -> Iterator[tuple[int, list[str] | BadRow]]:
    """The records of CSV with the lines on which they start; a blank line has no fields."""
    csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_LIMIT))
    # A byte that is not UTF-8 becomes a lone surrogate, which is a fault of its own row alone.
    decoded = (
        line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        for number, line in enumerate(lines, 1)
    )
    reader = csv.reader(decoded, strict=True, delimiter=delimiter)
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


def read_tsv(
    blocks: Blocks, file: str, columns: Columns, delimiter: str | None
) -> Iterator[Row | BadRow]:
    """A header line and tabs between fields; quoted as in CSV if the quotation marks tell so."""
    if delimiter is not None:
        return read_csv(blocks, file, columns, delimiter)
    return _read_table(tsv_records(blocks.lines(), file), file, columns, "\t")


def _read_table(
    records: Iterator[tuple[int, list[str] | BadRow]], file: str, columns: Columns, delimiter: str
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
            _check_delimiter(file, columns, header, delimiter)
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


def _check_delimiter(file: str, columns: Columns, header: list[str], delimiter: str) -> None:
    """ValueError if the header lacks the columns, and has them with another delimiter."""
    if set(columns.names) <= set(header):
        return
    line = delimiter.join(header)
    for other, name in SEPARATORS.items():
        fields = [field.strip('"') for field in line.split(other)]
        if other != delimiter and set(columns.names) <= set(fields):
            shown = "tab" if other == "\t" else other
            wrong = SEPARATORS.get(delimiter, "mark")
            raise ValueError(
                f"{file} has no column {columns.text!r} between {wrong}s, and has it between "
                f"{name}s; pass delimiter={other!r} (--delimiter '{shown}')"
            )


READERS: dict[str, Reader] = {
    "txt": read_lines,
    "jsonl": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
}
