"""Results as tables of text: measured beside published, and one model beside another."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from e5core.evaluate.compare import Comparison, average
from e5core.evaluate.published import RETRIEVAL, published
from e5core.evaluate.results import scores_of

AVERAGE = "average"
# The difference from which on a language is named.
NOTABLE = 0.01


def print_result(task: Any, result: Any, prefix: str, size: str | None) -> None:
    """A task's main scores by split and subset, the published ones and the differences."""
    name, kind = task.metadata.name, task.metadata.type
    symmetric = "" if kind == RETRIEVAL else f", symmetric prefix: {prefix}"
    print(f"\n{name} ({task.metadata.main_score}{symmetric})")
    rows = []
    for split in task.eval_splits:
        scores = scores_of(result, split, task.hf_subsets)
        others = {
            subset: found
            for subset in scores
            if size and (found := published(size, name, kind, prefix, split, subset)) is not None
        }
        rows += [
            [split, subset, *_beside(score, others.get(subset))] for subset, score in scores.items()
        ]
        if len(scores) > 1:
            rows.append([split, AVERAGE, *_beside(mean(scores.values()), None)])
        if len(others) > 1:
            same = mean(scores[subset] for subset in others)
            what = (
                AVERAGE if len(others) == len(scores) else f"{AVERAGE} of {len(others)} published"
            )
            row = [split, what, *_beside(same, mean(others.values()))]
            rows[-1:] = [row] if what == AVERAGE else [rows[-1], row]
    beside = ["published", "difference"] if size else []
    _print_table(
        [["split", "subset", "measured", *beside], *(row[: 3 + len(beside)] for row in rows)]
    )


def print_comparison(comparisons: Sequence[Comparison], first: str, second: str) -> None:
    """Two models of one task, with paired differences; below it what is lost, by name."""
    print(f"\n{comparisons[0].task}: {second} against {first}")
    rows = [["split", "subset", "first", "second", "difference", "95% interval"]]
    for split in dict.fromkeys(one.split for one in comparisons):
        of_split = [one for one in comparisons if one.split == split]
        every = [*of_split, average(of_split)] if len(of_split) > 1 else of_split
        rows += [
            [
                one.split,
                one.subset,
                f"{one.first:.4f}",
                f"{one.second:.4f}",
                _signed(one.second - one.first),
                ""
                if one.interval is None
                else f"{_signed(one.interval.low)} {_signed(one.interval.high)}",
            ]
            for one in every
        ]
    _print_table(rows)
    lost = [one for one in comparisons if one.second - one.first < -NOTABLE]
    if lost:
        named = ", ".join(f"{one.subset} ({one.split})" for one in lost)
        print(f"More than {NOTABLE} is lost in {named}.")
    else:
        print(f"Nothing loses more than {NOTABLE}.")


def print_reranking(task: Any, before: Any, after: Any, top: int) -> None:
    """A retrieval task's main scores before and after its best documents were reranked."""
    print(f"\n{task.metadata.name} ({task.metadata.main_score}), the best {top} reranked")
    rows = [["split", "subset", "before", "after", "difference"]]
    for split in task.eval_splits:
        first, second = (scores_of(one, split, task.hf_subsets) for one in (before, after))
        rows += [
            [
                split,
                subset,
                f"{score:.4f}",
                f"{second[subset]:.4f}",
                _signed(second[subset] - score),
            ]
            for subset, score in first.items()
        ]
    _print_table(rows)


def _signed(difference: float) -> str:
    """A difference with its sign, which none has that rounds to nothing."""
    return f"{round(difference, 4) + 0.0:+.4f}"


def _beside(score: float, other: float | None) -> list[str]:
    if other is None:
        return [f"{score:.4f}", "–", "–"]
    return [f"{score:.4f}", f"{other:.4f}", _signed(score - other)]


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
