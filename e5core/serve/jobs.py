"""The work of one request: its sequences, and their rows as they are computed."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from e5core.serve.engines import Engine, Rows


@dataclass(eq=False)
class Job:
    """All sequences of a request, which one engine computes.

    sequences  the ids of each, cut to what the model takes
    done       called once, when every row is there or `error` is set
    rows       the row of each sequence, in the order of the sequences
    error      why there are no rows
    """

    engine: Engine
    sequences: Sequence[Sequence[int]]
    done: Callable[["Job"], None]
    rows: list[Rows | None] = field(init=False)
    error: Exception | None = None
    cancelled: bool = False
    queued: float = field(default_factory=time.perf_counter)
    started: float | None = None  # when the first of its sequences was taken
    finished: float | None = None

    def __post_init__(self) -> None:
        self.rows = [None] * len(self.sequences)
        self.missing = len(self.sequences)
        self.tokens = sum(map(len, self.sequences))
        # Longest first: sequences of one length stand side by side in a batch, which lets
        # attention take them together. The rows go to their places.
        self.left = sorted(range(len(self.sequences)), key=lambda i: len(self.sequences[i]))
        self.deficit = 0  # tokens that the job may have taken and has not, see Scheduler
        self.waiting = self.tokens  # tokens that nobody has taken

    @property
    def next_length(self) -> int:
        """Tokens of the longest sequence that nobody has taken; 0 if all are taken."""
        return len(self.sequences[self.left[-1]]) if self.left else 0

    def take(self, most: int | None = None) -> int | None:
        """The index of the longest sequence, of at most so many tokens, which is taken now.

        None if every sequence has more.
        """
        place = len(self.left)
        if most is not None:
            place = bisect_right(self.left, most, key=lambda i: len(self.sequences[i]))
        if not place:
            return None
        index = self.left.pop(place - 1)
        self.waiting -= len(self.sequences[index])
        if self.started is None:
            self.started = time.perf_counter()
        return index

    def put(self, index: int, row: Rows) -> bool:
        """Store a row; returns whether it was the last one."""
        self.rows[index] = row
        self.missing -= 1
        return self.missing == 0 and self.error is None

    def matrix(self) -> Rows:
        """The rows [sequences, …] as one array."""
        return np.stack([row for row in self.rows if row is not None])


@dataclass(frozen=True)
class Batch:
    """Sequences of several jobs that one forward pass computes.

    parts  a job and the index of one of its sequences
    """

    engine: Engine
    parts: Sequence[tuple[Job, int]]

    @property
    def sequences(self) -> list[Sequence[int]]:
        return [job.sequences[index] for job, index in self.parts]

    @property
    def tokens(self) -> int:
        return sum(len(job.sequences[index]) for job, index in self.parts)

    def by_job(self) -> list["Batch"]:
        """A batch for each job alone."""
        shares: dict[Job, list[tuple[Job, int]]] = {}
        for job, index in self.parts:
            shares.setdefault(job, []).append((job, index))
        return [Batch(self.engine, parts) for parts in shares.values()]
