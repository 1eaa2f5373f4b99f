"""The folder in which an output grows: what lies in it, who works in it, how it is published."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from e5core.formats.durable import sync, temporary_name
from e5core.formats.files import lock_folder

JOURNAL = "journal.json"
INPUTS = "inputs.json"
VECTORS = "vectors"
IDS = "ids.jsonl"
REJECTS = "rejects.jsonl"
SHARDS = "shards"
RECORD = "json"  # a file is published as `<output>.` and its name here
REPLACED = "replaced"  # a folder of shards that a new one takes the place of

PARQUET = ".parquet"
BEGIN_ANEW = "pass restart=True (--restart) to begin anew"
FORCE = "pass force=True (--force) to replace it"


class PartialOutputError(ValueError):
    """A partial output that this run cannot go on from."""


def partial_folder(output: Path) -> Path:
    """Where an output grows until it is complete."""
    output = follow(output)
    return output.with_name(f"{output.name}.partial")


def follow(output: Path) -> Path:
    """The file that a link leads to. That file is written, and the link stays a link."""
    return Path(os.path.realpath(output)) if output.is_symlink() else output


def published_names(output: Path) -> dict[str, Path]:
    """Where each file of the partial output belongs when it is complete, the vectors last."""
    names = [REJECTS, RECORD] if output.suffix == PARQUET else [REJECTS, IDS, RECORD]
    beside = {name: output.with_name(f"{output.name}.{name}") for name in names}
    return {**beside, SHARDS if output.suffix == PARQUET else VECTORS: output}


@contextmanager
def lock_partial_folder(output: Path) -> Iterator[Path]:
    """Make the folder and keep other runs out; remove it at the end if there is nothing in it.

    Raises PartialOutputError if another run is at work in it.
    """
    folder = partial_folder(output)
    folder.mkdir(exist_ok=True)
    with lock_folder(folder) as ours:
        if not ours:
            raise PartialOutputError(f"{folder} is in use by another run; wait for its end")
        try:
            yield folder
        finally:
            if not (folder / JOURNAL).is_file():  # all is done, or nothing was
                with suppress(OSError):  # it holds something that is not ours, such as .DS_Store
                    clear(folder)
                    folder.rmdir()


def publish(output: Path, rejected: int) -> None:
    """Move complete files to their names; a run that was stopped here has moved some already.

    rejected  the number of rows without a vector: with none there is no file of them
    """
    folder = partial_folder(output)
    for name, target in published_names(output).items():
        file = folder / name
        if name == REJECTS and not rejected:
            target.unlink(missing_ok=True)  # of the output that this one replaces
        elif file.exists():
            if name == SHARDS and target.exists():  # no folder takes the place of another
                target.replace(folder / REPLACED)
            file.replace(target)
    sync(output.parent)
    clear(folder, journal_last=True)


def clear(folder: Path, journal_last: bool = False) -> None:
    """Remove what a run writes into its folder, and nothing else.

    The journal goes first, since without it the rest means nothing; or last, when the rest is in
    its place and the journal alone says that nothing is left to do.
    """
    written = [folder / name for name in (INPUTS, VECTORS, IDS, REJECTS, RECORD)]
    written += [temporary_name(folder / name) for name in (JOURNAL, INPUTS, RECORD)]
    written += [*(folder / SHARDS).glob("part-*"), *(folder / REPLACED).glob("part-*")]
    for file in [*written, folder / JOURNAL] if journal_last else [folder / JOURNAL, *written]:
        file.unlink(missing_ok=True)
    for name in (SHARDS, REPLACED):
        with suppress(FileNotFoundError):
            (folder / name).rmdir()
