"""What a task's data holds: its texts, their counts, and whether mteb counts the same."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from e5core.evaluate.tasks import BITEXT, CLASSIFICATION, CLUSTERING, RETRIEVAL, STS


class Counts(NamedTuple):
    """Rows of a split, and characters of all their texts."""

    rows: int
    characters: int


class Miscount(NamedTuple):
    """Data that is not what mteb describes."""

    task: str
    subset: str
    split: str
    found: Counts
    expected: Counts

    def __str__(self) -> str:
        return (
            f"{self.task} {self.subset} {self.split} has {self.found.rows} rows with "
            f"{self.found.characters} characters, but mteb counts {self.expected.rows} with "
            f"{self.expected.characters}: its figures compare with no published ones"
        )


def table_of(task: Any, subset: str, split: str) -> Any:
    """The table of a subset and split; a task of one subset has its splits on top."""
    return task.dataset.get(subset, task.dataset)[split]


def texts_of(task: Any, subset: str, split: str) -> list[Sequence[str]]:
    """The columns of texts that a task has in a subset and split, whatever its kind.

    Raises ValueError for a kind of task that has no texts of its own here.
    """
    kind, data = task.metadata.type, task.dataset
    if kind == RETRIEVAL:
        part = data[subset][split]
        return [_documents(part["corpus"]), list(part["queries"]["text"])]
    if kind == BITEXT and task.parallel_subsets:
        return [list(data[split][language]) for language in subset.split("-")]
    table = table_of(task, subset, split)
    if kind in (BITEXT, STS):
        columns: Sequence[str] = ("sentence1", "sentence2")
    elif kind in (CLASSIFICATION, CLUSTERING):
        columns = (task.input_column_name,)
    else:
        raise ValueError(f"{task.metadata.name} is of the kind {kind}, whose texts are not known")
    return [list(table[column]) for column in columns]


def count_texts(tasks: Sequence[Any]) -> int | None:
    """How many texts the tasks will ask for, at most; None if that is not known."""
    try:
        return sum(_asked_for(task) for task in tasks)
    except (ValueError, KeyError, TypeError):  # a kind of task, or of data, that is not known here
        return None


def check_counts(task: Any) -> Iterator[Miscount]:
    """Where rows or characters are not those that mteb has published of the task's data.

    Of data that mteb does not describe, such as one's own, there is nothing to say.
    """
    for split in task.eval_splits:
        described = (task.metadata.descriptive_stats or {}).get(split, {})
        for subset in task.hf_subsets:
            expected = described.get("hf_subset_descriptive_stats", {subset: described}).get(subset)
            if not expected:
                continue
            columns = texts_of(task, subset, split)
            rows = sum(map(len, columns)) if task.metadata.type == RETRIEVAL else len(columns[0])
            found = Counts(rows, sum(len(text) for texts in columns for text in texts))
            published = Counts(expected["num_samples"], _characters(expected))
            if found != published:
                yield Miscount(task.metadata.name, subset, split, found, published)


def _asked_for(task: Any) -> int:
    total = 0
    seen: set[tuple[str, str]] = set()
    for split in task.eval_splits:
        for subset in task.hf_subsets:
            if task.metadata.type == BITEXT and task.parallel_subsets:
                sides = {(split, language) for language in subset.split("-")} - seen
                seen |= sides
                total += len(sides) * len(task.dataset[split])
                continue
            total += sum(map(len, texts_of(task, subset, split)))
            if task.metadata.type == CLASSIFICATION:
                total += _sampled(task, subset)
    return total


def _sampled(task: Any, subset: str) -> int:
    """At most so many texts of the train split: mteb samples some of each label, several times."""
    table = table_of(task, subset, task.train_split)
    labels = len(set(table[task.label_column_name]))
    return min(len(table), labels * int(task.samples_per_label) * int(task.n_experiments))


def _documents(corpus: Any) -> list[str]:
    """The documents as a model reads them, with their titles."""
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    return [
        f"{title} {text}".strip() if title else text.strip()
        for title, text in zip(titles, corpus["text"], strict=True)
    ]


def _characters(described: dict[str, Any]) -> int:
    if "number_of_characters" in described:
        return int(described["number_of_characters"])
    return int(described["text_statistics"]["total_text_length"])
