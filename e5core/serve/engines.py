"""What computes: sequences of ids to rows, at a measured speed."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from e5core.batching import pack
from e5core.model import E5
from e5core.pipeline import MAX_TOKENS_PER_BATCH, Pipeline
from e5core.pooling import l2_normalize
from e5core.reranker import Reranker

Rows = npt.NDArray[np.float32]

# Seconds of one forward pass. On a GPU they bound how long a query waits for what runs already. On
# a CPU it waits for a layer alone, see Worker, and a pass of .05 s would read the weights too often
# and keep threads waiting for the one that has the longest text.
TARGET_SECONDS = {"cpu": 0.2, "cuda": 0.02}

# Tokens of the smallest budget. A CPU gains little beyond about eight texts in a batch, which are
# so many; fewer would waste a large model's time.
LEAST_TOKENS = 256

# The share of a new measurement in the speed.
WEIGHT = 0.1

# A batch may be larger by one part in so many than one that the device had memory for. If it never
# has more, one batch in about as many is run in halves.
GROWTH = 32


class Pace:
    """How fast a model computes, and how many tokens of it make a forward pass."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._target = TARGET_SECONDS.get(device, TARGET_SECONDS["cpu"])
        self._limit = MAX_TOKENS_PER_BATCH.get(device, MAX_TOKENS_PER_BATCH["cpu"])
        self._most = self._limit  # less while the device has no memory for so many
        self.tokens_per_second = LEAST_TOKENS / self._target  # until it is measured

    def measure(self, tokens: int, seconds: float) -> None:
        """Take note of a forward pass. Small ones say little: they are all overhead.

        seconds  since the pass before, where one followed the other at once: what happens between
                 them takes its time from the requests that wait
        """
        if tokens > self._most // 2:  # smaller ones do not show that there is memory again
            self._most = min(self._most + self._most // GROWTH, self._limit)
        # The smallest budget is seldom met in full.
        if tokens >= LEAST_TOKENS // 2 and seconds > 0:
            self.tokens_per_second += WEIGHT * (tokens / seconds - self.tokens_per_second)

    def start(self, tokens: int, seconds: float) -> None:
        """Begin with the speed of a first forward pass."""
        self.tokens_per_second = tokens / max(seconds, 1e-6)

    @property
    def budget(self) -> int:
        """Tokens of one forward pass."""
        wanted = int(self.tokens_per_second * self._target)
        return min(max(wanted, LEAST_TOKENS), self._most)

    def halve(self) -> None:
        """Take half as many tokens for now: the device had no memory for a batch.

        It may be another program that took it, for a moment: every batch that is about as large as
        may be lets the next one be a little larger.
        """
        self._most = max(self._most // 2, LEAST_TOKENS)

    def seconds(self, tokens: int) -> float:
        """How long so many tokens take."""
        return tokens / self.tokens_per_second


RunWithPauses = Callable[[Sequence[Sequence[int]], Callable[[], object]], Iterable[Rows]]


class Engine:
    """Something that computes rows of sequences, such as a model's vectors or a reranker's logits.

    pace   is shared by the engines of one model
    probe  a sequence that the model takes, to see whether it computes at all
    run    from sequences of ids to a row of each, which must not depend on how they are batched
    run_with_pauses  the same, with something to call between two layers; None if it cannot wait
    """

    def __init__(
        self,
        pace: Pace,
        probe: Sequence[int],
        run: Callable[[Sequence[Sequence[int]]], Iterable[Rows]],
        run_with_pauses: RunWithPauses | None = None,
    ) -> None:
        self.pace = pace
        self.probe = probe
        self.run = run
        self.run_with_pauses = run_with_pauses

    def warm_up(self, length: int) -> None:
        """Let it compute once, then measure it on LEAST_TOKENS tokens, or `length` if it is less.

        length  tokens that a sequence may have
        """
        middle = self.probe[1:-1] or self.probe[:1]
        size = min(LEAST_TOKENS, length)
        text = [self.probe[0], *([*middle] * size)[: size - 2], self.probe[-1]]
        self.run([text])
        started = time.perf_counter()
        self.run([text])
        self.pace.start(size, time.perf_counter() - started)


def vectors_engine(model: E5, pace: Pace) -> Engine:
    """The vectors [sequences, dimension] as E5.embed gives them, of unit length."""
    pooled = pipeline_engine(model, pace)

    def unit(rows: Iterable[Rows]) -> Rows:
        found: Rows = l2_normalize(torch.as_tensor(rows)[:, : model.dimension]).numpy()
        return found

    pausing = pooled.run_with_pauses
    return Engine(
        pace,
        pooled.probe,
        lambda sequences: unit(pooled.run(sequences)),
        pausing and (lambda sequences, pause: unit(pausing(sequences, pause))),
    )


def pipeline_engine(model: E5 | Reranker, pace: Pace) -> Engine:
    """The pooled rows [sequences, size] of an embedding model, or a reranker's logits."""
    pipeline: Pipeline = model.pipeline

    def run(sequences: Sequence[Sequence[int]], **options: Any) -> Iterable[Rows]:
        with torch.inference_mode():
            rows = pipeline.run(sequences, max(sum(map(len, sequences)), 1), **options)
            found: Rows = rows.float().cpu().numpy()
        return found

    waits = pipeline.encoder.device.type == "cpu"
    pausing = (lambda sequences, pause: run(sequences, pause=pause)) if waits else None
    return Engine(pace, model.tokenizer.encode("a"), run, pausing)


def states_engine(model: E5, pace: Pace) -> Engine:
    """The token states [tokens, hidden_size] of each sequence."""
    encoder = model.pipeline.encoder

    def run(sequences: Sequence[Sequence[int]]) -> Iterable[Rows]:
        with torch.inference_mode():
            packed = pack(sequences, encoder.config).to(encoder.device)
            states: Rows = encoder(packed).float().cpu().numpy()
        return np.split(states, packed.cu_seqlens[1:-1].tolist())

    return Engine(pace, model.tokenizer.encode("a"), run)


def scaled(pooled: Rows, size: int, normalize: bool) -> Rows:
    """The first numbers of each row, of unit length where that is asked for."""
    kept_numbers = torch.from_numpy(pooled)[:, :size]
    rows: Rows = (l2_normalize(kept_numbers) if normalize else kept_numbers).contiguous().numpy()
    return rows
