"""Rows as the objects that they are, from JSON and Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e5core.bulk import parquet
from e5core.bulk.blocks import Blocks
from e5core.bulk.json_rows import describe_other, read_values
from e5core.bulk.rows import BadRow
from e5core.bulk.sources import format_by_suffix


def read_objects(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, of one JSON array, or of Parquet, each with its line.

    Compressed JSON is read too. In Parquet the line is the number of the row.

    Raises OSError, or ValueError that names the file and the line at fault.
    """
    kind = format_by_suffix(file)
    if kind == "parquet":
        yield from enumerate(parquet.read_objects(file), 1)
        return
    if kind != "jsonl":
        raise ValueError(
            f"{file} is read as {kind}, expected .jsonl, .json or .parquet, whose rows have fields"
        )
    with Path(file).open("rb") as opened:
        for value in read_values(Blocks(opened, file, lambda size: None), file):
            if isinstance(value, BadRow):
                raise ValueError(f"{file}, line {value.line}: {value.reason}")
            if not isinstance(value.content, dict):
                raise ValueError(f"{file}, line {value.line}: {describe_other(value)}")
            yield value.line, value.content
