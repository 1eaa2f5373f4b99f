"""The thread that computes: one batch after the other, taken the moment it is free."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from e5core.serve.engines import Rows
from e5core.serve.jobs import Batch, Job
from e5core.serve.scheduler import Scheduler
from e5core.texts.errors import TextError


def tell(jobs: Sequence[Job]) -> None:
    """Tell each job that it has ended."""
    for job in jobs:
        job.done(job)


@dataclass
class Counts:
    """What a worker has done.

    tokens   that it computed
    unread   of these, tokens for clients that had gone before
    halved   batches that were run in parts, since the device had no memory for the whole
    """

    batches: int = 0
    sequences: int = 0
    tokens: int = 0
    unread: int = 0
    halved: int = 0


# Jobs that come while a pass runs may have this share of its tokens in short passes of their own.
BETWEEN_LAYERS = 0.5

LONG = 0.02  # seconds of a pass from which on it waits between layers; a query alone has none


class Worker:
    """Computes what waits in a scheduler. There is one for a device: two passes would only fight.

    A CPU can wait between two layers: whoever has just come with a query gets a short pass of its
    own there, and the pass that was running goes on. So passes may be long, which is faster.

    failure     why it has died, if it has
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        deliver: Callable[[Sequence[Job]], None] = tell,
        note: Callable[[Batch, float], None] = lambda batch, seconds: None,
    ) -> None:
        """Nothing runs before `start`.

        deliver  called with the jobs that a batch finished, in the worker's thread
        note     called after each batch, before `deliver`, with the seconds that it took
        """
        self.scheduler = scheduler
        self.counts = Counts()
        self.failure: BaseException | None = None
        self._deliver = deliver
        self._note = note
        self._busy_since: float | None = None
        self._measured = 0.0  # the time up to which the speed is measured
        self._running: list[Batch] = []  # the last of them computes, the others wait for it
        self._room = 0  # tokens that short passes may have until the next long one
        self._short = 0.0  # seconds of all short passes
        self._parted = False  # whether the device had no memory for all of the batch
        self._thread = threading.Thread(target=self._work, name="e5core worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Let it end after the batch that runs; what waits is failed."""
        self.fail(self.scheduler.close(), RuntimeError("the server stops"))
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    @property
    def busy_seconds(self) -> float:
        """How long the batch that runs has been running; 0 if none does."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def abandon(self, reason: Exception) -> None:
        """Fail everything that waits or runs: the worker will not come back."""
        self.failure = self.failure or reason
        jobs = {job for batch in tuple(self._running) for job, _ in batch.parts}
        self.fail([*jobs, *self.scheduler.close()], reason)

    def fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """End jobs that have no end yet with an error."""
        failed = [job for job in jobs if job.error is None and job.missing]
        for job in failed:
            job.error = error
            self.scheduler.discard(job)
        if failed:
            self._deliver(failed)

    def _work(self) -> None:
        self._measured = time.perf_counter()
        try:
            while True:
                self._serve_new()  # those who came when the last layer was through
                follows = self.scheduler.waiting()[0] > 0
                if (batch := self.scheduler.take()) is None:
                    break
                if not follows:
                    self._measured = time.perf_counter()
                self._pass(batch)
        except BaseException as error:
            self.failure = error
            self.abandon(RuntimeError(f"the worker has died: {error!r}"))
            raise

    def _pass(self, batch: Batch) -> None:
        if not self._running:
            self._busy_since = time.monotonic()
        self._parted = False
        self._running.append(batch)
        self._compute(batch)
        if self._parted:  # once, into however many parts
            self.counts.halved += 1
            batch.engine.pace.halve()
        self._running.pop()
        if not self._running:
            self._busy_since = None

    def _serve_new(self) -> None:
        """A short pass for jobs that have just come, between two layers or two passes."""
        batch = self.scheduler.take_new(self._room)
        if batch is None:
            return
        self._room -= batch.tokens
        before, measured, parted = time.perf_counter(), self._measured, self._parted
        self._measured = before
        self._pass(batch)
        seconds = time.perf_counter() - before
        self._short += seconds
        self._measured, self._parted = measured + seconds, parted

    def _compute(self, batch: Batch) -> None:
        """Run a batch. If it fails, each job is run alone, and fails alone."""
        try:
            self._run(batch)
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._parted = True
            self._split(batch, error)
        except (RuntimeError, ValueError) as error:
            shares = batch.by_job()
            if len(shares) == 1:
                self.fail([batch.parts[0][0]], error)
                # If not even the probe can be computed, the device is lost, and so is the worker.
                batch.engine.run([batch.engine.probe])
            else:
                for share in shares:
                    self._compute(share)

    def _split(self, batch: Batch, error: Exception) -> None:
        """Run the halves of a batch that was too large; a single sequence fails its job."""
        if len(batch.parts) == 1:
            self.fail([batch.parts[0][0]], error)
            return
        middle = len(batch.parts) // 2
        for parts in (batch.parts[:middle], batch.parts[middle:]):
            self._compute(Batch(batch.engine, parts))

    def _run(self, batch: Batch) -> None:
        parts = [(job, index) for job, index in batch.parts if job.error is None]
        if not parts:
            return
        batch = Batch(batch.engine, parts)
        started, short, tokens = time.perf_counter(), self._short, batch.tokens
        pausing = batch.engine.run_with_pauses
        if pausing is None or self._running[1:] or batch.engine.pace.seconds(tokens) < LONG:
            rows = batch.engine.run(batch.sequences)
        else:
            self._room = int(tokens * BETWEEN_LAYERS)
            rows = pausing(batch.sequences, self._serve_new)
        finished = time.perf_counter()
        batch.engine.pace.measure(tokens, finished - self._measured)
        self._measured = finished
        self.counts.batches += 1
        self.counts.sequences += len(parts)
        self.counts.tokens += tokens
        ended = []
        for (job, index), row in zip(parts, rows, strict=True):
            if job.cancelled:
                self.counts.unread += len(job.sequences[index])
            elif not _is_good(row):
                self.fail([job], NotFiniteError("{} has a row that is zero or not finite", index))
            elif job.put(index, row):
                job.finished = finished
                ended.append(job)
        self._note(batch, finished - started - (self._short - short))
        if ended:
            self._deliver(ended)


class NotFiniteError(TextError):
    """A sequence whose row is no result: it holds a NaN or an infinity, or nothing but zeros."""


def _is_good(row: Rows) -> bool:
    return bool(np.isfinite(row).all()) and (row.ndim == 0 or bool(row.any()))
