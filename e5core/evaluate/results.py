"""mteb's result files of a run: what is there already is not computed again.

mteb names a result by the model's name and revision, by how it was run and by the revision of the
data on the hub. But a folder can be trained anew under its name, and files can stand in for the
hub. So each entry of a result says in two digests which model and which rows it is of.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from e5core.formats.durable import replace_durably, write_json_durably
from e5core.formats.files import read_json_object
from e5core.integrations import extra

with extra("mteb", "mteb"):
    from mteb import ResultCache
    from mteb.results import TaskResult

# mteb notes when and for how long a task ran. Tasks share their vectors here and a run may stop
# and go on, so these would mean nothing, and the same run would not write the same bytes.
TIMES = ("date", "evaluation_time", "evaluation_phases", "kg_co2_emissions")
MODEL = "model_meta.json"
# What e5core adds to each entry of mteb's scores: the digests of the model and of the data.
OF_MODEL, OF_DATA = "e5core_model", "e5core_data"

Scores = dict[str, Any]
Part = tuple[str, str]  # a split and a subset of a task


class Results:
    """The results under a folder, where mteb's ResultCache(folder) finds them too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cache = ResultCache(folder)

    def path(self, meta: Any, task: str) -> Path:
        """Where the result of a task lies, of a model that was run as its ModelMeta says."""
        return Path(self._cache.get_task_result_path(task, meta))

    def read(self, meta: Any, task: Any, model: str) -> Any | None:
        """The TaskResult that an earlier run left, with what is of this model, data and mteb.

        model  the digest of what the scores depend on beside the data
        """
        path = self.path(meta, task.metadata.name)
        if not path.is_file():
            return None
        read_json_object(path)  # its error says what to do with a damaged file
        result = TaskResult.from_disk(path)
        found = result.dataset_revision, result.mteb_version
        if found != (task.metadata.revision, version("mteb")):
            return None
        scores = {
            split: [entry for entry in entries if _is_of(entry, task, model)]
            for split, entries in result.scores.items()
        }
        scores = {split: entries for split, entries in scores.items() if entries}
        return result.model_copy(update={"scores": scores}) if scores else None

    def write(self, meta: Any, result: Any) -> Any:
        """Put a result on the disk, without times and with subsets in order; returns that."""
        scores = {
            split: sorted(entries, key=lambda entry: str(entry["hf_subset"]))
            for split, entries in sorted(result.scores.items())
        }
        result = result.model_copy(update={**dict.fromkeys(TIMES), "scores": scores})
        path = self.path(meta, result.task_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        # First, since a run that finds the result there writes neither again.
        write_json_durably(path.parent / MODEL, _plain(meta.to_dict()))
        with replace_durably(path) as temporary:
            result.to_disk(temporary)
        return result


def digest(value: Any) -> str:
    """The digest of a value that is JSON, with the names of its objects in any order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def parts_of(task: Any) -> list[Part]:
    return [(split, subset) for split in task.eval_splits for subset in task.hf_subsets]


def missing_parts(result: Any | None, task: Any) -> list[Part]:
    """The parts of a task that a result lacks."""
    scores = {} if result is None else result.scores
    there = {(split, entry["hf_subset"]) for split in scores for entry in scores[split]}
    return [part for part in parts_of(task) if part not in there]


def marked(result: Any, task: Any, model: str) -> Any:
    """A new result whose entries say what they are of."""
    scores = {
        split: [{**entry, OF_MODEL: model, OF_DATA: _rows_of(task, entry)} for entry in entries]
        for split, entries in result.scores.items()
    }
    return result.model_copy(update={"scores": scores})


def _is_of(entry: Scores, task: Any, model: str) -> bool:
    """Whether an entry is of a model, and of a task's data if it is among what the task loaded."""
    same_data = entry.get(OF_DATA, "") == _rows_of(task, entry)
    return entry.get(OF_MODEL) == model and (same_data or entry["hf_subset"] not in task.hf_subsets)


def _rows_of(task: Any, entry: Scores) -> str:
    """The digest of the rows of a subset that was read from files; "" if the revision says all."""
    return str(getattr(task, "digests", {}).get(entry["hf_subset"], ""))


def merged(before: Any | None, now: Any) -> Any:
    """Two results of one task as one; what both have is taken from the later one."""
    if before is None:
        return now
    scores: dict[str, list[Scores]] = {}
    for split in {*before.scores, *now.scores}:
        entries = [*before.scores.get(split, ()), *now.scores.get(split, ())]
        scores[split] = list({entry["hf_subset"]: entry for entry in entries}.values())
    return now.model_copy(update={"scores": scores})


def scores_of(result: Any, split: str, subsets: Sequence[str]) -> dict[str, float]:
    """The main score of each subset."""
    found = {entry["hf_subset"]: float(entry["main_score"]) for entry in result.scores[split]}
    return {subset: found[subset] for subset in subsets}


def _plain(value: Any) -> Any:
    """A value as JSON has it: what is no JSON becomes its text."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
