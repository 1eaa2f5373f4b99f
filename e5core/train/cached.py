"""Rows of many sequences with the graph of few: gradient caching on packed batches.

A chunk of tokens is encoded without its graph, and once more with it when the gradient of its rows
is known. That is `torch.utils.checkpoint` around "encode a chunk": exact by construction, a third
more work, and memory that does not grow with the number of sequences.
Sources: arXiv:2101.06983; BGE-M3, arXiv:2402.03216, appendix B, trains with it too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from e5core.pipeline import Pipeline
from e5core.train.chunks import filler, plan_chunks
from e5core.train.heap import FREE, give_back
from e5core.train.ranks import Ranks
from e5core.train.settings import Settings

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def cached_rows(
    pipeline: Pipeline,
    sequences: Sequence[Sequence[int]],
    chunk_tokens: int | None = None,
    *,
    seed: Sequence[int] = (0,),
    precision: str | None = None,
    share: tuple[int, int] = (0, 1),
) -> tuple[Tensor, list[int]]:
    """The rows of sequences, whose backward pass has the graph of one chunk in memory at a time.

    The largest chunk comes last and keeps its graph, which is the first that the backward pass
    goes through. A batch of one chunk is not computed twice.

    sequences     the ids of each, at most `config.max_length`
    chunk_tokens  tokens of a chunk; a longer sequence is one by itself. None takes what suits the
                  device
    seed          of dropout, together with the number of the chunk. The masks of a chunk are the
                  same each time it is computed, and whichever process does it
    precision     "bfloat16" or "float16" for autocast, anything else for none
    share         rank and number of processes: only every so manieth chunk is computed
    returns       the rows [computed sequences, …], and the indices of these sequences

    The encoder is in training mode if its caller has put it there. Each parameter's gradient is
    added to, as by every backward pass.
    """
    rank, ranks = share
    chunks = plan_chunks([len(ids) for ids in sequences], pipeline.budget(chunk_tokens))
    own = [
        (number, [sequences[i] for i in chunks[number]])
        for number in range(rank, len(chunks), ranks)
    ]
    own.sort(key=lambda chunk: sum(map(len, chunk[1])))
    if not own:  # a process without a chunk; a row has the shape that any other has
        with torch.no_grad():
            return pipeline.run(sequences[:1])[:0], []
    made: dict[Any, Any] = {}  # of the kernels: no weight changes before the backward pass is over
    rows = [
        checkpoint(
            _encode,
            pipeline,
            chunk,
            draw_seed(*seed, number),
            precision,
            made,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for number, chunk in own[:-1]
    ]
    number, chunk = own[-1]
    if pipeline.encoder.device.type == "cpu" and len(own) > 1:
        give_back()  # the holes that the others left would stay while the loss is computed
    rows.append(_encode(pipeline, chunk, draw_seed(*seed, number), precision, made))
    return torch.cat(rows), [i for number, _ in own for i in chunks[number]]


def rows_of_all(
    pipeline: Pipeline,
    sequences: Sequence[Sequence[int]],
    settings: Settings,
    seed: Sequence[int],
    ranks: Ranks,
) -> Tensor:
    """The rows of sequences in their order, of which each process computes its share of chunks.

    Gradients flow to all of them.
    """
    rows, order = cached_rows(
        pipeline,
        sequences,
        settings.chunk_tokens,
        seed=seed,
        precision=settings.precision,
        share=(ranks.rank, ranks.size),
    )
    return ranks.gather(rows, order, len(sequences))


def draw_seed(*numbers: int) -> int:
    """A seed for torch that depends on all of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def _encode(
    pipeline: Pipeline,
    chunk: list[Sequence[int]],
    seed: int,
    precision: str | None,
    made: dict[Any, Any],
) -> Tensor:
    """The rows of a chunk. The caller's generator stays where it is."""
    device = pipeline.encoder.device
    if device.type == "cpu":
        give_back(FREE)
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        pipeline.encoder.kernels.weights_stay(made),
        torch.autocast(device.type, AUTOCAST.get(precision or ""), enabled=precision in AUTOCAST),
    ):
        torch.manual_seed(seed)
        filled = [*chunk, *filler(chunk)] if device.type == "cpu" else chunk
        return pipeline.run(filled, sum(map(len, filled)))[: len(chunk)]
