"""Training from beginning to end: one loop, read top to bottom."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from e5core.checkpoint.adapters import WEIGHTS_FILE
from e5core.train.card import write_card
from e5core.train.describe import describe
from e5core.train.heap import give_back
from e5core.train.log import Log
from e5core.train.lora import merge_low_rank, write_adapter
from e5core.train.ranks import joined
from e5core.train.setup import Run, prepare, split_options
from e5core.train.start import load_task

# After so many steps without an overflow the losses in float16 are multiplied by twice as much.
# Source: torch.amp.GradScaler.
CALM_STEPS = 2000


@dataclass(frozen=True)
class Summary:
    """What `train` returns.

    output   the folder of the result; None after a dry run
    steps    that the run has
    before, after  figures of held-out pairs; empty without them
    best_step  the step that the result's weights are of
    seconds  that this call took
    """

    output: Path | None
    steps: int
    before: dict[str, float]
    after: dict[str, float]
    best_step: int
    seconds: float


def train(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    reranker: bool = False,
    evaluate: str | Path | None = None,
    dry_run: bool = False,
    restart: bool = False,
    force: bool = False,
    tensorboard: str | Path | None = None,
    adapter: str | Path | None = None,
    show_progress: bool | None = None,
    **options: Any,
) -> Summary:
    """Train a model and write the result as a whole folder. Stopped, the same call goes on.

    model     a folder or a hub id
    data      files of rows, see read_data
    output    the folder of the result; `<output>.training` holds the state meanwhile
    reranker  train a cross-encoder, from one or from any encoder
    evaluate  a file of held-out rows that are ranked before, during and after; the best weights
              are kept
    dry_run   say what would be done, and do nothing
    restart   begin anew over the state of a run that was stopped
    force     replace an output that is there
    tensorboard  a folder for TensorBoard's files
    adapter   a folder for the updates of `lora` alone, in peft's layout
    options   fields of Settings and of LoadOptions

    Raises OSError, or ValueError in one sentence; what was reached stays.
    """
    started = time.perf_counter()
    settings, loading = split_options(options)
    task = load_task(model, settings, loading, reranker)
    if adapter is not None and not settings.lora:
        raise ValueError("adapter is a place for the updates of lora, which is 0; set it")
    files = [str(data)] if isinstance(data, str | Path) else list(map(str, data))
    held = None if evaluate is None else str(evaluate)
    with joined(task.encoder.device) as ranks:
        run = prepare(str(model), task, files, held, Path(output), ranks)
        record = run.folder.finished()
        if record is not None and adapter is not None and not (force or dry_run):
            check_adapter(record, Path(adapter), Path(output))
        if record is None or force or dry_run:
            for line in describe(run) if ranks.first else ():
                print(line, file=sys.stderr)
            if dry_run:
                return Summary(None, run.steps, {}, {}, 0, time.perf_counter() - started)
            with run.folder.claimed(force) if ranks.first else nullcontext():
                run.resume(restart)
                record = _go(run, tensorboard, adapter, show_progress)
        figures = {name: record[name] for name in ("steps", "before", "after", "best_step")}
        return Summary(Path(output), **figures, seconds=time.perf_counter() - started)


def _go(
    run: Run,
    tensorboard: str | Path | None,
    adapter: str | Path | None,
    show_progress: bool | None,
) -> dict[str, Any]:
    """Take the steps that are left, and write the result; returns the record."""
    path = run.folder.log if run.ranks.first else None
    size, step = run.progress.log_size, run.progress.step
    log = Log(path, size, step, run.steps, show_progress, tensorboard)
    try:
        if step:
            log.say(f"going on behind step {step} of {run.steps}")
        fit(run, log)
    finally:
        log.close()
    return finish(run, adapter)


def fit(run: Run, log: Log) -> None:
    """Take all the steps that a run has left."""
    task, settings, ranks, progress = run.task, run.settings, run.ranks, run.progress
    weights = {
        "contrastive": settings.contrastive_weight,
        "teacher": settings.teacher_weight,
        "r_drop": settings.r_drop,
    }
    if progress.step == 0:
        progress.before = evaluate(run, log)
        compare_entropies(run, log)
    for step, epoch, numbers in run.plan.batches(progress.step, run.steps):
        batch = run.data.batch(numbers, epoch, settings.seed, settings.negatives)
        rate = settings.rate_at(step, run.steps, run.rate)

        # Forward, chunk by chunk without its graph; backward, chunk by chunk with it.
        task.module.train()
        terms = task.terms(batch, run.data, (settings.seed, step), ranks)
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        (loss * progress.loss_scale).backward()

        # Each process has a part of the loss and of every gradient.
        ranks.sum(run.optimizer.gradients())
        parts = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        ranks.sum([parts])
        figures = dict(zip(("loss", *terms), parts.tolist(), strict=True))
        norm = run.optimizer.step(rate, progress.loss_scale)
        check_finite(run, step, figures["loss"], norm)
        progress.step = step + 1

        tokens = sum(run.data.texts.length(number) for number in batch.texts.tolist())
        figures |= {"gradient_norm": norm, "learning_rate": rate}
        log.step(progress.step, epoch, tokens, figures)
        if run.held is not None and run.is_due(settings.evaluate_every):
            found = evaluate(run, log)
            if ranks.first and found["mrr"] > progress.best.get("mrr", -1.0):
                progress.best, progress.best_step = found, progress.step
                run.folder.save_best(run.optimizer.tensors(moments=False))
        if run.is_due(settings.save_every):
            run.save(log.flush())


def evaluate(run: Run, log: Log) -> dict[str, float]:
    """The figures of held-out pairs now; none without such pairs."""
    if run.held is None or not run.ranks.first:
        return {}
    run.task.module.eval()
    with run.start.mixed(dict(run.task.module.named_parameters())):
        figures = run.task.evaluate(run.held)
    log.ranked(run.progress.step, figures)
    return figures


def compare_entropies(run: Run, log: Log) -> None:
    """Say how sure the teacher and the student are, where there is a teacher."""
    settings = run.settings
    if settings.teacher_weight and run.ranks.first:
        _, epoch, numbers = next(run.plan.batches(0, 1))
        batch = run.data.batch(numbers, epoch, settings.seed, settings.negatives)
        run.task.module.eval()
        teacher, student = run.task.entropies(batch, run.data)
        log.say(f"mean entropy over groups: teacher {teacher:.3f}, student {student:.3f} nats")


def check_finite(run: Run, step: int, loss: float, norm: float) -> None:
    """Adapt the factor of float16; ValueError if loss or gradients are no numbers in any other."""
    progress = run.progress
    if isfinite(loss) and isfinite(norm):
        progress.calm += 1
        if run.settings.precision == "float16" and progress.calm >= CALM_STEPS:
            progress.loss_scale, progress.calm = progress.loss_scale * 2, 0
    elif run.settings.precision == "float16" and progress.loss_scale > 1:
        progress.loss_scale, progress.calm = progress.loss_scale / 2, 0
    else:
        raise ValueError(
            f"step {step + 1}: the loss is {loss:g} and the norm of the gradient {norm:g}; lower "
            f"--learning-rate, which is {run.rate:g}, or begin from other weights. The last state "
            f"that was saved is in {run.folder.path}"
        )


def check_adapter(record: dict[str, Any], adapter: Path, output: Path) -> None:
    """FileExistsError if a finished run has not written the adapter that is wanted now."""
    if record.get("adapter") != str(adapter) or not (adapter / WEIGHTS_FILE).is_file():
        raise FileExistsError(
            f"{output} is finished, and the updates that {adapter} is to hold are merged into it; "
            "train again with force=True (--force)"
        )


def finish(run: Run, adapter: str | Path | None = None) -> dict[str, Any]:
    """Write the best weights as a whole model into the output's place; returns the record."""
    progress = run.progress
    record = {
        "steps": run.steps,
        "best_step": progress.best_step or run.steps,
        "learning_rate": run.rate,
        "before": progress.before,
        "after": progress.best,
        "adapter": None if adapter is None else str(adapter),
    }
    if run.ranks.first:
        if progress.best_step:
            run.optimizer.load(run.folder.load_best())
        run.optimizer.end()
        give_back()  # the file that is written next needs memory for its pages
        run.start.mix(dict(run.task.module.named_parameters()))
        if adapter is not None:
            write_adapter(run.task.encoder, Path(adapter), run.model)
        merge_low_rank(run.task.encoder)
        draft = run.folder.draft()
        run.task.module.eval()
        run.task.save(draft)
        write_card(draft, run, record)
        run.folder.finish(record)
    run.ranks.wait()
    return record
