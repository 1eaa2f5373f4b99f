"""Rows of a user's own files, read as those that e5core embed reads; errors name the line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from e5core.bulk.blocks import Blocks
from e5core.bulk.objects import read_objects
from e5core.bulk.quotes import tsv_records
from e5core.bulk.rows import BadRow, describe_surrogate
from e5core.bulk.text import csv_records

LAYOUTS = "docs/evaluation.md shows the layouts"


def read_fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row that is not blank, with its line. A header is a row as any other.

    file  .csv, or .tsv with the quotation marks of CSV or with none

    Raises OSError, or ValueError that names the file and the line at fault.
    """
    if file.suffix not in (".csv", ".tsv"):
        raise ValueError(f"{file} ends in {file.suffix!r}, expected .tsv, .csv or .jsonl")
    with file.open("rb") as opened:
        lines = Blocks(opened, str(file), lambda size: None).lines()
        tabs = file.suffix == ".tsv"
        for line, fields in (
            tsv_records(lines, str(file)) if tabs else csv_records(lines, str(file), ",")
        ):
            if isinstance(fields, BadRow):
                raise ValueError(f"{file}, line {line}: {fields.reason}; {LAYOUTS}")
            for field in fields:
                _check_characters(field, file, line)
            if any(fields):
                yield line, fields


def read_named(file: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl file, each with its line; ValueError if one lacks a name."""
    for line, fields in read_objects(str(file)):
        if missing := [name for name in names if name not in fields]:
            raise ValueError(f"{file}, line {line} has no {missing[0]!r}; {LAYOUTS}")
        yield line, fields


def text_of(fields: Mapping[str, Any], name: str, file: Path, line: int) -> str:
    """A field that holds a text; ValueError if it holds something else."""
    value = fields[name]
    if not isinstance(value, str):
        raise ValueError(
            f"{file}, line {line}: {name} is {value!r:.60} of type {type(value).__name__}, "
            f"expected text; {LAYOUTS}"
        )
    _check_characters(value, file, line)
    return value


def _check_characters(text: str, file: Path, line: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{file}, line {line}: {describe_surrogate(error)}") from None
