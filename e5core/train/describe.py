"""What a run will do, said before it does it."""

import time
from collections.abc import Sequence
from itertools import chain
from math import ceil

from e5core.train.cached import cached_rows
from e5core.train.data import Data
from e5core.train.settings import Settings
from e5core.train.setup import Run
from e5core.train.start import Task

# What autograd keeps of a token in a layer, in numbers of hidden_size: the inputs of four products,
# GELU's and two LayerNorms' inputs, query, key, value, attention's output and weights, masks.
KEPT_STATES = 24

# Of such a number.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

SAMPLE = 1000  # examples that lengths are taken from

OF_TORCH = 0.3  # GB of a process that has done nothing yet


def describe(run: Run) -> list[str]:
    """Sentences for people: the data, the batches, the loss, memory and time."""
    task, data, settings = run.task, run.data, run.settings
    examples = len(data.examples)
    hard = [min(settings.negatives, len(example.negatives)) for example in data.examples]
    batches = run.plan.epoch(0)
    size = ceil(sum(map(len, batches)) / len(batches))
    sample, limit = data.examples[:: ceil(examples / SAMPLE)], task.model.max_length
    # Of the negatives those that a step has, and of pairs the query in each.
    lengths = [length for example in sample for length in task.lengths(example, data)]
    cut = data.cut / data.mentions
    if not task.gives_vectors:
        cut = sum(length > limit for length in lengths) / len(lengths)
    lines = [
        f"{examples:,} examples of {len(data.files)} files: {data.mentions:,} texts "
        f"({len(data.texts):,} different ones), {data.tokens:,} tokens; "
        f"{cut:.1%} of the {'texts' if task.gives_vectors else 'pairs'} are cut"
        + (f"; {data.dropped:,} negatives answer their query and are left out" * bool(data.dropped))
        + f"; {data.skipped:,} more have no negatives and are left out" * bool(data.skipped),
        task.describe()
        + f"; fields that are not read: {', '.join(sorted(data.unread))}" * bool(data.unread),
        f"{run.steps:,} steps, {len(batches):,} an epoch, of up to {max(map(len, batches)):,} "
        f"examples (--batch-size {settings.batch_size:,}); each query has "
        + (f"about {size - 1:,} positives of others and " * task.gives_vectors)
        + f"{sum(hard) / examples:.1f} hard negatives; learning rate {run.rate:g}, "
        + f"temperature {settings.temperature:g}" * task.gives_vectors,
    ]
    total, trained = (
        sum(p.numel() for p in task.module.parameters() if p.requires_grad or not only)
        for only in (False, True)
    )
    # Of a step.
    tokens = size * sum(min(length, limit) for length in lengths) / len(sample)
    width = task.encoder.config.hidden_size * task.encoder.config.num_hidden_layers
    chunk = task.pipeline.budget(settings.chunk_tokens)
    kept = KEPT_STATES * width * chunk * BYTES[settings.precision or "float32"]
    memory = OF_TORCH + (4 * (total + 3 * trained) + kept) / 1e9
    # One chunk is measured, which keeps its graph; all others have one more forward pass.
    others = max(0.0, 1 - chunk / tokens)
    seconds = time_a_chunk(task, data, settings) * tokens * (3 + others) / 3
    lines.append(
        f"{trained / 1e6:.1f} of {total / 1e6:.1f} M parameters are trained, in "
        f"{settings.precision} on {task.encoder.device}; about {memory:.1f} GB, "
        f"about {_duration(run.steps * seconds / run.ranks.size)}"
    )
    return lines


def time_a_chunk(task: Task, data: Data, settings: Settings) -> float:
    """The seconds that a token takes, measured on one chunk of the data; no gradient stays."""
    budget, sequences, tokens = task.pipeline.budget(settings.chunk_tokens), [], 0
    for number in chain.from_iterable((e.query, e.positives[0]) for e in data.examples):
        ids = data.texts[number][: task.encoder.config.max_length]
        if tokens and tokens + len(ids) > budget:
            break
        sequences.append(ids)
        tokens += len(ids)
    _run(task, sequences, settings)  # the first run has much to set up
    start = time.perf_counter()
    _run(task, sequences, settings)
    return (time.perf_counter() - start) / tokens


def _run(task: Task, sequences: Sequence[Sequence[int]], settings: Settings) -> None:
    rows, _ = cached_rows(
        task.pipeline, sequences, settings.chunk_tokens, precision=settings.precision
    )
    if rows.requires_grad:
        rows.sum().backward()
    task.module.zero_grad(set_to_none=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
