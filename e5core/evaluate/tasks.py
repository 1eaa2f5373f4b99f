"""Tasks of mteb, with their data from the hub or from files: what is run, in which languages."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

from e5core.evaluate.readers import DEFAULT, LAYOUTS, Columns, Found
from e5core.evaluate.results import digest
from e5core.integrations import extra

with extra("mteb", "mteb", "datasets"):
    import mteb
    from datasets import Dataset, DatasetDict

RETRIEVAL, BITEXT, STS = "Retrieval", "BitextMining", "STS"
CLASSIFICATION, CLUSTERING = "Classification", "Clustering"
ENGLISH = "eng"


def open_tasks(
    names: Sequence[str],
    data: Path | None = None,
    languages: Sequence[str] = (),
    splits: Sequence[str] = (),
) -> list[Any]:
    """Tasks with their data loaded.

    names      of mteb
    data       a folder of files as their authors publish them; None takes the hub's
    languages  restrict the subsets, as `choose_subsets` says
    splits     restrict the splits; those that mteb evaluates otherwise

    Raises ValueError for a task, language or split that there is not, OSError for missing files.
    """
    tasks = []
    for name in dict.fromkeys(names):
        try:
            task = mteb.get_task(name)
        except KeyError as error:
            raise ValueError(f"mteb has no task of that name: {error.args[0]}") from None
        if splits:
            chosen = [split for split in task.metadata.eval_splits if split in splits]
            if not chosen:
                there = ", ".join(task.metadata.eval_splits)
                raise ValueError(f"{name} has none of the splits {', '.join(splits)}, but {there}")
            task.filter_eval_splits(chosen)
        task.hf_subsets = choose_subsets(task, languages)
        if data is None:
            task.load_data()
        else:
            take_data_from(task, data)
        tasks.append(task)
    known = {name for task in tasks for subset in task.hf_subsets for name in _names(task, subset)}
    if tasks and (strange := sorted(set(languages) - known)):
        raise ValueError(f"none of the tasks has data in {', '.join(strange)}; leave it out")
    return tasks


def _names(task: Any, subset: str) -> set[str]:
    """The names by which a subset can be asked for, all of them together or its own alone."""
    codes = task.metadata.hf_subsets_to_langscripts[subset]
    return {subset, *codes, *(code.split("-")[0] for code in codes)}


@contextmanager
def silence() -> Iterator[None]:
    """Keep bars and advice of mteb and of its libraries off the screen; errors are raised."""
    with redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def choose_subsets(task: Any, languages: Sequence[str]) -> list[str]:
    """The subsets of a task in the languages wanted; all of them if none are named.

    A subset is taken if its own name is given ("de", "deu-eng"), or if each of its languages but
    English is, as ISO 639-3 ("deu") or with its script ("deu-Latn").
    """
    if not languages:
        return list(task.hf_subsets)
    wanted = set(languages)
    chosen = []
    for subset in task.hf_subsets:
        codes = task.metadata.hf_subsets_to_langscripts[subset]
        others = [code for code in codes if code.split("-")[0] != ENGLISH] or codes
        if subset in wanted or all({code, code.split("-")[0]} & wanted for code in others):
            chosen.append(subset)
    if not chosen:
        some = ", ".join(list(task.hf_subsets)[:8])
        raise ValueError(
            f"{task.metadata.name} has nothing in {', '.join(languages)}; its subsets are {some}, …"
        )
    return chosen


def take_data_from(task: Any, data: Path) -> None:
    """Let a task load its data from files, and load it. Subsets without files are left out.

    Raises ValueError if no layout is known for the task, OSError if none of its files is there.
    """
    name = task.metadata.name
    if name not in LAYOUTS:
        raise ValueError(
            f"{name} cannot be read from files, only {', '.join(LAYOUTS)}; leave out data "
            "(--data) to take it from the hub"
        )
    task.load_data = partial(_load_data, task, data / LAYOUTS[name].folder)
    task.load_data()


def _load_data(task: Any, folder: Path, **_: Any) -> None:
    if task.data_loaded:
        return
    name = task.metadata.name
    found = LAYOUTS[name].read(folder, task.hf_subsets)
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no data of {name} in {', '.join(task.hf_subsets[:8])}; "
            "docs/evaluation.md says which files it takes"
        )
    task.hf_subsets = list(found)
    task.digests = _digests(found)
    with silence():
        _TAKE[task.metadata.type](task, found)
    task.data_loaded = True


def _digests(found: Found) -> dict[str, str]:
    """The digest of each subset's rows. A column that several subsets share is read once."""
    columns = {
        id(values): values
        for splits in found.values()
        for named in splits.values()
        for values in named.values()
    }
    of = {number: digest(values) for number, values in columns.items()}
    return {
        subset: digest(
            {
                split: {name: of[id(values)] for name, values in named.items()}
                for split, named in splits.items()
            }
        )
        for subset, splits in found.items()
    }


def _take_retrieval(task: Any, found: Found) -> None:
    task.dataset = {
        subset: {split: retrieval_split(columns) for split, columns in splits.items()}
        for subset, splits in found.items()
    }


def retrieval_split(columns: Columns) -> dict[str, Any]:
    """Documents [id, text], queries [id, text] and relevant [query, {document: grade}]."""
    documents, queries = (
        Dataset.from_dict({"id": [row[0] for row in rows], "text": [row[1] for row in rows]})
        for rows in (columns["documents"], columns["queries"])
    )
    return {
        "corpus": documents,
        "queries": queries,
        "relevant_docs": dict(columns["relevant"]),
        "top_ranked": None,
    }


def _take_table(task: Any, found: Found) -> None:
    """Tasks of one table a subset and split."""
    if task.metadata.name == "STSBenchmarkMultilingualSTS":  # mteb renames what the hub has
        for split in (split for splits in found.values() for split in splits.values()):
            split["similarity_score"] = split.pop("score")
    tables = {subset: _tables(splits) for subset, splits in found.items()}
    task.dataset = tables if task.metadata.is_multilingual else tables[DEFAULT]
    task.dataset_transform()


def _take_bitext(task: Any, found: Found) -> None:
    if not task.parallel_subsets:
        _take_table(task, found)
        return
    # All languages are columns of one table, and the subsets name two columns each.
    together: dict[str, Columns] = {}
    for splits in found.values():
        for split, columns in splits.items():
            together.setdefault(split, {}).update(columns)
    task.dataset = _tables(together)


def _tables(splits: Mapping[str, Columns]) -> Any:
    return DatasetDict({split: Dataset.from_dict(columns) for split, columns in splits.items()})


_TAKE = {
    RETRIEVAL: _take_retrieval,
    BITEXT: _take_bitext,
    STS: _take_table,
    CLASSIFICATION: _take_table,
    CLUSTERING: _take_table,
}
