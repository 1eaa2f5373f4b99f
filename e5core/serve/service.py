"""What a server does with a request once its dialect has read it."""

import asyncio
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
from e5core.serve.http import Call, ClientGoneError
from e5core.serve.jobs import Batch, Job
from e5core.serve.limits import Limits
from e5core.serve.metrics import Metrics
from e5core.serve.models import Models
from e5core.serve.scheduler import QUANTUM, Scheduler
from e5core.serve.tokenizing import (
    EmbedRequest,
    RankRequest,
    Tokenized,
    tokenize_pairs,
    tokenize_texts,
)
from e5core.serve.worker import Worker, tell
from e5core.texts.errors import TextError
from e5core.vectors.stack import kept

Result = TypeVar("Result")

# Characters that are tokenized at once: it takes about 0.3 ms, a thread's turn as long.
TOKENIZED_AT_ONCE = 2048
# Characters of a token that are counted on before a text is tokenized.
CHARACTERS_PER_TOKEN = 4
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
        self.scheduler = Scheduler()
        self.worker = Worker(self.scheduler, deliver=self._deliver, note=self._note)
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
        model = asked.served.model
        try:
            size = kept(asked.dimensions, model.pipeline.size)
        except ValueError:
            raise bad(
                f"dimensions is {asked.dimensions}, this model's vectors have "
                f"{model.pipeline.size} numbers; ask for 1 to {model.pipeline.size}",
                "dimensions",
            ) from None
        served = asked.served
        usual = asked.normalize and asked.dimensions is None
        engine = served.states if asked.states else served.engine if usual else served.pooled
        call.log |= {"work": "embed", "model": asked.served.name, "texts": len(asked.texts)}
        job, tokenized = await self._process(
            call, engine, asked.texts, lambda: tokenize_texts(asked), asked.field
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
        texts = len(asked.documents)
        call.log |= {"work": "predict", "model": asked.served.name, "texts": texts}
        job, tokenized = await self._process(
            call,
            asked.served.engine,
            [asked.query, *asked.documents],
            lambda: tokenize_pairs(asked),
            asked.field,
        )
        logits = job.matrix()
        order = np.argsort(-logits, kind="stable").tolist()
        tokens = [len(ids) for ids in tokenized.sequences]
        return Ranked(order, logits, sigmoid(logits), tokens, tokenized.truncated)

    async def aside(self, function: Callable[[], Result]) -> Result:
        """Call a function that takes long in a thread; the event loop goes on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function)

    async def _process(
        self,
        call: Call,
        engine: Engine,
        texts: Sequence[str],
        tokenize: Callable[[], Tokenized],
        field: str,
    ) -> tuple[Job, Tokenized]:
        """Admit, tokenize, queue and await the work of a request."""
        if (reason := self._why_not_taken()) is not None:
            raise RefusedError(503, f"{reason}; try again", code="unavailable", wait=1)
        characters = sum(map(len, texts))
        self._admit(engine, characters // CHARACTERS_PER_TOKEN)
        started = perf_counter()
        small = characters <= TOKENIZED_AT_ONCE
        tokenized = tokenize() if small else await self.aside(tokenize)
        call.log["tokenization_ms"] = _ms(perf_counter() - started)
        call.log["tokens"] = tokenized.tokens
        call.log["characters"] = characters
        call.log["truncated"] = len(tokenized.truncated)
        self._admit(engine, tokenized.tokens)
        job = await self._await(call, engine, tokenized.sequences)
        begun = job.started if job.started is not None else job.queued
        call.log["queue_ms"] = _ms(begun - job.queued)
        call.log["inference_ms"] = _ms((job.finished or perf_counter()) - begun)
        if job.error is not None:
            raise self._failed(job.error, field)
        return job, tokenized

    def _admit(self, engine: Engine, tokens: int) -> None:
        """Refuse work (429) that would wait too long; if nothing waits, it may be of any length."""
        everything, turns = self.scheduler.seconds(engine, tokens)
        if not everything:
            return
        small = tokens <= engine.pace.budget // QUANTUM
        wait = turns if small else everything + engine.pace.seconds(tokens)
        if wait > self.limits.max_wait:
            waiting = self.scheduler.waiting()[1]
            raise RefusedError(
                429,
                f"{waiting:,} tokens are waiting, about {everything:.0f} s of work, and a request "
                f"is to wait {self.limits.max_wait:g} s at most; try again later",
                code="rate_limit_exceeded",
                wait=wait - self.limits.max_wait,
            )

    async def _await(self, call: Call, engine: Engine, sequences: Sequence[Sequence[int]]) -> Job:
        """Queue the sequences and wait for the rows, for the client's end or for the deadline."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()

        def end(how: str) -> None:
            if not ended.done():
                ended.set_result(how)

        seconds = self._allowed(call)
        left = max(seconds - (perf_counter() - call.started), 0.0)
        job = Job(engine, sequences, lambda job: end("done"))
        hung_up = loop.create_task(_hung_up(call))
        hung_up.add_done_callback(lambda task: end("gone"))
        timer = loop.call_later(left, end, "late")
        how = "gone"
        try:
            self.scheduler.add(job)
            how = await ended
        finally:  # also if uvicorn cancels this task, at the end of its patience
            timer.cancel()
            hung_up.cancel()
            if how != "done":
                self.dropped += self.scheduler.discard(job)
        if how == "gone":
            raise ClientGoneError
        if how == "late":
            message = f"the request was not done within {seconds:g} s"
            raise RefusedError(504, message, code="deadline_exceeded")
        return job

    def _allowed(self, call: Call) -> float:
        """Seconds that the request may take: the server's, or the client's where they are less."""
        seconds = self.limits.timeout
        for name in ("x-request-timeout", "x-stainless-read-timeout"):
            if name in call.headers:
                with suppress(ValueError):
                    asked = float(call.headers[name])
                    seconds = asked if 0 < asked < seconds else seconds
        return seconds

    def _failed(self, error: Exception, field: str) -> RefusedError:
        if isinstance(error, TextError):
            return RefusedError(500, error.naming(f"{field}[{{}}]".format), code="not_finite")
        if self.stopping or not self.worker.alive:
            return RefusedError(503, f"{error}", code="unavailable", wait=1)
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


async def _hung_up(call: Call) -> None:
    """Return when the client hangs up."""
    while (await call.receive())["type"] != "http.disconnect":
        pass


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
