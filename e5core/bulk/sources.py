"""Files of rows: which ones they are, and their rows one after another."""

import glob
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from e5core.bulk import parquet
from e5core.bulk.blocks import Blocks, packed_suffix
from e5core.bulk.rows import BLANK, BadRow, Columns, Row
from e5core.bulk.text import READERS
from e5core.texts.containers import is_blank

SUFFIXES = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
FORMATS = (*READERS, "parquet")
STDIN = "-"


class Source:
    """The rows of files, one after another, read as they are needed.

    files       what is read: those given, and those of folders given, in the order of their names
    total_bytes the sizes of all files; None if one is standard input
    position    bytes read so far; in Parquet by the share of a file's rows
    """

    def __init__(
        self,
        inputs: Sequence[str | Path],
        *,
        column: str | None = None,
        id_column: str | None = None,
        format: str | None = None,  # noqa: A002 (the name of the option)
        delimiter: str | None = None,
        keep_blank: bool = True,
    ) -> None:
        """Find the files.

        inputs     files, folders of files, or "-" for standard input
        column     the field or column that holds the text, by default "text"; lines have none
        id_column  the one that holds a name of the row, a text or a whole number
        format     one of FORMATS in place of what each file's suffix says; a file whose suffix
                   says nothing is read as lines
        delimiter  the character between the fields of CSV and TSV in place of comma and tab
        keep_blank False takes texts in which nothing can be seen for rows without a text

        Raises ValueError or OSError if there is nothing to read.
        """
        if format is not None and format not in FORMATS:
            raise ValueError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
        self._format = format
        self._delimiter = check_delimiter(delimiter)
        self._keep_blank = keep_blank
        self._columns = Columns("text" if column is None else column, id_column)
        self.files = [file for name in inputs for file in self._find(str(name))]
        self._check_files()
        given = {"column": column, "id_column": id_column, "delimiter": delimiter}
        if names := [name for name, value in given.items() if value is not None]:
            self._check_formats(names[0], names == ["delimiter"])
        sizes = [_size(file) for file in self.files if file != STDIN]
        self.total_bytes = None if STDIN in self.files else sum(sizes)
        self.position = 0
        self._stdin: IO[bytes] | None = None

    def share_stdin(self, other: "Source", folder: Path) -> None:
        """Let this source and another of the same files both read all of standard input.

        folder  whose disk holds a copy, in a file without a name
        """
        if STDIN in self.files:
            copy = TemporaryFile(dir=folder)  # noqa: SIM115 (it is read later)
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            self._stdin, other._stdin = copy, os.fdopen(os.dup(copy.fileno()), "rb")

    def rows(self) -> Iterator[Row | BadRow]:
        """All rows in order; can be called once."""
        for row in self._all_rows():
            if not self._keep_blank and isinstance(row, Row) and is_blank(row.text):
                yield BadRow(row.file, row.line, BLANK)
            else:
                yield row

    def _all_rows(self) -> Iterator[Row | BadRow]:
        for file in self.files:
            kind = self._format_of(file)
            if kind == "parquet":
                yield from self._read_parquet(file)
            elif file == STDIN and self._stdin is None:
                yield from self._read(sys.stdin.buffer, file)
            elif file == STDIN and self._stdin is not None:
                with self._stdin as opened:
                    opened.seek(0)
                    yield from self._read(opened, file)
            else:
                with Path(file).open("rb") as opened:
                    yield from self._read(opened, file)

    def _read(self, opened: IO[bytes], file: str) -> Iterator[Row | BadRow]:
        read = READERS[self._format_of(file)]
        blocks = Blocks(opened, file, self._count)
        return read(blocks, file, self._columns, self._delimiter)

    def _read_parquet(self, file: str) -> Iterator[Row | BadRow]:
        start, size = self.position, _size(file)
        with parquet.open_rows(file, self._columns) as (total, rows):
            for row in rows:
                self.position = start + size * row.line // total
                yield row
        self.position = start + size

    def _count(self, size: int) -> None:
        self.position += size

    def _find(self, name: str) -> list[str]:
        """The files of a name, which may be that of a folder."""
        path = Path(name)
        if name == STDIN or not path.is_dir():
            if name == STDIN and self._format == "parquet":
                raise ValueError("Parquet cannot be read from standard input; name the file")
            return _expand(name)
        files = _files_below(path)
        if not files:
            raise ValueError(f"{name} is a folder without files; name files, or another folder")
        for file in files:
            if self._format is None and _inner(str(file)).suffix.lower() not in SUFFIXES:
                raise ValueError(
                    f"{file} is none of {', '.join(SUFFIXES)}; take it out of the folder, name "
                    'files instead, or pass format="txt" (--format txt) or another for all'
                )
        return [str(file) for file in files]

    def _check_files(self) -> None:
        if not self.files:
            raise ValueError("there are no input files; name at least one")
        for file in self.files:
            if file.encode("utf-8", "replace").decode() != file:
                raise ValueError(f"the name of {file!a} is not UTF-8; rename the file")
        if STDIN in self.files and sys.stdin is None:
            raise ValueError("standard input, -, is closed; pipe texts into it, or name files")
        if self.files.count(STDIN) > 1:
            raise ValueError("standard input, -, is named twice, but can be read only once")

    def _check_formats(self, option: str, only_tables: bool) -> None:
        """ValueError if a file has no columns, so that `option` can name none."""
        for file in self.files:
            kind = self._format_of(file)
            if only_tables and kind not in ("csv", "tsv"):
                raise ValueError(
                    f"delimiter is given, but {file} is read as {kind}, which has none; leave it "
                    'out, or pass format="csv" (--format csv)'
                )
            if kind == "txt":
                raise ValueError(
                    f"{option} is given, but {file} is read as lines, which have no columns; "
                    'leave it out, or pass format="csv" (--format csv) or another'
                )

    def _format_of(self, file: str) -> str:
        return self._format or format_by_suffix(file)


def format_by_suffix(file: str) -> str:
    """One of FORMATS: what the suffix says, before that of a compression; lines if nothing does."""
    return SUFFIXES.get(_inner(file).suffix.lower(), "txt")


def read_texts(inputs: Sequence[str | Path]) -> Iterator[str]:
    """The lines of UTF-8 files without their ends; ValueError names one that is not UTF-8."""
    return (row.text for row in read_rows(Source(inputs, format="txt")))


def read_rows(source: Source) -> Iterator[Row]:
    """The rows of a source; ValueError names one that holds no text."""
    for row in source.rows():
        if isinstance(row, BadRow):
            raise ValueError(f"{row.file}, line {row.line}: {row.reason}")
        yield row


def check_delimiter(delimiter: str | None) -> str | None:
    """The delimiter as one character; ValueError if it can be none."""
    named = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}.get(
        delimiter or "", delimiter
    )
    if named is not None and (len(named) != 1 or named in '"\r\n' or not named.isascii()):
        raise ValueError(
            f"delimiter is {delimiter!r}, expected one ASCII character such as ; or the word tab"
        )
    return named


def _inner(file: str) -> Path:
    """The name without the suffix of a compression: what the content is called."""
    return Path(file).with_suffix("") if packed_suffix(file) else Path(file)


def _expand(name: str) -> list[str]:
    """The files that a pattern matches. A name that is no pattern, or is a file's, stays."""
    if name == STDIN or not glob.has_magic(name) or os.path.lexists(name):
        return [name]
    found = glob.glob(name, recursive=True)  # noqa: PTH207 (a pattern may be absolute)
    files = sorted(file for file in found if not Path(file).is_dir())
    if not files:
        raise FileNotFoundError(f"no file matches {name}")
    return files


def identify(file: str) -> list[str | int]:
    """A file's name, size and time of change in ns, to know it again by.

    Raises OSError if it cannot be read, ValueError if it can be read only once.
    """
    if file == STDIN:
        return [file]
    status = Path(file).stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe only to try would use it up
        raise ValueError(
            f"{file} is a pipe or a device, which can be read only once; pipe it into standard "
            "input and name that, -"
        )
    with Path(file).open("rb"):
        return [file, status.st_size, status.st_mtime_ns]


def is_hidden(name: str) -> bool:
    """Whether the name says that a file is no data, by the convention of Spark and Hive."""
    return name.startswith((".", "_"))


def _files_below(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, sorted; ValueError for what would be left out."""
    found: list[Path] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        if is_hidden(entry.name):
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


def _size(file: str) -> int:
    return Path(file).stat().st_size
