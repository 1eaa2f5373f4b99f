"""Parquet: rows out of files, vectors into shards. Needs pyarrow, the extra `bulk`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from e5core.bulk.partial import BEGIN_ANEW, SHARDS
from e5core.bulk.rows import BadRow, Columns, Row, Span, check_columns, make_row
from e5core.bulk.sinks import Sink
from e5core.formats.durable import replace_durably
from e5core.model import Vectors

BATCH_ROWS = 1024  # rows that are read at a time
ROW_GROUP = 4096  # rows of a shard that are in memory at a time


def import_pyarrow(name: str, purpose: str) -> Any:
    """pyarrow, or a module of it; ImportError says what to install."""
    try:
        return import_module(f"pyarrow.{name}".rstrip("."))
    except ImportError as error:
        raise ImportError(f"{purpose} needs pyarrow; pip install 'e5core[bulk]'") from error


@contextmanager
def open_rows(file: str, columns: Columns) -> Iterator[tuple[int, Iterator[Row | BadRow]]]:
    """Yield the number of rows of a file, and the rows.

    Raises ValueError if the file is damaged or lacks a column.
    """
    parquet = import_pyarrow("parquet", f"reading {file}")
    pyarrow = import_pyarrow("", f"reading {file}")
    try:
        # Without the buffer a whole row group would be in memory.
        reader = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is not a whole Parquet file: {error}") from error
    with reader:
        check_columns(file, columns, list(_names(reader.schema_arrow, pyarrow)))
        yield reader.metadata.num_rows, _read_rows(reader, file, columns, pyarrow)


def _read_rows(reader: Any, file: str, columns: Columns, pyarrow: Any) -> Iterator[Row | BadRow]:
    line = 0
    try:
        for batch in reader.iter_batches(BATCH_ROWS, columns=columns.names, use_threads=False):
            values = [_to_python(_find(batch, name), pyarrow) for name in columns.names]
            for text, *rest in zip(*values, strict=True):
                line += 1
                yield make_row(file, line, text, rest[0] if rest else None, columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}, after row {line}: cannot be read: {error}") from error


def read_objects(file: str) -> Iterator[dict[str, Any]]:
    """The rows of a file as they are: column → value.

    Raises ValueError if the file is damaged.
    """
    parquet = import_pyarrow("parquet", f"reading {file}")
    pyarrow = import_pyarrow("", f"reading {file}")
    try:
        with parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20) as reader:
            for batch in reader.iter_batches(BATCH_ROWS, use_threads=False):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def _names(fields: Any, pyarrow: Any, before: str = "") -> Iterator[str]:
    """The names of columns, and of the fields in them as "data.text"."""
    for field in fields:
        yield before + field.name
        if pyarrow.types.is_struct(field.type):
            yield from _names(field.type, pyarrow, f"{before}{field.name}.")


def _find(batch: Any, name: str) -> Any:
    """The column of a name, or of a path through columns that hold fields."""
    if name in batch.schema.names:
        return batch.column(name)
    compute = import_pyarrow("compute", "reading a field of a column")
    place = name.find(".")
    while name[:place] not in batch.schema.names:
        place = name.find(".", place + 1)
    column, rest = batch.column(name[:place]), name[place + 1 :]
    while rest:
        names = [column.type.field(i).name for i in range(column.type.num_fields)]
        part = max((n for n in names if rest == n or rest.startswith(f"{n}.")), key=len)
        column, rest = compute.struct_field(column, part), rest[len(part) + 1 :]
    return column


def _to_python(column: Any, pyarrow: Any) -> list[Any]:
    """Python values of a column; bytes for text, which is decoded row by row."""
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        column = column.cast(pyarrow.large_binary())
    if pyarrow.types.is_timestamp(kind):  # Python has no nanoseconds
        return [text and text.replace(" ", "T") for text in column.cast("string").to_pylist()]
    values: list[Any] = column.to_pylist()
    if pyarrow.types.is_fixed_size_binary(kind) and kind.byte_width == 16:  # a UUID, as stored
        return [value and UUID(bytes=value) for value in values]
    return values


class ParquetSink(Sink):
    """A folder of Parquet files with the columns id (where there is one), file, line and vector,
    and of passages their number, start and end.

    Parquet cannot be cut back, so a shard grows as plain floats and lines, and is written as a
    whole once it has `shard_rows` rows.
    """

    def __init__(
        self,
        folder: Path,
        hidden_size: int,
        sizes: dict[str, int],
        shard_rows: int,
        with_ids: bool,
        with_spans: bool,
    ) -> None:
        self._parquet = import_pyarrow("parquet", "writing Parquet")
        self._arrow = import_pyarrow("", "writing Parquet")
        self._shard_rows = shard_rows
        self._with_ids = with_ids
        self._spans = Span._fields if with_spans else ()
        self._count = sizes.get(SHARDS, 0)
        self._folder = folder / SHARDS
        self._folder.mkdir(exist_ok=True)
        for file in self._folder.iterdir():  # written, but not yet counted
            if file not in map(self._shard, range(self._count)):
                file.unlink()
        for number in range(self._count):
            if not self._shard(number).is_file():
                raise ValueError(f"{self._shard(number)} is missing; {BEGIN_ANEW}")
        super().__init__(folder, hidden_size, sizes)

    def append(self, vectors: Vectors, rows: Sequence[Row], rejected: Sequence[BadRow]) -> None:
        super().append(vectors, rows, rejected)
        if self.rows >= self._shard_rows:
            self._write_shard()

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), SHARDS: self._count}

    def finish(self) -> None:
        if self.rows or not self._count:  # no rows at all make one empty shard
            self._write_shard()
        self._rejects.complete()

    def _shard(self, number: int) -> Path:
        return self._folder / f"part-{number:05}.parquet"

    def _write_shard(self) -> None:
        schema, left = self._schema(), self.rows
        with (
            replace_durably(self._shard(self._count)) as temporary,
            self._parquet.ParquetWriter(
                temporary, schema, compression="none", use_dictionary=["file"]
            ) as writer,
            self._vectors.path.open("rb") as vectors,
            self._ids.path.open("rb") as ids,
        ):
            while left:
                count = min(left, ROW_GROUP)
                left -= count
                floats = np.frombuffer(vectors.read(count * self._hidden_size * 4), "<f4")
                lines = [json.loads(ids.readline()) for _ in range(count)]
                writer.write_table(self._table(floats, lines, schema))
        self._count += 1
        # The old content goes with the next append, which comes after this shard is counted.
        self._vectors.size = self._ids.size = 0

    def _schema(self) -> Any:
        arrow = self._arrow
        fields = [
            ("file", arrow.string()),
            ("line", arrow.int64()),
            *((name, arrow.int64()) for name in self._spans),
            ("vector", arrow.list_(arrow.float32(), self._hidden_size)),
        ]
        if self._with_ids:
            fields.insert(0, ("id", arrow.string()))
        return arrow.schema(fields)

    def _table(self, floats: Vectors, lines: list[dict[str, Any]], schema: Any) -> Any:
        """A table of some rows; floats [rows * hidden_size]."""
        columns = {
            **{name: [line[name] for line in lines] for name in ("file", "line", *self._spans)},
            "vector": self._arrow.FixedSizeListArray.from_arrays(floats, self._hidden_size),
        }
        if self._with_ids:
            columns["id"] = [str(line["id"]) for line in lines]
        return self._arrow.table(columns, schema=schema)
