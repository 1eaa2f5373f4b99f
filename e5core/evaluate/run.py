"""Models through tasks: mteb computes, each text is embedded once, a stopped run goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5core.evaluate.contents import count_texts
from e5core.evaluate.encoder import StoringEncoder
from e5core.evaluate.results import Results, merged, missing_subsets
from e5core.evaluate.tasks import silence
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
    """The TaskResult of one task. A task that was stopped begins anew, with its vectors there.

    That is mteb's own unit: its clustering draws the samples of one subset after another's.
    """
    meta = encoder.meta_of(task)
    before = results.read(meta, task)
    folder = predictions_of(results, meta, task)
    file = folder / task.prediction_file_name
    if predictions and not file.is_file():
        before = None  # they lack for what is there
    missing = missing_subsets(before, task)
    if not missing:
        return before
    if before is None:
        file.unlink(missing_ok=True)
    every, task.hf_subsets = task.hf_subsets, missing
    try:
        result = compute(encoder, task, folder if predictions else None)
    finally:
        task.hf_subsets = every
    return results.write(meta, merged(before, result))


def predictions_of(results: Results, meta: Any, task: Any) -> Path:
    """The folder of what mteb predicted in a task, with the file that mteb names."""
    return results.path(meta, task.metadata.name).parent / "predictions"


def compute(model: Any, task: Any, predictions: Path | None = None) -> Any:
    """mteb's TaskResult of a model and a task whose data is loaded."""
    with silence():
        result = mteb.evaluate(
            model,
            task,
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
            prediction_folder=predictions,
        )
    return result.task_results[0]
