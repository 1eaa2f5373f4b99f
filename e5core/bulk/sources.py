"""Rows of text from files: plain lines, JSON Lines, CSV, TSV and Parquet."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

SUFFIXES = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
STDIN = "-"

# Python's csv module refuses fields of more than 131,072 characters. With no limit, a quotation
# mark that is never closed would take the rest of the file into memory.
CSV_FIELD_LIMIT = 16_000_000
PARQUET_BATCH_ROWS = 1024


class Row(NamedTuple):
    """A text and where it comes from.

    line  where the row starts, counted from 1; in Parquet the number of the row
    id    what the id column holds, None without one
    """

    file: str
    line: int
    text: str
    id: str | int | None


class BadRow(NamedTuple):
    """A row that holds no text, and why."""

    file: str
    line: int
    reason: str


class Columns(NamedTuple):
    """The names of the columns, or fields, that hold the text and the id."""

    text: str
    id: str | None


class Source:
    """The rows of files, one after another, read as they are needed.

    files       what is read: those given, and those of folders given, in the order of their names
    total_bytes the sizes of all files; None if one is standard input
    """

    def __init__(
        self,
        inputs: Sequence[str | Path],
        *,
        column: str | None = None,
        id_column: str | None = None,
        format: str | None = None,  # noqa: A002 (the name of the option)
    ) -> None:
        """Find the files.

        inputs     files, folders of files, or "-" for standard input
        column     the field or column that holds the text, by default "text"; lines have none
        id_column  the one that holds a name of the row, a text or a whole number
        format     one of FORMATS in place of what each file's suffix says; a file whose suffix
                   says nothing is read as lines

        Raises ValueError or OSError if there is nothing to read.
        """
        if format is not None and format not in FORMATS:
            raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
        self._format = format
        self._columns = Columns("text" if column is None else column, id_column)
        self.files = [file for name in inputs for file in self._found(str(name))]
        if not self.files:
            raise ValueError("there are no input files; name at least one")
        for file in self.files:
            if file.encode("utf-8", "replace").decode() != file:
                raise ValueError(f"the name of {file!a} is not UTF-8; rename the file")
        if self.files.count(STDIN) > 1:
            raise ValueError("standard input, -, is named twice, but can be read only once")
        if column is not None or id_column is not None:
            for file in self.files:
                if self._format_of(file) == "txt":
                    option = "column" if column is not None else "id_column"
                    raise ValueError(
                        f"{option} is given, but {file} is read as lines, which have no columns; "
                        'leave it out, or pass format="csv" or another'
                    )
        sizes = [self._size(file) for file in self.files if file != STDIN]
        self.total_bytes = None if STDIN in self.files else sum(sizes)
        self._finished_bytes = 0
        self._position_in_file: Callable[[], int] = lambda: 0

    @property
    def position(self) -> int:
        """Bytes read so far, of total_bytes; in Parquet by the share of a file's rows."""
        return self._finished_bytes + self._position_in_file()

    def rows(self) -> Iterator[Row | BadRow]:
        """All rows in order; can be called once."""
        for file in self.files:
            if self._format_of(file) == "parquet":
                yield from self._parquet(file)
            else:
                yield from self._text(file)
            self._finished_bytes += 0 if file == STDIN else self._size(file)

    def _text(self, file: str) -> Iterator[Row | BadRow]:
        read = {"txt": _lines, "jsonl": _jsonl, "csv": _csv, "tsv": _tsv}[self._format_of(file)]
        if file == STDIN:
            yield from read(sys.stdin.buffer, file, self._columns)
            return
        with Path(file).open("rb") as source:
            self._position_in_file = source.tell
            yield from read(source, file, self._columns)
            self._position_in_file = lambda: 0

    def _found(self, name: str) -> list[str]:
        path = Path(name)
        if name == STDIN or not path.is_dir():
            if name == STDIN and self._format == "parquet":
                raise ValueError("Parquet cannot be read from standard input; name the file")
            return [name]
        files = _files_below(path)
        if not files:
            raise ValueError(f"{name} is a folder without files; name files, or another folder")
        for file in files:
            if self._format is None and file.suffix.lower() not in SUFFIXES:
                raise ValueError(
                    f"{file} is none of {', '.join(SUFFIXES)}; take it out of the folder, name "
                    'files instead, or pass format="txt" or another for all'
                )
        return [str(file) for file in files]

    def _format_of(self, file: str) -> str:
        return self._format or SUFFIXES.get(Path(file).suffix.lower(), "txt")

    @staticmethod
    def _size(file: str) -> int:
        return Path(file).stat().st_size

    def _parquet(self, file: str) -> Iterator[Row | BadRow]:
        parquet = import_pyarrow("parquet", f"reading {file}")
        pyarrow = import_pyarrow("", f"reading {file}")
        try:
            # Without the buffer a whole row group would be in memory.
            reader = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is not a whole Parquet file: {error}") from error
        with reader:
            schema = reader.schema_arrow
            wanted = [name for name in self._columns if name is not None]
            _check_columns(file, wanted, schema.names)
            size, total = self._size(file), max(1, reader.metadata.num_rows)
            line = 0
            self._position_in_file = lambda: size * line // total
            batches = reader.iter_batches(PARQUET_BATCH_ROWS, columns=wanted, use_threads=False)
            try:
                for batch in batches:
                    columns = [_values(batch.column(name), pyarrow) for name in wanted]
                    for line, values in enumerate(zip(*columns, strict=True), line + 1):  # noqa: B020
                        text, *rest = values
                        yield _row(file, line, text, rest[0] if rest else None, self._columns)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{file}, after row {line}: cannot be read: {error}") from error
            self._position_in_file = lambda: 0


def hidden(name: str) -> bool:
    """Whether the name says that a file is no data, by the convention of Spark and Hive."""
    return name.startswith((".", "_"))


def _files_below(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, sorted; ValueError for what would be left out."""
    found: list[Path] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        if hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            found += _files_below(path)
        elif entry.is_file():
            found.append(path)
        else:
            kind = "a link to a folder, which is not followed" if entry.is_dir() else "no file"
            raise ValueError(
                f"{path} is {kind}; take it out of the folder, or name files and folders instead"
            )
    return found


def import_pyarrow(name: str, purpose: str) -> Any:
    """pyarrow, or a module of it; ImportError says what to install."""
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{name}".rstrip("."))
    except ImportError as error:
        raise ImportError(f"{purpose} needs pyarrow; pip install 'e5core[bulk]'") from error


def _values(column: Any, pyarrow: Any) -> list[Any]:
    """Python values of a column; bytes for text, which is decoded row by row."""
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        column = column.cast(pyarrow.large_binary())
    values: list[Any] = column.to_pylist()
    return values


def _lines(source: BinaryIO, file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """A row for each line, without its end; an empty line is an empty text."""
    for number, line in enumerate(source, 1):
        yield _row(file, number, _without_end(line, number), None, columns)


def _jsonl(source: BinaryIO, file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """A row for each line that holds a JSON object; blank lines are none."""
    for number, line in enumerate(source, 1):
        line = _without_end(line, number)
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield BadRow(file, number, _not_utf8(error))
        except (ValueError, RecursionError) as error:
            yield BadRow(file, number, f"the line is not JSON: {error}")
        else:
            if not isinstance(fields, dict):
                kind = type(fields).__name__
                yield BadRow(file, number, f"the line is a JSON {kind}, expected an object")
            elif missing := [n for n in columns if n is not None and n not in fields]:
                reason = f"there is no field {missing[0]!r}; the line has {_listed(fields)}"
                yield BadRow(file, number, reason)
            else:
                name = None if columns.id is None else fields[columns.id]
                yield _row(file, number, fields[columns.text], name, columns)


def _csv(source: BinaryIO, file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """RFC 4180 with a header line; a quoted field may hold line ends."""
    csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_LIMIT))
    # A byte that is not UTF-8 becomes a lone surrogate, which is a fault of its own row alone.
    decoded = (
        line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
        for number, line in enumerate(source, 1)
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
                lines = f", lines {line} to {reader.line_num}," if reader.line_num > line else ""
                yield line, BadRow(file, line, f"the row{lines} is not CSV: {error}")

    return _table(records(), file, columns)


def _tsv(source: BinaryIO, file: str, columns: Columns) -> Iterator[Row | BadRow]:
    """A header line, tabs between fields, no quoting (IANA text/tab-separated-values)."""
    records = (
        (number, _without_end(line, number).decode("utf-8", "surrogateescape").split("\t"))
        for number, line in enumerate(source, 1)
    )
    return _table(((n, fields if fields != [""] else []) for n, fields in records), file, columns)


def _table(
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
                raise ValueError(f"{file}, line {line}: {_no_text(error)}") from None
            _check_columns(file, [name for name in columns if name is not None], header)
            text = header.index(columns.text)
            name = None if columns.id is None else header.index(columns.id)
        elif len(fields) != len(header):
            reason = f"the row has {len(fields)} fields, the header {len(header)}"
            yield BadRow(file, line, reason)
        else:
            yield _row(file, line, fields[text], None if name is None else fields[name], columns)


def _check_columns(file: str, wanted: Sequence[str], names: Sequence[str]) -> None:
    for name in wanted:
        if list(names).count(name) != 1:
            times = "no column" if name not in names else "more than one column"
            raise ValueError(
                f'{file} has {times} {name!r}; it has {_listed(names)}: pass column="..."'
                ' or id_column="..."'
            )


def _row(file: str, line: int, text: object, name: object, columns: Columns) -> Row | BadRow:
    """A row whose text and id are what they must be, or what is wrong."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        name = name.decode() if isinstance(name, bytes) else name
        if not isinstance(text, str):
            return BadRow(file, line, f"{columns.text} is {_value(text)}, expected text")
        if columns.id is not None and (not isinstance(name, str | int) or isinstance(name, bool)):
            reason = f"{columns.id} is {_value(name)}, expected text or a whole number"
            return BadRow(file, line, reason)
        assert name is None or isinstance(name, str | int)
        text.encode()
        str(name).encode()
    except UnicodeDecodeError as error:
        return BadRow(file, line, _not_utf8(error))
    except UnicodeEncodeError as error:
        return BadRow(file, line, _no_text(error))
    return Row(file, line, text, name)


RECODE = "convert the file, for example with iconv -t UTF-8"


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte {error.start} is not UTF-8; {RECODE}"


def _no_text(error: UnicodeEncodeError) -> str:
    found = ord(error.object[error.start])
    if 0xDC80 <= found <= 0xDCFF:  # what surrogateescape makes of a byte
        return f"the byte 0x{found - 0xDC00:02X} is not UTF-8; {RECODE}"
    return f"it holds the lone surrogate U+{found:04X} at character {error.start}"


def _without_end(line: bytes, number: int) -> bytes:
    # Some editors open a file with a byte order mark, which is no part of its text.
    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _value(value: object) -> str:
    return "null" if value is None else f"{value!r:.80} of type {type(value).__name__}"


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    shown = ", ".join(map(repr, list(names)[:20]))
    return shown + (", …" if len(names) > 20 else "") if names else "none"
