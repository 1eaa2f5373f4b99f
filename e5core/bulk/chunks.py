"""Rows in chunks. A chunk is computed and stored as a whole, and a run can go on behind it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from e5core.bulk.rows import BadRow, Row
from e5core.bulk.sources import Source


class ChunkSize(NamedTuple):
    """The rows and the characters after which a chunk ends, whichever come first."""

    rows: int
    characters: int


# By the type of device: seconds of work on a CPU, several full batches on a GPU.
CHUNK_SIZES = {"cpu": ChunkSize(512, 64_000), "cuda": ChunkSize(8192, 2_000_000)}


@dataclass(frozen=True)
class Chunk:
    """Some rows, and where they end in the whole input.

    rows_read  rows from the first one of the input to the last one of this chunk, bad ones too
    sha256     of all these rows, with their files and lines
    position   bytes of the input up to there
    """

    rows: list[Row | BadRow]
    rows_read: int
    sha256: str
    position: int

    @property
    def good_rows(self) -> list[Row]:
        return [row for row in self.rows if isinstance(row, Row)]

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.good_rows]


def split_into_chunks(source: Source, size: ChunkSize, stop_at_bad_rows: bool) -> Iterator[Chunk]:
    """All rows of a source in order. Where a chunk ends depends on the rows before it alone.

    Raises ValueError naming file and line of a bad row, if it is to stop there.
    """
    digest = hashlib.sha256()
    rows: list[Row | BadRow] = []
    rows_read = characters = 0

    def chunk() -> Chunk:
        return Chunk(rows, rows_read, digest.hexdigest(), source.position)

    for row in source.rows():
        if isinstance(row, BadRow):
            if stop_at_bad_rows:
                refuse(row)
            name, text = None, row.reason
        else:
            name, text = row.id, row.text
        # The lengths keep two different lists of rows from being the same characters.
        head = f"{len(row.file)} {row.file} {row.line} {json.dumps(name)} {len(text)} "
        digest.update((head + text).encode())
        rows.append(row)
        rows_read += 1
        characters += len(text)
        if len(rows) == size.rows or characters >= size.characters:
            yield chunk()
            rows, characters = [], 0
    if rows:
        yield chunk()


def refuse(row: BadRow) -> NoReturn:
    """Stop the work because of a bad row: ValueError with its file and line."""
    way_out = 'pass on_error="skip" (--on-error skip) to leave such rows out'
    raise ValueError(f"{row.file}, line {row.line}: {row.reason}; {way_out}")
