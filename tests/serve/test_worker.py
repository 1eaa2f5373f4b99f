"""The worker: one bad text fails its own request, lost devices and hanging passes end it all."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from e5core.serve.engines import LEAST_TOKENS, Engine, Pace, Rows
from e5core.serve.jobs import Job
from e5core.serve.scheduler import Scheduler
from e5core.serve.worker import Worker

BAD = 13  # an id that the engine of these tests fails on


def rows_of(sequences: Sequence[Sequence[int]]) -> Rows:
    return np.array([[sum(ids), len(ids)] for ids in sequences], np.float32)


def engine(run: Callable[[Sequence[Sequence[int]]], Sequence[Rows]]) -> Engine:
    return Engine(Pace("cpu"), [0, 2], run)


class Ended:
    """Jobs that a worker has ended, and a way to wait for so many of them."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._condition = threading.Condition()

    def __call__(self, job: Job) -> None:
        with self._condition:
            self.jobs.append(job)
            self._condition.notify_all()

    def wait(self, number: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.jobs) >= number, 30)


def compute(
    run: Callable[[Sequence[Sequence[int]]], Sequence[Rows]], *work: list[list[int]]
) -> tuple[Worker, list[Job]]:
    """Let a worker do all of the work; returns it and the jobs."""
    scheduler, ended = Scheduler(), Ended()
    worker = Worker(scheduler)
    model = engine(run)
    jobs = [Job(model, sequences, ended) for sequences in work]
    for job in jobs:
        scheduler.add(job)
    worker.start()
    ended.wait(len(jobs))
    assert len(ended.jobs) == len(jobs)
    return worker, jobs


def test_rows_come_back_to_their_places() -> None:
    worker, [one, two] = compute(rows_of, [[1, 2], [3], [4, 5, 6]], [[7, 8, 9, 1]])
    assert one.matrix().tolist() == [[3, 2], [3, 1], [15, 3]]
    assert two.matrix().tolist() == [[25, 4]]
    assert worker.counts.tokens == 10
    worker.stop()


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_one_bad_text_fails_its_own_request(error: type[Exception]) -> None:
    def run(sequences: Sequence[Sequence[int]]) -> Rows:
        if any(BAD in ids for ids in sequences):
            raise error("no")
        return rows_of(sequences)

    worker, [one, bad, other] = compute(run, [[1], [2]], [[3], [BAD]], [[4]])
    assert one.error is None
    assert other.error is None
    assert isinstance(bad.error, error)
    assert one.matrix().tolist() == [[1, 1], [2, 1]]
    assert worker.alive
    worker.stop()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_row_that_is_no_vector_fails_its_own_request(value: float) -> None:
    def run(sequences: Sequence[Sequence[int]]) -> Rows:
        rows = rows_of(sequences)
        rows[[BAD in ids for ids in sequences]] = value
        return rows

    worker, [one, bad] = compute(run, [[1]], [[3], [BAD]])
    assert one.matrix().tolist() == [[1, 1]]
    assert bad.error is not None
    assert getattr(bad.error, "indices", None) == (1,)
    worker.stop()


def test_a_device_without_memory_gets_smaller_batches() -> None:
    seen = []

    def run(sequences: Sequence[Sequence[int]]) -> Rows:
        seen.append(len(sequences))
        if len(sequences) > 3:
            raise torch.OutOfMemoryError("full")
        return rows_of(sequences)

    worker, [job] = compute(run, [[i] for i in range(1, 17)])
    assert job.matrix()[:, 0].tolist() == list(range(1, 17))
    assert worker.counts.halved == 1
    assert max(seen) == 16
    worker.stop()


def test_a_moment_without_memory_is_forgotten() -> None:
    pace = Pace("cuda")
    pace.start(10**9, 1.0)
    usual = pace.budget
    pace.halve()
    assert pace.budget == usual // 2
    pace.measure(pace.budget // 2, 1e-6)  # it would have fitted anyway
    assert pace.budget == usual // 2
    passes = 0
    while pace.budget < usual:
        pace.measure(pace.budget, 1e-6)
        passes += 1
    assert 10 < passes < 50
    assert pace.budget == usual
    for _ in range(20):
        pace.halve()
    assert pace.budget == LEAST_TOKENS


def test_a_lost_device_is_the_end_of_the_worker(recwarn: pytest.WarningsRecorder) -> None:
    def run(sequences: Sequence[Sequence[int]]) -> Rows:
        raise RuntimeError("the device is lost")

    threading.excepthook, before = lambda arguments: None, threading.excepthook
    try:
        worker, jobs = compute(run, [[1]], [[2]], [[3]])
        deadline = time.monotonic() + 30
        while worker.alive and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        threading.excepthook = before
    assert not worker.alive
    assert all(job.error is not None for job in jobs)


def test_a_pass_that_hangs_is_given_up() -> None:
    release = threading.Event()

    def run(sequences: Sequence[Sequence[int]]) -> Rows:
        release.wait(30)
        return rows_of(sequences)

    scheduler, ended = Scheduler(), Ended()
    worker = Worker(scheduler)
    model = engine(run)
    scheduler.add(Job(model, [[1]], ended))
    worker.start()
    deadline = time.monotonic() + 30
    while not worker.busy_seconds and time.monotonic() < deadline:
        time.sleep(0.01)
    scheduler.add(Job(model, [[2]], ended))
    worker.abandon(RuntimeError("it hangs"))
    ended.wait(2)
    assert not worker.alive
    assert all("it hangs" in str(job.error) for job in ended.jobs)
    release.set()


def test_what_a_client_gave_up_is_counted() -> None:
    started, release = threading.Event(), threading.Event()

    def run(sequences: Sequence[Sequence[int]]) -> Rows:
        started.set()
        release.wait(30)
        return rows_of(sequences)

    scheduler, ended = Scheduler(), Ended()
    worker = Worker(scheduler)
    model = engine(run)
    gone = Job(model, [[1] * 200 for _ in range(20)], ended)
    scheduler.add(gone)
    worker.start()
    assert started.wait(30)
    dropped = scheduler.discard(gone)
    last = Job(model, [[1]], ended)
    scheduler.add(last)
    release.set()
    ended.wait(1)
    assert ended.jobs == [last]
    assert worker.counts.unread + dropped == gone.tokens
    assert worker.counts.unread <= model.pace.budget
    worker.stop()


class Layered:
    """An engine whose passes have layers, and what happens between two of them.

    between  called with the number of the pause, in passes of more than one sequence
    """

    def __init__(self, layers: int = 4) -> None:
        self.between: Callable[[int], object] = lambda number: None
        self.passes: list[list[int]] = []  # the first ids of the sequences of each, as they begin
        self.engine = Engine(Pace("cpu"), [0, 2], self.run, self.run_with_pauses)
        self._layers = layers

    def run(self, sequences: Sequence[Sequence[int]]) -> Rows:
        self.passes.append([ids[0] for ids in sequences])
        if any(BAD in ids for ids in sequences):
            raise ValueError("no")
        return rows_of(sequences)

    def run_with_pauses(self, sequences: Sequence[Sequence[int]], pause: Any) -> Rows:
        rows = self.run(sequences)
        for number in range(self._layers if len(sequences) > 1 else 0):
            self.between(number)
            pause()
        return rows


def beside_bulk(layered: Layered, *queries: list[list[int]]) -> tuple[Worker, Job, list[Job]]:
    """A long pass, after whose second layer queries come; all ended."""
    scheduler, ended = Scheduler(), Ended()
    worker = Worker(scheduler)
    bulk = Job(layered.engine, [[1] * 20] * 10, ended)
    jobs = [Job(layered.engine, sequences, ended) for sequences in queries]

    def come(number: int) -> None:
        if number == 1:
            for job in jobs:
                scheduler.add(job)

    layered.between = come
    scheduler.add(bulk)
    worker.start()
    ended.wait(1 + len(jobs))
    worker.stop()
    assert not worker.scheduler.waiting()[0]
    return worker, bulk, jobs


def test_a_query_is_answered_within_a_long_pass() -> None:
    layered = Layered()
    worker, bulk, [query] = beside_bulk(layered, [[5, 6]])
    assert layered.passes == [[1] * 10, [5]]
    assert query.matrix().tolist() == [[11, 2]]
    assert bulk.matrix().tolist() == [[20, 20]] * 10
    assert query.finished is not None
    assert bulk.finished is not None
    assert query.finished < bulk.finished
    assert worker.counts.tokens == 202
    assert worker.counts.batches == 2


def test_queries_within_a_long_pass_have_half_of_its_tokens() -> None:
    """Fifteen come, of 12 tokens each, in a pass of 200: eight fit into a hundred tokens.

    A short pass has a quarter of the budget, 64 tokens.
    """
    layered = Layered()
    assert layered.engine.pace.budget == 256
    _, bulk, queries = beside_bulk(layered, *([[n] * 12] for n in range(20, 35)))
    assert layered.passes[:3] == [[1] * 10, list(range(20, 25)), list(range(25, 28))]
    # The others come behind it.
    assert [n for some in layered.passes[3:] for n in some] == list(range(28, 35))
    done = [query.finished < bulk.finished for query in queries]  # type: ignore[operator]
    assert done == [True] * 8 + [False] * 7


def test_a_query_that_fails_within_a_long_pass_fails_alone() -> None:
    layered = Layered()
    worker, bulk, [bad, good] = beside_bulk(layered, [[BAD]], [[7]])
    assert isinstance(bad.error, ValueError)
    assert good.matrix().tolist() == [[7, 1]]
    assert bulk.error is None
    assert bulk.matrix().tolist() == [[20, 20]] * 10
    assert worker.counts.batches == 2


def test_the_time_of_short_passes_is_not_that_of_the_long_one() -> None:
    layered, seen = Layered(), []
    pace = layered.engine.pace
    pace.measure = lambda tokens, seconds: seen.append((tokens, seconds))  # type: ignore[method-assign]
    plain = layered.run

    def slow(sequences: Sequence[Sequence[int]]) -> Rows:
        time.sleep(0.2 if len(sequences) == 1 else 0)
        return plain(sequences)

    layered.engine.run = slow
    beside_bulk(layered, [[5, 6]])
    (few, short), (many, long) = seen
    assert (few, many) == (2, 200)
    assert short >= 0.2
    assert long < 0.1


def test_whoever_runs_or_waits_is_told_that_the_worker_is_lost() -> None:
    layered, ended = Layered(), Ended()
    scheduler = Scheduler()
    worker = Worker(scheduler, deliver=lambda jobs: [job.done(job) for job in jobs])
    bulk, query = (Job(layered.engine, some, ended) for some in ([[1] * 20] * 10, [[5]]))
    go, plain = threading.Event(), layered.run

    def hang(sequences: Sequence[Sequence[int]]) -> Rows:
        if len(sequences) == 1:
            worker.abandon(RuntimeError("lost"))
            go.set()
        return plain(sequences)

    layered.engine.run = hang
    layered.between = lambda number: number or scheduler.add(query)
    scheduler.add(bulk)
    worker.start()
    assert go.wait(30)
    ended.wait(2)
    assert [str(job.error) for job in (bulk, query)] == ["lost", "lost"]
    worker.stop()


def test_a_short_pass_between_two_long_ones_is_watched_too() -> None:
    """A query that comes behind the last pause."""
    layered, ended = Layered(), Ended()
    scheduler = Scheduler()
    worker = Worker(scheduler)
    bulk, query = (Job(layered.engine, some, ended) for some in ([[1] * 20] * 10, [[5]]))
    plain, busy = layered.run_with_pauses, []

    def behind(sequences: Sequence[Sequence[int]], pause: Any) -> Rows:
        rows = plain(sequences, pause)
        scheduler.add(query)
        return rows

    def watched(sequences: Sequence[Sequence[int]]) -> Rows:
        time.sleep(0.01)
        busy.append(worker.busy_seconds)
        return rows_of(sequences)

    layered.engine.run_with_pauses, layered.engine.run = behind, watched
    scheduler.add(bulk)
    worker.start()
    ended.wait(2)
    worker.stop()
    assert layered.passes == [[1] * 10]
    assert [seconds >= 0.01 for seconds in busy] == [True]
    assert worker.busy_seconds == 0
