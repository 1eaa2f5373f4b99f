"""Models through tasks: mteb computes, each text is embedded once, a stopped run goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from e5core.evaluate.contents import count_texts
from e5core.evaluate.encoder import StoringEncoder
from e5core.evaluate.results import Part, Results, marked, merged, missing_parts, parts_of
from e5core.evaluate.tasks import silence
from e5core.formats.files import read_json_object
from e5core.integrations import extra
from e5core.progress import progress_bar

with extra("mteb", "mteb"):
    import mteb


def run_tasks(
    encoder: StoringEncoder,
    tasks: Sequence[Any],
    results: Results,
    predictions: bool = False,
    show_progress: bool | None = None,
) -> list[Any]:
    """The TaskResult of each task, from the disk where an earlier run has left it.

    predictions  keep what mteb predicted too, beside the results: see `predictions_of`
    """
    found = []
    with progress_bar(count_texts(tasks), show_progress) as advance:
        encoder.advance = advance
        for task in tasks:
            found.append(run_task(encoder, task, results, predictions))
    return found


def run_task(
    encoder: StoringEncoder, task: Any, results: Results, predictions: bool = False
) -> Any:
    """The TaskResult of one task: what an earlier run has left of it, and what was missing.

    A subset's scores are on the disk when they are there, and a stopped run goes on behind them.
    """
    meta = encoder.meta_of(task)
    found = results.read(meta, task, encoder.digest)
    folder = predictions_of(results, meta, task)
    missing = set(missing_parts(found, task))
    predicted = _predicted_parts(folder / task.prediction_file_name, task, missing)
    if predictions:
        missing.update(part for part in parts_of(task) if part not in predicted)
    for split, subsets in _batches(task, missing, predictions):
        computed = compute(encoder, task, split, subsets, folder if predictions else None)
        found = results.write(meta, merged(found, marked(computed, task, encoder.digest)))
    return found


def predictions_of(results: Results, meta: Any, task: Any) -> Path:
    """The folder of what mteb predicted in a task, with the file that mteb names."""
    return results.path(meta, task.metadata.name).parent / "predictions"


def compute(
    model: Any, task: Any, split: str, subsets: Sequence[str], predictions: Path | None = None
) -> Any:
    """mteb's TaskResult of a model on a split and subsets of a task whose data is loaded.

    A task draws samples from generators that it seeds when it is made. They are seeded anew here,
    so that a score depends on no model, split or subset that came before.
    """
    task.rng_state.seed(task.seed)
    task.np_rng = np.random.default_rng(task.seed)
    every = list(task.eval_splits), task.hf_subsets
    task.filter_eval_splits([split])
    task.hf_subsets = list(subsets)
    try:
        with silence():
            result = mteb.evaluate(
                model,
                task,
                cache=None,
                co2_tracker=False,
                show_progress_bar=False,
                prediction_folder=predictions,
            )
    finally:
        task.filter_eval_splits(every[0])
        task.hf_subsets = every[1]
    return result.task_results[0]


def _predicted_parts(file: Path, task: Any, missing: set[Part]) -> set[Part]:
    """The parts of a task whose predictions a file holds.

    The file is removed if a part is among them whose score is missing: the prediction is as old.
    """
    try:
        content = read_json_object(file)
    except FileNotFoundError:
        return set()
    except ValueError:  # mteb was killed while it wrote them
        content = {}
    if _is_parallel(task):
        of_splits = content.get("parallel", {})
        there = {(split, subset) for split in of_splits for subset in of_splits[split]}
    else:
        there = {part for part in parts_of(task) if part[0] in content.get(part[1], {})}
    if not content or there & missing:
        file.unlink()
        return set()
    return there


def _batches(task: Any, missing: set[Part], predictions: bool) -> list[tuple[str, list[str]]]:
    """What mteb is given at a time: a split and a subset, so that no draw depends on another.

    All subsets of a parallel task share their vectors and one entry of predictions, which mteb
    replaces as a whole.
    """
    if not _is_parallel(task):
        return [(split, [subset]) for split, subset in parts_of(task) if (split, subset) in missing]
    return [
        (split, [s for s in task.hf_subsets if predictions or (split, s) in missing])
        for split in task.eval_splits
        if any((split, subset) in missing for subset in task.hf_subsets)
    ]


def _is_parallel(task: Any) -> bool:
    return bool(getattr(task, "parallel_subsets", False))
