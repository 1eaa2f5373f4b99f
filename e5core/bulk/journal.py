"""The journal of a partial output: how far it is, what made it, and whether a run may go on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from e5core import kernels
from e5core.bulk.chunks import Chunk
from e5core.bulk.partial import BEGIN_ANEW, INPUTS, JOURNAL, PartialOutputError
from e5core.bulk.sources import STDIN
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.hub import needed_files
from e5core.checkpoint.tokenizers import is_plain
from e5core.formats.durable import write_json_durably
from e5core.formats.files import read_json, read_json_object, sha256

FORMAT = 3
GROUPS = ("model", "options", "versions")


@dataclass
class Done:
    """How far the work is.

    rows_read  rows of the input, bad ones too; sha256 is of these
    rows       vectors written
    tokens     of their texts before any cut
    cut        how many of them lost their end
    rejected   rows without a vector
    seconds    of work, in all runs
    sizes      the size of each file, as Sink.sizes gives them
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

    made_from  everything but the rows that the output's bytes depend on: {group: {name: value}}
    complete   nothing is left but to move the files to their names
    """

    folder: Path
    made_from: dict[str, dict[str, Any]]
    done: Done = field(default_factory=Done)
    complete: bool = False

    @property
    def hidden_size(self) -> int:
        """The size of the vectors, which is among what they were made from."""
        return int(self.made_from["options"]["hidden_size"])

    def write(self) -> None:
        content = {
            "format": FORMAT,
            "made_from": self.made_from,
            "done": asdict(self.done),
            "complete": self.complete,
        }
        write_json_durably(self.folder / JOURNAL, content)


def write_inputs(folder: Path, files: Sequence[Sequence[Any]]) -> None:
    """Note the input files with their sizes and times, to name a change by.

    They lie apart from the journal. It is written after each chunk, and would write the names of a
    million files each time.
    """
    write_json_durably(folder / INPUTS, files)


def read_inputs(folder: Path) -> list[list[Any]]:
    files = read_json(folder / INPUTS)
    if not isinstance(files, list) or not all(isinstance(file, list) and file for file in files):
        raise PartialOutputError(f"{folder / INPUTS} was changed from outside; {BEGIN_ANEW}")
    return files


def read_journal(folder: Path) -> Journal | None:
    """The journal that an earlier run left in a folder, None if there is none."""
    path = folder / JOURNAL
    if not path.is_file():
        return None
    try:
        content = read_json_object(path)
    except ValueError as error:
        raise PartialOutputError(f"{error}, or {BEGIN_ANEW}") from error
    if content.get("format") != FORMAT:
        raise PartialOutputError(
            f"{path} has the format {content.get('format')!r}, expected {FORMAT}: another version "
            f"of e5core wrote it; {BEGIN_ANEW}"
        )
    try:
        return _parse(folder, content)
    except (KeyError, TypeError, ValueError) as error:
        raise PartialOutputError(
            f"{path} is not a journal of e5core embed: {type(error).__name__} {error}; it was "
            f"changed from outside: {BEGIN_ANEW}"
        ) from error


def _parse(folder: Path, content: dict[str, Any]) -> Journal:
    """The journal from its JSON; KeyError, TypeError or ValueError if it has another shape."""
    done, made_from, complete = Done(**content["done"]), content["made_from"], content["complete"]
    for part in fields(Done):
        found, expected = getattr(done, part.name), type(getattr(Done(), part.name))
        if type(found) is not expected and (expected, type(found)) != (float, int):
            raise TypeError(f"done.{part.name} is {found!r:.40}, expected {expected.__name__}")
    sizes = done.sizes.values()
    if not all(type(size) is int and size >= 0 for size in sizes) or done.rows_read < 0:
        raise ValueError("the sizes of done are no numbers from 0")
    if type(complete) is not bool or not all(type(made_from[name]) is dict for name in GROUPS):
        raise TypeError("made_from or complete is of another type")
    if type(made_from["options"]["hidden_size"]) is not int:
        raise TypeError("hidden_size is no int")
    return Journal(folder, made_from, done, complete)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two `made_from`, in words."""
    found = []
    for group in sorted({*before, *now}):
        old, new = before.get(group, {}), now.get(group, {})
        for name in sorted({*old, *new}):
            if group == "model" and old.get(name) != new.get(name):
                found.append(f"the model's {name} is another")
            elif old.get(name) != new.get(name):
                is_now = repr(new.get(name))
                if name == "kernels" and name in new:  # and why these
                    is_now += describe_kernels(new).removeprefix(new[name])
                found.append(f"{name} was {old.get(name)!r}, is {is_now}")
    return found


def describe_kernels(options: Mapping[str, Any]) -> str:
    """The kernels that vectors are made with, and why no faster ones."""
    dtype: torch.dtype = getattr(torch, options["dtype"])
    return kernels.describe(options["kernels"], torch.device(options["device"]), dtype)


def check_same(journal: Journal, made_from: dict[str, dict[str, Any]], on_error: str) -> None:
    """Raise PartialOutputError unless this run would make the finished rows in the same way."""
    if found := differences(journal.made_from, made_from):
        raise PartialOutputError(
            f"{journal.folder} was begun otherwise: {'; '.join(found)}. Go on as it was begun, or "
            f"{BEGIN_ANEW}"
        )
    if journal.done.rejected and on_error == "stop":
        raise PartialOutputError(
            f'{journal.folder} was begun with on_error="skip" (--on-error skip) and has left out '
            f"{journal.done.rejected} rows; go on so, or {BEGIN_ANEW}"
        )


def skip_done(chunks: Iterator[Chunk], journal: Journal, files: list[list[str | int]]) -> None:
    """Read over the rows that are done; PartialOutputError if they are not the same rows."""
    done = journal.done
    if not done.rows_read:
        return
    for chunk in chunks:
        if chunk.rows_read >= done.rows_read:
            if (chunk.rows_read, chunk.sha256) == (done.rows_read, done.sha256):
                return
            break
    before = read_inputs(journal.folder)
    names = [file[0] for file in before]
    if names != [file[0] for file in files]:
        change = f"the files were {', '.join(names)}"
    else:
        pairs = zip(before, files, strict=True)
        changed = ", ".join(old[0] for old, new in pairs if old != new or old[0] == STDIN)
        change = f"changed: {changed}" if changed else "a file was replaced or is read otherwise"
    raise PartialOutputError(
        f"{journal.folder} holds the vectors of {done.rows_read} rows that are no longer the first "
        f"ones of the input ({change}); restore the input, or {BEGIN_ANEW}"
    )


def holds(chunks: Iterator[Chunk], done: Done) -> bool:
    """Whether the chunks hold exactly the rows that are done, and none behind them."""
    rows_read, sha256 = 0, ""
    for chunk in chunks:
        rows_read, sha256 = chunk.rows_read, chunk.sha256
        if rows_read > done.rows_read:
            return False
    return (rows_read, sha256) == (done.rows_read, done.sha256)


def check_nothing_more(chunks: Iterator[Chunk], journal: Journal) -> None:
    """PartialOutputError if rows have come behind those of a complete output."""
    if next(chunks, None) is not None:
        raise PartialOutputError(
            f"the input has more rows than {journal.folder}, which is complete; {BEGIN_ANEW}"
        )


def model_digests(model: ModelFolder) -> dict[str, str]:
    """SHA-256 of each file of a model that its vectors depend on, by the names of the files.

    A tokenizer.json that says nothing beyond the SentencePiece model beside it does not count:
    another program may add it to a download, or remove it.
    """
    folder = model.path
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    names = {*needed_files(present, plain=is_plain(model.tokenizer_file))}
    for step in model.dense:
        if step.folder.is_relative_to(folder):  # and is not the base model's
            inner = step.folder.relative_to(folder).as_posix()
            names |= {name for name in present if name.startswith(f"{inner}/")}
    found = {name: sha256(folder / name) for name in sorted(names)}
    base = {} if model.base is None else model_digests(model.base)
    return found | {f"base model's {name}": digest for name, digest in base.items()}
