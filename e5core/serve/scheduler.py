"""Which sequences are computed next: fair shares of every forward pass for every request."""

import threading
from collections import deque

from e5core.serve.engines import Engine
from e5core.serve.jobs import Batch, Job

# A job's turn is this share of a forward pass.
QUANTUM = 4


class Queue:
    """The waiting jobs of one engine.

    Deficit round robin (Shreedhar and Varghese, 1995): each job in turn may take a quantum of
    tokens, and what it cannot use since its next sequence is longer it may use in its next turn.
    A job that has just come has its first turn before all others, as in FQ-CoDel (RFC 8290), so
    that a lone query is in the next forward pass whatever waits. That pass is a short one, of first
    turns alone and half as long as others at most: filled up it would make the query wait for as
    long again. The pass after it is a whole one, of which first turns get half, so that no flood of
    new jobs stops the old ones.
    """

    def __init__(self, has_short_passes: bool = True) -> None:
        """has_short_passes  False where others compute new jobs apart: see Scheduler.take_new"""
        self.new: deque[Job] = deque()
        self.old: deque[Job] = deque()
        self.tokens = 0
        self.sequences = 0
        self._has_short_passes = has_short_passes
        self._was_short = False  # whether the pass before had first turns alone

    def __bool__(self) -> bool:
        return bool(self.new or self.old)

    def __len__(self) -> int:
        """The number of jobs."""
        return len(self.new) + len(self.old)

    def add(self, job: Job) -> None:
        self.new.append(job)
        self.tokens += job.tokens
        self.sequences += len(job.left)

    def discard(self, job: Job) -> None:
        """Forget a job that has sequences nobody has taken."""
        (self.new if job in self.new else self.old).remove(job)
        self.tokens -= job.waiting
        self.sequences -= len(job.left)

    def take(self, budget: int) -> list[tuple[Job, int]]:
        """Sequences of at most `budget` tokens; one longer sequence goes alone."""
        parts = self._fill(budget)
        self._forget(parts)
        return parts

    def take_whole(self, most: int) -> list[tuple[Job, int]]:
        """All sequences of new jobs, of at most `most` tokens together; no job is taken in part."""
        parts: list[tuple[Job, int]] = []
        for job in list(self.new):
            if job.tokens <= most:
                self.new.remove(job)
                most -= job.tokens
                while (index := job.take()) is not None:
                    parts.append((job, index))
        self._forget(parts)
        return parts

    def _forget(self, parts: list[tuple[Job, int]]) -> None:
        self.tokens -= sum(len(job.sequences[index]) for job, index in parts)
        self.sequences -= len(parts)

    def _fill(self, budget: int) -> list[tuple[Job, int]]:
        parts: list[tuple[Job, int]] = []
        quantum = max(budget // QUANTUM, 1)

        def left() -> int:
            return budget - sum(len(job.sequences[index]) for job, index in parts)

        if self._has_short_passes and self.old and self.new and not self._was_short:
            self._serve(self.new, parts, budget // 2, quantum)
        self._was_short = bool(parts)
        if self._was_short:
            return parts
        if self.old and self.new:
            # Behind first turns, a sequence of more than half a pass might never find room.
            self._serve(self.old, parts, budget // 2, quantum)
        self._serve(self.new, parts, left(), quantum)
        self._serve(self.old, parts, left(), quantum)
        return parts

    def _serve(
        self, jobs: deque[Job], parts: list[tuple[Job, int]], left: int, quantum: int
    ) -> None:
        """Give turns until nothing more fits into `left` tokens."""
        while jobs and left > 0:
            job = jobs.popleft()
            if job.deficit < job.next_length:
                job.deficit += quantum
            while (length := job.next_length) and length <= job.deficit:
                # What would leave room gives way to the longest one that fits into it. One that
                # is longer than any pass goes alone.
                index = job.take(left if parts else None)
                if index is None:
                    # It is the first one in the next pass, with what it may still take.
                    jobs.appendleft(job)
                    return
                parts.append((job, index))
                job.deficit -= len(job.sequences[index])
                left -= len(job.sequences[index])
            if job.next_length:
                self.old.append(job)


class Scheduler:
    """The waiting jobs of every engine. Engines that have any take turns.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queues: dict[Engine, Queue] = {}
        self._turns: deque[Engine] = deque()
        self._last: Engine | None = None  # that was served
        self._closed = False

    def add(self, job: Job) -> bool:
        """Let a job wait; it must have a sequence. False if the queue is closed."""
        with self._condition:
            if self._closed:
                return False
            waits = job.engine.run_with_pauses is not None
            queue = self._queues.setdefault(job.engine, Queue(has_short_passes=not waits))
            if not queue and self._last in (None, job.engine):
                self._turns.append(job.engine)
            elif not queue:  # it has waited while another one was served
                self._turns.appendleft(job.engine)
            queue.add(job)
            self._condition.notify()
        return True

    def discard(self, job: Job) -> int:
        """Take back what nobody has taken of a job; returns its tokens."""
        with self._condition:
            job.cancelled = True
            queue = self._queues.get(job.engine)
            dropped = job.waiting
            if queue is not None and dropped:
                queue.discard(job)
                if not queue and job.engine in self._turns:
                    self._turns.remove(job.engine)
            job.waiting = 0
            return dropped

    def take(self, timeout: float | None = None) -> Batch | None:
        """Wait for work and take a batch of it; None if the queue is closed or time is up."""
        with self._condition:
            self._condition.wait_for(lambda: self._turns or self._closed, timeout)
            if self._closed or not self._turns:
                return None
            engine = self._last = self._turns.popleft()
            queue = self._queues[engine]
            parts = queue.take(engine.pace.budget)
            if queue:
                self._turns.append(engine)
        return Batch(engine, parts)

    def take_new(self, most: int) -> Batch | None:
        """Jobs of one engine that have just come and have at most so many tokens, all of each.

        None, at once, if there are none.
        """
        with self._condition:
            for engine in () if self._closed else tuple(self._turns):
                queue = self._queues[engine]
                if parts := queue.take_whole(min(most, engine.pace.budget // QUANTUM)):
                    if not queue:
                        self._turns.remove(engine)
                    return Batch(engine, parts)
        return None

    def close(self) -> list[Job]:
        """Let nobody take anything any more; returns the jobs that wait."""
        with self._condition:
            self._closed = True
            self._turns.clear()
            waiting = [job for queue in self._queues.values() for job in (*queue.new, *queue.old)]
            self._queues.clear()
            self._condition.notify_all()
        return waiting

    def waiting(self) -> tuple[int, int]:
        """The sequences and the tokens that wait."""
        with self._condition:
            queues = self._queues.values()
            return sum(queue.sequences for queue in queues), sum(queue.tokens for queue in queues)

    def seconds(self, engine: Engine, tokens: int) -> tuple[float, float]:
        """How long all that waits takes, and how long a new job waits until its end.

        tokens  of the new job

        Of each waiting job at most as much comes before the end of the new one as the new one has
        itself, since they take turns.
        """
        own = engine.pace.seconds(tokens)
        everything = before = 0.0
        with self._condition:
            for other, queue in self._queues.items():
                seconds = other.pace.seconds(queue.tokens)
                everything += seconds
                before += min(seconds, own * len(queue))
        return everything, before + own

    def seconds_in_turns(self, engine: Engine, tokens: int) -> float:
        """How long a new job of many turns waits until its end, while others keep coming.

        tokens  of the new job

        Each job that waits, or one that comes in its place, gets as many turns as the new one. So
        its whole size counts, up to that of the new one, and not what is left of it.
        """
        own = engine.pace.seconds(tokens)
        with self._condition:
            jobs = [job for queue in self._queues.values() for job in (*queue.new, *queue.old)]
        return own + sum(min(job.engine.pace.seconds(job.tokens), own) for job in jobs)
