"""The output of `e5core embed`, read back: vectors mapped, the lines of their rows when needed."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from e5core.formats.files import read_json_object

TENSOR = "vectors"  # the name in a .safetensors file
IDS_SUFFIX, MADE_FROM_SUFFIX = ".ids.jsonl", ".json"
_BLOCK = 1 << 24  # bytes of a file in which line ends are looked for at a time

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """Vectors on the disk, and everything that lies beside them under the same name.

    vectors    [rows, hidden_size]; in the file, except for Parquet's
    rows       for each vector its id, file and line, and of a passage its number and offsets;
               None if there is nothing beside the vectors
    made_from  what `<output>.json` says of the model and the options; None without one
    """

    vectors: npt.NDArray[Any]
    rows: Sequence[Row] | None
    made_from: dict[str, Any] | None


def open_stored(path: Path) -> Stored:
    """Open vectors that `e5core embed` wrote, or others in a file of the same kind.

    path  .npy; .safetensors, whose tensor is "vectors"; or a folder of shards, .parquet

    Raises OSError, or ValueError if the file is damaged or does not fit what lies beside it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; name the output of e5core embed")
    rows: Sequence[Row] | None = None
    if path.suffix == ".npy":
        vectors = _open_npy(path)
    elif path.suffix == ".safetensors":
        vectors = _open_safetensors(path)
    elif path.suffix == ".parquet":
        vectors, rows = _read_parquet(path)
    else:
        raise ValueError(f"{path} is none of .npy, .safetensors, .parquet: name the vectors")
    if vectors.ndim != 2:
        raise ValueError(f"{path} has the shape {vectors.shape}, expected [rows, hidden_size]")
    ids, made_from = (path.with_name(path.name + end) for end in (IDS_SUFFIX, MADE_FROM_SUFFIX))
    if path.suffix != ".parquet" and ids.is_file():
        rows = JsonLines(ids)
    if rows is not None and len(rows) != len(vectors):
        raise ValueError(
            f"{ids} has {len(rows)} lines, {path} {len(vectors)} vectors: they are not of one run"
        )
    if rows and not {"file", "line"} <= rows[0].keys():
        raise ValueError(
            f"the rows of {path} have no file and line; name the output of e5core embed"
        )
    record = read_json_object(made_from) if made_from.is_file() else None
    counts = (record or {}).get("counts")
    said = counts.get("rows") if isinstance(counts, dict) else None
    if said not in (None, len(vectors)):
        raise ValueError(
            f"{path} has {len(vectors)} vectors, and {made_from} says {said}: a part is missing, "
            "or they are not of one run; restore it, or embed the files anew"
        )
    return Stored(vectors, rows, record)


class Rows(Sequence[Row]):
    """Rows that are read when they are asked for."""

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        places = range(len(self))[place]
        return self.read(places) if isinstance(places, int) else [self.read(one) for one in places]

    @abstractmethod
    def read(self, place: int) -> Row:
        """The row at a place from 0 on."""


class JsonLines(Rows):
    """The lines of a .jsonl file. Only where they start is kept, eight bytes each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        ends = [np.zeros(1, dtype=np.int64)]
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                place = file.tell() - len(block)
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + place + 1)
        self._starts = np.concatenate(ends)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[Row]:
        with self._path.open("rb") as lines:
            for place, line in enumerate(lines):
                yield self._parse(line, place)

    def read(self, place: int) -> Row:
        with self._path.open("rb") as file:  # of its own: searches may run in several threads
            file.seek(self._starts[place])
            return self._parse(file.readline(), place)

    def _parse(self, line: bytes, place: int) -> Row:
        try:
            row = json.loads(line)
        except ValueError:  # UTF-8 is among them
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f"{self._path}, line {place + 1}: {line[:40]!r} is no JSON object; name the output "
                "of e5core embed, or embed the files anew"
            )
        return row


class Columns(Rows):
    """The rows of a table of Arrow columns."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def read(self, place: int) -> Row:
        row: Row = self._table.slice(place, 1).to_pylist()[0]
        return row


def _open_npy(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a whole .npy file: {error}; write it again") from error


def _open_safetensors(path: Path) -> npt.NDArray[Any]:
    try:
        with safe_open(path, framework="np") as reader:  # it checks the whole header
            names = list(reader.keys())
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file: {error}; write it again"
        ) from error
    if TENSOR not in names:
        raise ValueError(f"{path} has the tensors {names}, expected one named {TENSOR!r}")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[TENSOR]
    dtypes = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I8": "i1", "U8": "u1"}
    if entry["dtype"] not in dtypes:
        raise ValueError(f"{path} holds {entry['dtype']}, expected one of {', '.join(dtypes)}")
    if 0 in entry["shape"]:  # nothing to map
        return np.empty(entry["shape"], dtypes[entry["dtype"]])
    place = 8 + size + entry["data_offsets"][0]
    shape = tuple(entry["shape"])
    return np.asarray(np.memmap(path, dtypes[entry["dtype"]], "r", place, shape))


def _read_parquet(path: Path) -> tuple[npt.NDArray[Any], Sequence[Row]]:
    """The vectors of all shards, in memory, and the other columns."""
    try:
        parquet, arrow = import_module("pyarrow.parquet"), import_module("pyarrow")
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow; pip install 'e5core[bulk]'") from error
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise ValueError(f"{path} holds no .parquet files; name the output of e5core embed")
    try:
        readers = [parquet.ParquetFile(file, pre_buffer=False) for file in files]
        kind = readers[0].schema_arrow.field("vector").type
        starts = list(accumulate((reader.metadata.num_rows for reader in readers), initial=0))
        vectors = np.empty((starts[-1], kind.list_size), dtype=np.float32)
        tables = []
        for start, reader in zip(starts, readers, strict=False):
            for batch in reader.iter_batches(4096, columns=["vector"], use_threads=False):
                flat = batch.column(0).flatten().to_numpy()
                vectors[start : start + len(batch)] = flat.reshape(len(batch), -1)
                start += len(batch)
            others = [name for name in reader.schema_arrow.names if name != "vector"]
            tables.append(reader.read(columns=others))
            reader.close()
        return vectors, Columns(arrow.concat_tables(tables).combine_chunks())
    except (arrow.ArrowException, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the output of e5core embed: {error}; it wants a column vector of "
            "lists of one length"
        ) from error
