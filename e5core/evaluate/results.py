"""mteb's result files of a run: what is there already is not computed again."""

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

Scores = dict[str, Any]


class Results:
    """The results under a folder, where mteb's ResultCache(folder) finds them too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cache = ResultCache(folder)

    def path(self, meta: Any, task: str) -> Path:
        """Where the result of a task lies, of a model that was run as its ModelMeta says."""
        return Path(self._cache.get_task_result_path(task, meta))

    def read(self, meta: Any, task: Any) -> Any | None:
        """The TaskResult that an earlier run left, if it is of the same data and of this mteb."""
        path = self.path(meta, task.metadata.name)
        if not path.is_file():
            return None
        read_json_object(path)  # its error says what to do with a damaged file
        result = TaskResult.from_disk(path)
        found = result.dataset_revision, result.mteb_version
        return result if found == (task.metadata.revision, version("mteb")) else None

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


def missing_subsets(result: Any | None, task: Any) -> list[str]:
    """The subsets of a task that a result lacks in one of its splits."""
    if result is None:
        return list(task.hf_subsets)
    there = [
        {entry["hf_subset"] for entry in result.scores.get(split, ())} for split in task.eval_splits
    ]
    return [subset for subset in task.hf_subsets if not all(subset in split for split in there)]


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
