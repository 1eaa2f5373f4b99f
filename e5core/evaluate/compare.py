"""Two models on the same tasks: by language, the difference and its bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e5core.evaluate.contents import table_of
from e5core.evaluate.metrics import (
    Floats,
    Interval,
    bitext_f1,
    interval_of,
    resampled_means,
    resampled_spearman,
)
from e5core.evaluate.results import scores_of
from e5core.evaluate.tasks import BITEXT, CLASSIFICATION, CLUSTERING, RETRIEVAL, STS
from e5core.formats.files import read_json_object
from e5core.integrations import extra

with extra("mteb", "mteb", "pytrec_eval"):
    import pytrec_eval


# The scores that items are known to add up to. Some tasks have another main score of the same kind.
MAIN_SCORES = {
    RETRIEVAL: "ndcg_at_10",
    BITEXT: "f1",
    STS: "cosine_spearman",
    CLASSIFICATION: "accuracy",
    CLUSTERING: "v_measure",
}


@dataclass(frozen=True)
class Comparison:
    """Two scores of one task, split and subset.

    interval   of the second minus the first; None for a kind of task or main score whose items are
               not known
    resampled  [resamples] differences, of which the interval is
    """

    task: str
    split: str
    subset: str
    first: float
    second: float
    interval: Interval | None
    resampled: Floats | None


def compare(task: Any, results: Sequence[Any], predictions: Sequence[Path]) -> list[Comparison]:
    """Two results of a task, subset by subset.

    results      mteb's, of the first model and of the second
    predictions  the files in which mteb left what it predicted, in the same order
    """
    files = [read_json_object(path) for path in predictions]
    found = []
    for split in task.eval_splits:
        first, second = (scores_of(result, split, task.hf_subsets) for result in results)
        for subset in task.hf_subsets:
            difference = second[subset] - first[subset]
            drawn = _resampled(task, split, subset, results, files)
            interval = None if drawn is None else interval_of(difference, drawn)
            name = task.metadata.name
            scores = first[subset], second[subset]
            found.append(Comparison(name, split, subset, *scores, interval, drawn))
    return found


def average(comparisons: Sequence[Comparison]) -> Comparison:
    """The mean over the subsets of one task and split.

    Subsets of one size have the same items drawn, as fits translations of the same sentences.
    """
    first, second = (
        float(np.mean([getattr(one, side) for one in comparisons])) for side in ("first", "second")
    )
    drawn = [one.resampled for one in comparisons if one.resampled is not None]
    task, split = comparisons[0].task, comparisons[0].split
    if len(drawn) < len(comparisons):
        return Comparison(task, split, "average", first, second, None, None)
    means: Floats = np.mean(drawn, axis=0)
    interval = interval_of(second - first, means)
    return Comparison(task, split, "average", first, second, interval, means)


def _resampled(
    task: Any, split: str, subset: str, results: Sequence[Any], files: Sequence[Any]
) -> Floats | None:
    """Differences [resamples] of the main scores over items drawn anew, the same for both."""
    kind = task.metadata.type
    if task.metadata.main_score != MAIN_SCORES.get(kind):
        return None
    if kind == CLUSTERING:
        return _resampled_draws(results, split, subset)
    if kind == STS:
        grades = table_of(task, subset, split)["score"]
        cosines = [file[subset][split]["cosine_scores"] for file in files]
        drawn = resampled_spearman(list(grades), cosines)
        differences: Floats = drawn[:, 1] - drawn[:, 0]
        return differences
    first, second = (_ITEMS[kind](task, split, subset, file) for file in files)
    return resampled_means(second - first)


def _resampled_draws(results: Sequence[Any], split: str, subset: str) -> Floats:
    """The same of a clustering, whose items are its ten draws; `compute` gives both the same."""
    first, second = (
        [
            value
            for entry in result.scores[split]
            if entry["hf_subset"] == subset
            for value in _values(entry["v_measures"])
        ]
        for result in results
    )
    return resampled_means(np.subtract(second, first))


def _values(v_measures: Any) -> list[float]:
    """V-measures of all levels of labels; an older kind of task has a list, a value a set."""
    levels = [v_measures] if isinstance(v_measures, list) else v_measures.values()
    return [value for level in levels for value in level]


def _retrieval_items(task: Any, split: str, subset: str, file: Any) -> Floats:
    """nDCG@10 of each query, as mteb has it from pytrec_eval."""
    relevant = task.dataset[subset][split]["relevant_docs"]
    evaluator = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"})
    scores = evaluator.evaluate(file[subset][split])
    return np.array([scores[query]["ndcg_cut_10"] for query in sorted(scores)])


def _bitext_items(task: Any, split: str, subset: str, file: Any) -> Floats:
    if task.parallel_subsets:
        neighbours = file["parallel"][split][subset]
    else:
        (neighbours,) = file[subset][split].values()
    return bitext_f1([neighbour["corpus_id"] for neighbour in neighbours])


def _classification_items(task: Any, split: str, subset: str, file: Any) -> Floats:
    """For each text, in how many of the experiments its label was found."""
    labels = np.array(table_of(task, subset, split)[task.label_column_name])
    found: Floats = (np.array(file[subset][split]) == labels).mean(axis=0)
    return found


_ITEMS = {
    RETRIEVAL: _retrieval_items,
    BITEXT: _bitext_items,
    CLASSIFICATION: _classification_items,
}
