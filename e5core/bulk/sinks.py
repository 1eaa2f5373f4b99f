"""Vectors to files that grow by chunks, and can be cut back to any earlier chunk."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from e5core.bulk.sources import BadRow, Row, import_pyarrow
from e5core.model import Vectors

IDS = "ids.jsonl"
REJECTS = "rejects.jsonl"
VECTORS = "vectors"
SHARDS = "shards"
ROW_GROUP = 4096  # rows of Parquet that are in memory at a time


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of writing to it, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


class GrowingFile:
    """A file that is appended to, and whose size is known elsewhere to be good.

    What lies behind `size` is what a stopped run left; the next append cuts it off.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        found = os.fstat(self._file).st_size
        if found < size:
            os.close(self._file)
            raise ValueError(
                f"{path} has {found} bytes, expected {size} or more: it was changed from outside; "
                "pass restart=True to begin anew"
            )

    def append(self, content: bytes) -> None:
        """Write to the disk itself; on an error `size` stays, and so does what it covers."""
        self._write(content, self.size)
        self.size += len(content)

    def complete(self, start: bytes = b"") -> None:
        """Replace the first bytes, and cut off what lies behind `size`."""
        self._write(start, 0)

    def _write(self, content: bytes, place: int) -> None:
        with naming(self.path):
            os.ftruncate(self._file, self.size)
            os.lseek(self._file, place, os.SEEK_SET)
            left = memoryview(content)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Sink(Protocol):
    """Where vectors go: files in a folder of their own until all are there."""

    def append(self, vectors: Vectors, rows: Sequence[Row]) -> None:
        """vectors [rows, hidden_size]; on the disk when it returns"""

    def state(self) -> dict[str, int]:
        """What to give to the constructor to go on from here; nothing appended counts before."""

    def finish(self) -> None:
        """Complete the files, which are then ready to be moved to where `targets` says."""

    def close(self) -> None: ...


def npy_header(rows: int, hidden_size: int) -> bytes:
    """NumPy leaves room for 21 digits of rows, so the length does not depend on them."""
    header = BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, hidden_size)}
    np.lib.format.write_array_header_1_0(header, shape)
    return header.getvalue()


def safetensors_header(rows: int, hidden_size: int) -> bytes:
    """One tensor, "vectors". Source: the format's description in safetensors' README: 8 bytes of
    length, then JSON, which may end in spaces."""
    tensor = {
        "dtype": "F32",
        "shape": [rows, hidden_size],
        "data_offsets": [0, rows * hidden_size * 4],
    }
    content = json.dumps({"__metadata__": {"format": "pt"}, "vectors": tensor}).encode()
    room = 248  # with any two numbers of 19 digits in it
    return room.to_bytes(8, "little") + content.ljust(room)


class FileSink:
    """All vectors in one file of a fixed header and float32 rows, the ids in one beside it."""

    def __init__(
        self,
        folder: Path,
        hidden_size: int,
        state: dict[str, int],
        header: Callable[[int, int], bytes],
    ) -> None:
        self._header = header
        self._hidden_size = hidden_size
        self._start = len(header(0, hidden_size))
        self._vectors = GrowingFile(folder / VECTORS, state.get(VECTORS, 0))
        if not self._vectors.size:
            self._vectors.append(header(0, hidden_size))
        self._ids = GrowingFile(folder / IDS, state.get(IDS, 0))

    def append(self, vectors: Vectors, rows: Sequence[Row]) -> None:
        self._vectors.append(_bytes(vectors))
        self._ids.append(id_lines(rows))

    def state(self) -> dict[str, int]:
        return {VECTORS: self._vectors.size, IDS: self._ids.size}

    def finish(self) -> None:
        rows = (self._vectors.size - self._start) // (self._hidden_size * 4)
        self._vectors.complete(self._header(rows, self._hidden_size))
        self._ids.complete()

    def close(self) -> None:
        self._vectors.close()
        self._ids.close()


class ParquetSink:
    """A folder of Parquet files with the columns id (where there is one), file, line and vector.

    Parquet cannot be cut back, so a shard grows as plain floats and lines, and is written as a
    whole once it has `shard_rows` rows.
    """

    def __init__(
        self,
        folder: Path,
        hidden_size: int,
        state: dict[str, int],
        shard_rows: int,
        with_ids: bool,
    ) -> None:
        self._parquet = import_pyarrow("parquet", "writing Parquet")
        self._arrow = import_pyarrow("", "writing Parquet")
        self._hidden_size = hidden_size
        self._shard_rows = shard_rows
        self._with_ids = with_ids
        self._count = state.get(SHARDS, 0)
        self._shards = folder / SHARDS
        self._shards.mkdir(exist_ok=True)
        for file in self._shards.iterdir():  # written, but not yet counted
            if file not in map(self._shard, range(self._count)):
                file.unlink()
        for number in range(self._count):
            if not self._shard(number).is_file():
                raise ValueError(
                    f"{self._shard(number)} is missing; pass restart=True to begin anew"
                )
        self._vectors = GrowingFile(folder / VECTORS, state.get(VECTORS, 0))
        self._ids = GrowingFile(folder / IDS, state.get(IDS, 0))

    def append(self, vectors: Vectors, rows: Sequence[Row]) -> None:
        self._vectors.append(_bytes(vectors))
        self._ids.append(id_lines(rows))
        if self._rows() >= self._shard_rows:
            self._write_shard()

    def state(self) -> dict[str, int]:
        return {VECTORS: self._vectors.size, IDS: self._ids.size, SHARDS: self._count}

    def finish(self) -> None:
        if self._rows() or not self._count:  # no rows at all make one empty shard
            self._write_shard()

    def close(self) -> None:
        self._vectors.close()
        self._ids.close()

    def _rows(self) -> int:
        return self._vectors.size // (self._hidden_size * 4)

    def _shard(self, number: int) -> Path:
        return self._shards / f"part-{number:05}.parquet"

    def _write_shard(self) -> None:
        arrow = self._arrow
        fields = [
            ("file", arrow.string()),
            ("line", arrow.int64()),
            ("vector", arrow.list_(arrow.float32(), self._hidden_size)),
        ]
        if self._with_ids:
            fields.insert(0, ("id", arrow.string()))
        schema = arrow.schema(fields)
        path = self._shard(self._count)
        temporary = path.with_suffix(".temporary")
        left = self._rows()
        with naming(temporary):
            with (
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
                    columns = {
                        "file": [line["file"] for line in lines],
                        "line": [line["line"] for line in lines],
                        "vector": arrow.FixedSizeListArray.from_arrays(floats, self._hidden_size),
                    }
                    if self._with_ids:
                        columns["id"] = [str(line["id"]) for line in lines]
                    writer.write_table(arrow.table(columns, schema=schema))
            sync(temporary)
        temporary.replace(path)
        sync(self._shards)
        self._count += 1
        # The old content goes with the next append, which comes after this shard is counted.
        self._vectors.size = self._ids.size = 0


def targets(folder: Path, output: Path) -> list[tuple[Path, Path]]:
    """What to rename to what when a sink has finished, the vectors last."""
    vectors = SHARDS if output.suffix == ".parquet" else VECTORS
    names = [REJECTS] if output.suffix == ".parquet" else [REJECTS, IDS]
    moves = [(folder / name, output.with_name(f"{output.name}.{name}")) for name in names]
    return [*moves, (folder / vectors, output)]


def id_lines(rows: Sequence[Row]) -> bytes:
    """A JSON line for each row: its id, if there is one, its file and its line."""
    start = ({} if row.id is None else {"id": row.id} for row in rows)
    pairs = zip(start, rows, strict=True)
    return _json_lines({**fields, "file": row.file, "line": row.line} for fields, row in pairs)


def reject_lines(rows: Sequence[BadRow]) -> bytes:
    return _json_lines(row._asdict() for row in rows)


def _json_lines(lines: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def _bytes(vectors: Vectors) -> bytes:
    return np.ascontiguousarray(vectors, "<f4").tobytes()


def sync(path: Path) -> None:
    """Let the disk have a file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    # Windows flushes only what it can write to.
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)
