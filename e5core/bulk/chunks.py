"""Rows in chunks: what is computed, stored and gone on from as a whole."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from e5core.bulk.sources import BadRow, Row, Source

# Rows and characters after which a chunk ends, by the type of device: seconds of work on a CPU,
# several full batches on a GPU.
CHUNK_ROWS = {"cpu": 512, "cuda": 8192}
CHUNK_CHARACTERS = {"cpu": 64_000, "cuda": 2_000_000}


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
    def texts(self) -> list[str]:
        return [row.text for row in self.rows if isinstance(row, Row)]


def chunked(
    source: Source, chunk_rows: int, chunk_characters: int, stop_at_bad_rows: bool
) -> Iterator[Chunk]:
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
                raise ValueError(refusal(row))
            name, text = None, row.reason
        else:
            name, text = row.id, row.text
        # The lengths keep two different lists of rows from being the same characters.
        head = f"{len(row.file)} {row.file} {row.line} {json.dumps(name)} {len(text)} "
        digest.update((head + text).encode())
        rows.append(row)
        rows_read += 1
        characters += len(text)
        if len(rows) == chunk_rows or characters >= chunk_characters:
            yield chunk()
            rows, characters = [], 0
    if rows:
        yield chunk()


def refusal(row: BadRow) -> str:
    """The error that a bad row stops the work with."""
    way_out = 'pass on_error="skip" to leave such rows out'
    return f"{row.file}, line {row.line}: {row.reason}; {way_out}"
