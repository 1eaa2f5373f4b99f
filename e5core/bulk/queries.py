"""Queries to vectors that a job made: embedded as these were, or refused with the difference."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from e5core.bulk.journal import differences, model_digests
from e5core.bulk.rows import Row
from e5core.bulk.sources import STDIN, Source
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.model import E5, InputType
from e5core.prompts import check_prompts
from e5core.vectors.index import Index

# The input type of a query, for each type of the vectors that it is compared with.
QUERY_TYPES: dict[str | None, InputType] = {"passage": "query", "query": "query", None: None}


@dataclass(frozen=True)
class QueryOptions:
    """How queries are to be embedded. An option that is None follows the job of the vectors."""

    model: str | Path | None = None
    input_type: Literal["query", "passage", "none"] | None = None
    task: str | None = None
    load: LoadOptions = LoadOptions()


def query_model(index: Index, name: str | Path, options: QueryOptions) -> tuple[E5, dict[str, Any]]:
    """The model that embeds queries to an index, and the arguments of its `embed`.

    name  what errors call the index

    Raises ValueError if nothing says what made the index, or if the options ask for another model,
    other prompts, another task of a symmetric index, or passages in place of queries.
    """
    made = index.made_from
    if made is None or not _is_whole(made):
        raise ValueError(
            f"nothing says what made {name}: e5core embed writes it to {name}.json. Embed the "
            "files anew, or search from Python with e5core.Index.open"
        )
    load = options.load
    if load.prompts is not None and check_prompts(load.prompts) != made["prompts"]:
        raise ValueError(
            f"{name} was made otherwise: prompts was {made['prompts']}, is "
            f"{check_prompts(load.prompts)}. Leave prompts out (--prompts)"
        )
    size = made["options"]["hidden_size"]
    if load.truncate_dim not in (None, size):
        raise ValueError(
            f"{name} holds vectors of {size} numbers, truncate_dim is {load.truncate_dim}. Leave "
            "it out (--truncate-dim)"
        )
    arguments = _arguments(made, name, options)
    folder = _open_model(made, name, options)
    model = E5.from_folder(folder, replace(load, prompts=made["prompts"]))
    return model, arguments


def _is_whole(made: Mapping[str, Any]) -> bool:
    """Whether a record says all that is asked of it; other programs may write such files too."""
    try:
        size, files = made["options"]["hidden_size"], made["model"]["files"]
        named = isinstance(made["model"]["name"], str) and isinstance(files, dict)
        said = {"prompts", "task"} <= made.keys() and made["input_type"] in QUERY_TYPES
        return type(size) is int and named and said
    except (KeyError, TypeError):
        return False


def _open_model(made: Mapping[str, Any], name: str | Path, options: QueryOptions) -> ModelFolder:
    """The model's folder, whose files are those that made the index."""
    wanted = made["model"]["name"] if options.model is None else options.model
    try:
        folder = ModelFolder.open(wanted, options.load)
    except OSError as error:
        raise OSError(
            f"{name} was made by {made['model']['name']}: {error}; name the model's folder "
            "(--model)"
        ) from error
    found = differences({"model": made["model"]["files"]}, {"model": model_digests(folder)})
    if found:
        raise ValueError(
            f"{name} was made by another model, {made['model']['name']}, than {wanted} is now: "
            f"{'; '.join(found)}. Name the model that made it (--model)"
        )
    return folder


def _arguments(made: Mapping[str, Any], name: str | Path, options: QueryOptions) -> dict[str, Any]:
    """The type, the task and the size of the queries, as the vectors want them."""
    vectors = made["input_type"]
    fits = QUERY_TYPES[vectors]
    asked = None if options.input_type == "none" else options.input_type
    if options.input_type is not None and asked != fits:
        kind = "texts without a prefix" if vectors is None else f"vectors of type {vectors}"
        raise ValueError(
            f"input_type is {options.input_type!r}, but {name} holds {kind}, whose queries are "
            f"{'texts without one' if fits is None else f'of type {fits}'}: pass "
            f"--input-type {fits or 'none'}, or leave it out"
        )
    task = options.task
    if vectors == "query":  # all texts of a symmetric task have the same one
        if task is not None and task != made["task"]:
            raise ValueError(
                f"{name} was made otherwise: task was {made['task']!r}, is {task!r}. Leave it out "
                "(--task)"
            )
        task = made["task"]
    return {"input_type": fits, "task": task, "truncate_dim": made["options"]["hidden_size"]}


def read_passages(
    index: Index, path: Path, places: Iterable[int], **reading: str | None
) -> dict[int, str]:
    """The texts of some vectors, by their places, read anew from the files that they came from.

    path     of the index
    reading  arguments of Source for the files; an argument that is missing or None is the job's

    A text is left out if its file is gone, cannot be read, or has changed since the vectors were
    made.
    """
    made, rows = index.made_from, index.rows
    if made is None or rows is None:
        return {}
    wanted: dict[str, dict[int, list[int]]] = {}  # file → line → places
    for place in places:
        lines = wanted.setdefault(rows[place]["file"], {})
        lines.setdefault(rows[place]["line"], []).append(place)
    known = {**made["options"], **made.get("reading", {})}
    known |= {name: value for name, value in reading.items() if value is not None}
    options = {name: known[name] for name in signature(Source).parameters if name in known}
    texts: dict[int, str] = {}
    for file, lines in wanted.items():
        try:
            if file == STDIN or Path(file).stat().st_mtime > path.stat().st_mtime:
                continue
            for row in Source([file], **options).rows():
                if isinstance(row, Row) and row.line in lines:
                    for place in lines.pop(row.line):
                        start, end = rows[place].get("start"), rows[place].get("end")
                        texts[place] = row.text[start:end]
                if not lines:
                    break
        except (OSError, ValueError, ImportError):
            continue
    return texts
