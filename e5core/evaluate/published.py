"""The figures that are published of multilingual E5, in both generations of mteb's protocol."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.json")
SIZES = ("small", "base", "large", "large-instruct")
# A retrieval task has prefixes of its own in both generations.
RETRIEVAL = "Retrieval"
_NAME = re.compile(r"multilingual-e5-(small|base|large-instruct|large)(?![a-z0-9])")


def size_of(model: str | Path) -> str | None:
    """The published model that a name speaks of, None if it is none of them.

    The name of a folder counts: one that was converted from e5-small says so by keeping its name.
    """
    found = _NAME.search(Path(model).name.lower())
    return found[1] if found else None


def published(
    size: str, task: str, kind: str, prefix: str, split: str, subset: str
) -> float | None:
    """The main score of a published model, None if it is not known.

    size    one of SIZES
    kind    the type of the task
    prefix  of symmetric tasks, "query" or "none": figures compare within one generation only
    """
    generation = "query" if kind == RETRIEVAL else prefix
    scores = _tasks().get(task, {}).get(generation, {}).get(size, {}).get(split, {})
    score = scores.get(subset)
    return None if score is None else float(score)


@cache
def _tasks() -> dict[str, Any]:
    tasks: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))["tasks"]
    return tasks
