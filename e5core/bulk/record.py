"""The record beside a finished output, `<output>.json`: what made it, and from how many rows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e5core.bulk.chunks import ChunkSize, split_into_chunks
from e5core.bulk.journal import Done, Journal, differences, holds
from e5core.bulk.options import JobOptions
from e5core.bulk.partial import FORCE, PARQUET, RECORD, REJECTS, published_names
from e5core.bulk.sources import Source
from e5core.checkpoint.folder import ModelFolder
from e5core.formats.durable import write_json_durably
from e5core.formats.files import read_json_object
from e5core.prompts import check_prompts

FORMAT = 1
# No count here differs from one run to the next, so the same job writes the same bytes.
COUNTS = ("rows", "rows_read", "tokens", "cut", "rejected")


def write_record(journal: Journal, model: ModelFolder, options: JobOptions) -> None:
    """Write what made the output into its partial folder, from where it is published."""
    output = options.output
    given, own, chosen = options.load.prompts, model.prompts, dict(journal.made_from["options"])
    files, done = journal.made_from["model"], asdict(journal.done)
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    content = {
        "format": FORMAT,
        "model": {"name": model.name, "sha256": digest, "files": files},
        "prompts": own if given is None else check_prompts(given),
        "input_type": chosen.pop("input_type"),
        "task": chosen.pop("task"),
        "options": chosen,
        "reading": {"format": options.format, "delimiter": options.delimiter},
        "versions": journal.made_from["versions"],
        "counts": {name: done[name] for name in COUNTS},
        "rows_sha256": done["sha256"],
        "sizes": file_sizes({name: journal.folder / name for name in published_names(output)}),
    }
    write_json_durably(journal.folder / RECORD, content)


def read_record(output: Path) -> Journal | None:
    """The journal of a finished output, as its record tells it.

    returns  None if there is no output, or no record of what made it
    """
    path = published_names(output)[RECORD]
    if not output.exists() or not path.is_file():
        return None
    try:
        content = read_json_object(path)
        if content["format"] != FORMAT:
            return None
        options = {name: content[name] for name in ("input_type", "task")} | content["options"]
        groups: dict[str, dict[str, Any]] = {
            "model": content["model"]["files"],
            "options": options,
            "versions": content["versions"],
        }
        counts: dict[str, Any] = {name: int(content["counts"][name]) for name in COUNTS}
        sizes = {str(name): int(size) for name, size in content["sizes"].items()}
        done = Done(**{"sha256": str(content["rows_sha256"]), **counts}, sizes=sizes)
        return Journal(path.parent, groups, done, complete=True)
    except (ValueError, KeyError, TypeError, AttributeError):  # a file of somebody else
        return None


def file_sizes(places: Mapping[str, Path]) -> dict[str, int]:
    """The bytes of each file of an output but the record, by its name in the partial folder."""
    sizes: dict[str, int] = {}
    for name, place in places.items():
        if place.is_dir():
            sizes |= {f"{name}/{file.name}": file.stat().st_size for file in place.glob("part-*")}
        elif place.is_file() and name != RECORD:
            sizes[name] = place.stat().st_size
    return {name: size for name, size in sorted(sizes.items()) if size or name != REJECTS}


def check_whole(finished: Journal, output: Path) -> None:
    """FileExistsError if a file of an output is not as large as it was when it was finished."""
    before, now = finished.done.sizes, file_sizes(published_names(output))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise FileExistsError(
                f"{output} was changed after it was finished: its {name} has {now.get(name)} "
                f"bytes, expected {before.get(name)}. Restore it, or {FORCE}"
            )


def check_not_other(finished: Journal, made_from: dict[str, dict[str, Any]], output: Path) -> None:
    """FileExistsError if an output was made by another model or with other options.

    Another version of e5core or of torch may replace it: that is the same command.
    """
    before, now = ({**groups, "versions": {}} for groups in (finished.made_from, made_from))
    if found := differences(before, now):
        raise FileExistsError(
            f"{output} is finished and was made otherwise: {'; '.join(found)}. Name another "
            f"output, or {FORCE}"
        )


def check_output_is_free(
    options: JobOptions, journal: Journal | None, finished: Journal | None
) -> None:
    """Raise FileExistsError for a folder of shards that exists already.

    A folder that a run was publishing passes. One with a record passes too: it is checked later.
    """
    output = options.output
    if output.suffix != PARQUET or not output.exists() or (journal and journal.complete):
        return
    if not options.force and finished is None:
        raise FileExistsError(
            f"{output} is there already; move it away, name another output, or {FORCE}"
        )
    if options.force and (strange := [f for f in output.iterdir() if not f.match("part-*")]):
        raise FileExistsError(f"{output} holds {strange[0].name}, which is no shard; move it away")


def is_done(finished: Journal, options: JobOptions, source: Source, size: ChunkSize) -> bool:
    """Whether a finished output holds these very rows, so that nothing is left to do.

    Raises FileExistsError if it is a folder of shards that holds others, or is to be made anew,
    and if a file of the output has another size by now.
    """
    shards = options.output.suffix == PARQUET
    if not options.restart:
        again = options.open_source()
        source.share_stdin(again, options.output.parent)
        chunks = split_into_chunks(again, size, options.on_error == "stop")
        if holds(chunks, finished.done):
            check_whole(finished, options.output)
            return True
    if shards:
        raise FileExistsError(
            f"{options.output} is there already, of other rows; name another output, or {FORCE}"
        )
    return False
