"""What a partial output holds, and what it was made from: the file that a stopped run leaves."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from e5core.bulk.sinks import IDS, REJECTS, SHARDS, VECTORS, naming, sync
from e5core.checkpoint.hub import needed_files
from e5core.formats.files import read_json, read_json_object, sha256

JOURNAL = "journal.json"
INPUTS = "inputs.json"
FORMAT = 2


class PartialOutputError(ValueError):
    """A partial output that this run cannot go on from."""


@dataclass
class Done:
    """How far the work is.

    rows_read  rows of the input, bad ones too; sha256 is of these
    rows       vectors written
    tokens     of their texts before any cut
    cut        how many of them lost their end
    rejected   rows without a vector
    seconds    of work, in all runs
    sizes      of the files, as their sinks want them
    """

    rows_read: int = 0
    sha256: str = ""
    rows: int = 0
    tokens: int = 0
    cut: int = 0
    rejected: int = 0
    seconds: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class Journal:
    """The journal of a folder; `write` makes it hold on the disk before it returns.

    made_from  whatever the bytes of the output depend on, beside the rows: {group: {name: value}}
    complete   nothing is left but to move the files to their names
    """

    folder: Path
    made_from: dict[str, dict[str, Any]]
    done: Done = field(default_factory=Done)
    complete: bool = False

    def write(self) -> None:
        content = {
            "format": FORMAT,
            "made_from": self.made_from,
            "done": asdict(self.done),
            "complete": self.complete,
        }
        _write_json(self.folder / JOURNAL, content)


def write_inputs(folder: Path, files: list[list[Any]]) -> None:
    """Note the input files with their sizes and times, to name a change by.

    Apart from the journal, which would write the names of a million files again after each chunk.
    """
    _write_json(folder / INPUTS, files)


def read_inputs(folder: Path) -> list[list[Any]]:
    files: list[list[Any]] = read_json(folder / INPUTS)
    return files


def _write_json(path: Path, content: object) -> None:
    temporary = path.with_name(f"{path.name}.temporary")
    with naming(temporary), temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def read_journal(folder: Path) -> Journal | None:
    """The journal that an earlier run left in a folder, None if there is none."""
    path = folder / JOURNAL
    if not path.is_file():
        return None
    try:
        content = read_json_object(path)
    except ValueError as error:
        raise PartialOutputError(f"{error}, or pass restart=True to begin anew") from error
    if content.get("format") != FORMAT:
        raise PartialOutputError(
            f"{path} has the format {content.get('format')!r}, expected {FORMAT}: another version "
            "of e5core wrote it; pass restart=True to begin anew"
        )
    done = Done(**content["done"])
    return Journal(folder, content["made_from"], done, content["complete"])


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two `made_from`, in words."""
    found = []
    for group in sorted({*before, *now}):
        old, new = before.get(group, {}), now.get(group, {})
        for name in sorted({*old, *new}):
            if group == "model" and old.get(name) != new.get(name):
                found.append(f"the model's {name} is another")
            elif old.get(name) != new.get(name):
                found.append(f"{name} was {old.get(name)!r}, is {new.get(name)!r}")
    return found


def model_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a model that loading it reads."""
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return {name: sha256(folder / name) for name in needed_files(present)}


def clear(folder: Path, journal_last: bool = False) -> None:
    """Remove what a run writes into its folder, and nothing else.

    The journal goes first, since without it the rest means nothing; or last, when the rest is in
    its place and the journal alone says that nothing is left to do.
    """
    written = (INPUTS, VECTORS, IDS, REJECTS, *(f"{name}.temporary" for name in (JOURNAL, INPUTS)))
    others = [folder / name for name in written]
    others += (folder / SHARDS).glob("part-*")
    files = [*others, folder / JOURNAL] if journal_last else [folder / JOURNAL, *others]
    for file in files:
        file.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        (folder / SHARDS).rmdir()
