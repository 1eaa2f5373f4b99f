"""What a server does with a request once its dialect has read it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import numpy as np

from e5core.reranker import sigmoid
from e5core.serve.checks import check_texts
from e5core.serve.engines import Engine, Rows, scaled
from e5core.serve.errors import RefusedError, bad
from e5core.serve.http import Call
from e5core.serve.jobs import Batch, Job
from e5core.serve.limits import Limits
from e5core.serve.memory import Memory
from e5core.serve.metrics import Metrics
from e5core.serve.models import Models
from e5core.serve.patience import Patience
from e5core.serve.scheduler import QUANTUM, Scheduler
from e5core.serve.tokenizing import (
    EmbedRequest,
    RankRequest,
    Tokenize,
    Tokenized,
    never,
    tokenize_pairs,
    tokenize_texts,
)
from e5core.serve.worker import Worker, tell
from e5core.texts.errors import TextError
from e5core.vectors.stack import kept

Result = TypeVar("Result")

# Characters that are tokenized at once: it takes about 0.3 ms, a thread's turn as long.
TOKENIZED_AT_ONCE = 2048
# The share of the longest wait up to which work is taken: the speed is known to a tenth.
KEPT = 0.9
THREADS = 2  # beside the event loop and the worker; they tokenize, and make large answers


@dataclass(frozen=True)
class Embedded:
    """The rows of texts.

    rows       [texts, size], or [tokens, hidden_size] of each text where states were asked for
    tokens     that were computed of each text
    truncated  the places of texts that were cut
    """

    rows: Rows | list[Rows]
    tokens: list[int]
    truncated: list[int]


@dataclass(frozen=True)
class Ranked:
    """The scores of documents, and the places of the documents by falling scores.

    logits, scores  [documents] float32; the latter from 0 to 1
    """

    order: list[int]
    logits: Rows
    scores: Rows
    tokens: list[int]
    truncated: list[int]


class Service:
    """The models, the queue and the worker of a server, for the dialects."""

    def __init__(
        self,
        models: Models,
        limits: Limits | None = None,
        default_input_type: str | None = None,
        default_task: str | None = None,
    ) -> None:
        """Nothing runs before `start`.

        default_input_type  of texts whose request does not say it; None to refuse them
        default_task        the instruction of queries whose request gives none, where the model
                            needs one; None to refuse them
        """
        self.models = models
        self.limits = limits or Limits()
        self.default_input_type = default_input_type
        self.default_task = default_task
        self.metrics = Metrics()
        self.memory = Memory(self.limits)
        self.scheduler = Scheduler()
        self.worker = Worker(self.scheduler, deliver=self._deliver, note=self._note)
        self._coming: Counter[Engine] = Counter()  # tokens of texts that threads tokenize
        self.dropped = 0  # tokens that nobody computed, since their client had gone
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="e5core requests")
        self._loop: asyncio.AbstractEventLoop | None = None
        self.draining = False  # readiness is off, but requests are answered
        self.stopping = False

    def start(self) -> None:
        """Let every model compute once, and start the worker. Called in the event loop."""
        self._loop = asyncio.get_running_loop()
        for served in self.models.everything:
            served.engine.warm_up(served.model.max_length)
        self.worker.start()

    def stop(self) -> None:
        self.worker.stop(timeout=self.limits.hang_seconds)
        self.threads.shutdown(wait=False, cancel_futures=True)

    @property
    def running(self) -> bool:
        return self._loop is not None

    def why_not_ready(self) -> str | None:
        """Why nobody should send requests any more, in a sentence; None if all is well."""
        return "the server stops" if self.draining else self._why_not_taken()

    def _why_not_taken(self) -> str | None:
        """Why no request is taken, in a sentence; None if the worker lives and moves."""
        if self.stopping:
            return "the server stops"
        if not self.worker.alive:
            return "the worker has died"
        if self.worker.busy_seconds > self.limits.hang_seconds:
            return f"the worker has not moved for {self.worker.busy_seconds:.0f} s"
        return None

    async def embed(self, call: Call, asked: EmbedRequest) -> Embedded:
        """Embed the texts of a request; RefusedError says why not."""
        check_texts(asked.texts, asked.field, self.limits)
        served, model = asked.served, asked.served.model
        try:
            size = kept(asked.dimensions, model.pipeline.size)
        except ValueError:
            raise bad(
                f"dimensions is {asked.dimensions}, this model's vectors have "
                f"{model.pipeline.size} numbers; ask for 1 to {model.pipeline.size}",
                "dimensions",
            ) from None
        usual = asked.normalize and asked.dimensions is None
        engine = served.states if asked.states else served.engine if usual else served.pooled
        call.log |= {"work": "embed", "model": served.name, "texts": len(asked.texts)}
        job, tokenized = await self._process(
            call, engine, asked, lambda stopped: tokenize_texts(asked, stopped)
        )
        rows: Rows | list[Rows] = [row for row in job.rows if row is not None]
        if engine is served.pooled:
            size = model.dimension if asked.dimensions is None else size
            rows = await self.aside(lambda: scaled(job.matrix(), size, asked.normalize))
        return Embedded(rows, [len(ids) for ids in tokenized.sequences], tokenized.truncated)

    async def rank(self, call: Call, asked: RankRequest) -> Ranked:
        """Score the documents of a request; RefusedError says why not."""
        check_texts([asked.query], "query", self.limits)
        check_texts(asked.documents, asked.field, self.limits)
        served, texts = asked.served, len(asked.documents)
        call.log |= {"work": "predict", "model": served.name, "texts": texts}
        job, tokenized = await self._process(
            call, served.engine, asked, lambda stopped: tokenize_pairs(asked, stopped)
        )
        logits = job.matrix()
        order = np.argsort(-logits, kind="stable").tolist()
        tokens = [len(ids) for ids in tokenized.sequences]
        return Ranked(order, logits, sigmoid(logits), tokens, tokenized.truncated)

    async def aside(self, function: Callable[[], Result]) -> Result:
        """Call a function that takes long in a thread; the event loop goes on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function)

    async def _process(
        self, call: Call, engine: Engine, asked: EmbedRequest | RankRequest, tokenize: Tokenize
    ) -> tuple[Job, Tokenized]:
        """Admit, tokenize, queue and await the work of a request."""
        if (reason := self._why_not_taken()) is not None:
            raise _unavailable(reason)
        characters, expected = asked.characters, asked.expected_tokens
        self._admit(engine, expected)
        patience = Patience(call, self.limits.timeout)
        try:
            started = perf_counter()
            if characters <= TOKENIZED_AT_ONCE:
                tokenized = tokenize(never)
            else:
                tokenized = await self._tokenize_aside(engine, expected, tokenize, patience)
            tokens = tokenized.tokens
            call.log["tokenization_ms"] = _ms(perf_counter() - started)
            call.log["device"] = engine.pace.device
            call.log["tokens"] = tokens
            call.log["characters"] = characters
            call.log["truncated"] = len(tokenized.truncated)
            self.memory.hold(call, tokens * asked.bytes_per_token)
            if tokens > expected:
                self._admit(engine, tokens)
            job = await self._compute(engine, tokenized.sequences, patience)
        finally:
            patience.close()
        begun = job.started if job.started is not None else job.queued
        call.log["queue_ms"] = _ms(begun - job.queued)
        call.log["inference_ms"] = _ms((job.finished or perf_counter()) - begun)
        if job.error is not None:
            raise self._failed(job.error, asked.field)
        return job, tokenized

    async def _tokenize_aside(
        self, engine: Engine, expected: int, tokenize: Tokenize, patience: Patience
    ) -> Tokenized:
        """Tokenize in a thread. Meanwhile the tokens count as waiting, as they soon will be."""
        work = asyncio.get_running_loop().run_in_executor(
            self.threads, lambda: tokenize(lambda: patience.over)
        )
        self._coming[engine] += expected
        try:
            return await patience.result(work)
        finally:
            self._coming[engine] -= expected

    def _admit(self, engine: Engine, tokens: int) -> None:
        """Refuse work (429) that would wait too long; if nothing waits, it may be of any length."""
        everything, wait = self.scheduler.seconds(engine, tokens)
        coming = sum(other.pace.seconds(count) for other, count in self._coming.items())
        everything += coming
        if not everything:
            return
        if tokens > engine.pace.budget // QUANTUM:
            wait = coming + self.scheduler.seconds_in_turns(engine, tokens)
        if wait > KEPT * self.limits.max_wait:
            waiting = self.scheduler.waiting()[1] + sum(self._coming.values())
            raise RefusedError(
                429,
                f"{waiting:,} tokens are waiting, about {everything:.0f} s of work, and a request "
                f"is to wait {self.limits.max_wait:g} s at most; try again later",
                code="rate_limit_exceeded",
                wait=wait - KEPT * self.limits.max_wait,
            )

    async def _compute(
        self, engine: Engine, sequences: Sequence[Sequence[int]], patience: Patience
    ) -> Job:
        """Queue the sequences and wait for their rows."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(job: Job) -> None:
            if not done.done():
                done.set_result(None)

        job = Job(engine, sequences, end)
        if not self.scheduler.add(job):  # it was closed while the texts were tokenized
            raise _unavailable(self._why_not_taken() or "the server stops")
        try:
            await patience.result(done)
        except BaseException:  # also if uvicorn cancels this task, at the end of its patience
            self.dropped += self.scheduler.discard(job)
            raise
        return job

    def _failed(self, error: Exception, field: str) -> RefusedError:
        if isinstance(error, TextError):
            return RefusedError(500, error.naming(f"{field}[{{}}]".format), code="not_finite")
        if self.stopping or not self.worker.alive:
            return _unavailable(str(error))
        return RefusedError(
            500, "the model failed on this request; see the server's log", code="failed"
        )

    def _deliver(self, jobs: Sequence[Job]) -> None:
        """Tell the requests, in the event loop, that their jobs have ended."""
        for job in jobs:
            if job.error is not None and not isinstance(job.error, TextError):
                self.metrics.failures.append(job.error)
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: nobody waits any more
                self._loop.call_soon_threadsafe(tell, jobs)

    def _note(self, batch: Batch, seconds: float) -> None:
        self.metrics.note_batch(len(batch.parts), batch.tokens)


def _unavailable(reason: str) -> RefusedError:
    return RefusedError(503, f"{reason}; try again", code="unavailable", wait=1)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
