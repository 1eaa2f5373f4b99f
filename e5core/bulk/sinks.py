"""Vectors to files that grow by chunks, and can be cut back to any earlier chunk."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e5core.bulk.partial import BEGIN_ANEW, IDS, REJECTS, VECTORS
from e5core.bulk.rows import BadRow, Row
from e5core.formats.durable import GrowingFile
from e5core.formats.safetensors import TensorHeader, encode_header
from e5core.model import Vectors

# Bytes of the header's JSON: enough for any two numbers of 19 digits.
SAFETENSORS_ROOM = 248


class Sink(ABC):
    """Where the vectors, their ids and the rows without one go: files in a partial output.

    What `append` wrote counts once the journal holds the `sizes` after it. A sink that is made
    with the sizes of a journal goes on from there.
    """

    def __init__(
        self, folder: Path, hidden_size: int, sizes: dict[str, int], header_size: int = 0
    ) -> None:
        self._hidden_size = hidden_size
        self._header_size = header_size
        self._vectors = _open(folder / VECTORS, sizes)
        self._ids = _open(folder / IDS, sizes)
        self._rejects = _open(folder / REJECTS, sizes)

    def append(self, vectors: Vectors, rows: Sequence[Row], rejected: Sequence[BadRow]) -> None:
        """Write the vectors [rows, hidden_size]; the disk has all of it when this returns."""
        self._vectors.append(np.ascontiguousarray(vectors, "<f4").tobytes())
        self._ids.append(_id_lines(rows))
        self._rejects.append(_json_lines(row._asdict() for row in rejected))

    def sizes(self) -> dict[str, int]:
        """The size of each file, by its name."""
        return {file.path.name: file.size for file in (self._vectors, self._ids, self._rejects)}

    @property
    def rows(self) -> int:
        """The number of vectors in the file that grows."""
        return (self._vectors.size - self._header_size) // (self._hidden_size * 4)

    @abstractmethod
    def finish(self) -> None:
        """Complete the files, which are then ready to be published."""

    def close(self) -> None:
        for file in (self._vectors, self._ids, self._rejects):
            file.close()


class FileSink(Sink):
    """All vectors in one file of a header and float32 rows, the ids in one beside it."""

    def __init__(
        self,
        folder: Path,
        hidden_size: int,
        sizes: dict[str, int],
        encode: Callable[[int, int], bytes],
    ) -> None:
        """Open the files; `encode` is one of HEADERS."""
        self._encode = encode
        header = encode(0, hidden_size)
        super().__init__(folder, hidden_size, sizes, len(header))
        if not self._vectors.size:
            self._vectors.append(header)

    def finish(self) -> None:
        self._vectors.complete(self._encode(self.rows, self._hidden_size))
        self._ids.complete()
        self._rejects.complete()


def npy_header(rows: int, hidden_size: int) -> bytes:
    """NumPy leaves room for 21 digits of rows, so the length does not depend on them."""
    header = BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, hidden_size)}
    np.lib.format.write_array_header_1_0(header, shape)
    return header.getvalue()


def safetensors_header(rows: int, hidden_size: int) -> bytes:
    """One tensor, "vectors", in a header whose length does not depend on the number of rows."""
    tensor = TensorHeader(torch.float32, (rows, hidden_size))
    return encode_header({"vectors": tensor}, SAFETENSORS_ROOM)


HEADERS = {".npy": npy_header, ".safetensors": safetensors_header}


def _open(path: Path, sizes: dict[str, int]) -> GrowingFile:
    try:
        return GrowingFile(path, sizes.get(path.name, 0))
    except ValueError as error:
        raise ValueError(f"{error}; {BEGIN_ANEW}") from error


def _id_lines(rows: Sequence[Row]) -> bytes:
    """A JSON line for each row: its id, if there is one, its file, its line, and its span."""
    start = ({} if row.id is None else {"id": row.id} for row in rows)
    pairs = zip(start, rows, strict=True)
    return _json_lines(
        {
            **fields,
            "file": row.file,
            "line": row.line,
            **(row.span._asdict() if row.span is not None else {}),
        }
        for fields, row in pairs
    )


def _json_lines(lines: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
