"""An open-loop load on a server of e5core: requests leave when they are due, whatever comes back.

The latency of a request counts from the time at which it was due, so that a server that stalls is
not flattered by a client that waits for it (Tene's coordinated omission).
"""

import asyncio
import base64
import itertools
import json
import random
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

RECEIVED = 2**18  # bytes that are read at once
GONE, BROKEN, UNSENT = 0, -1, -2  # in place of a status: hung up, no whole answer, not connected


@dataclass(frozen=True)
class Shot:
    """A request that is sent again and again.

    content  the whole request, as bytes
    vectors  [texts, hidden_size] float32 that are expected, or None
    tokens   that the server computes for it
    """

    content: bytes
    texts: int
    tokens: int
    vectors: npt.NDArray[np.float32] | None = None
    patience: float | None = None  # seconds after which the client hangs up


@dataclass
class Outcome:
    """What became of a request. Times are seconds since the start of the load."""

    shot: Shot
    due: float
    done: float = 0.0
    status: int = UNSENT
    wrong: bool = False
    waits: bool = False  # whether a refusal says in whole seconds when to come again
    queue_ms: float = 0.0
    inference_ms: float = 0.0

    @property
    def latency(self) -> float:
        return self.done - self.due

    def note(self, head: bytes, headers: dict[str, str], body: bytes, check: bool = True) -> None:
        """Note what an answer says, and with `check` whether its vectors are wrong."""
        self.status = int(head.split(maxsplit=2)[1])
        self.waits = headers.get("retry-after", "").isdigit()
        self.queue_ms = float(headers.get("x-queue-time", 0))
        self.inference_ms = float(headers.get("x-inference-time", 0))
        if check and self.status == 200 and self.shot.vectors is not None:
            rows = [base64.b64decode(row["embedding"]) for row in json.loads(body)["data"]]
            self.wrong = rows != [row.tobytes() for row in self.shot.vectors]


def request(
    model: str, texts: Sequence[str], vectors: npt.NDArray[np.float32] | None, tokens: int
) -> Shot:
    """A request of OpenAI's dialect, whose vectors come in base64."""
    body = json.dumps({"model": model, "input": list(texts), "encoding_format": "base64"}).encode()
    return Shot(post("/v1/embeddings", body), len(texts), tokens, vectors)


def post(path: str, body: bytes) -> bytes:
    """A whole POST as bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def ask(connection: socket.socket, shot: Shot) -> Outcome:
    """Send a request and wait for its answer, which takes the client little; `done` is the time."""
    outcome = Outcome(shot, due=0.0)
    started = time.perf_counter()
    connection.sendall(shot.content)
    answer = connection.recv(RECEIVED)
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = headers_of(head)
    while len(body) < int(headers["content-length"]):
        body += connection.recv(RECEIVED)
    outcome.done = time.perf_counter() - started
    outcome.note(head, headers, body)
    return outcome


def headers_of(head: bytes) -> dict[str, str]:
    """The headers of an answer, by lower-case names."""
    lines = head.decode("latin-1").lower().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines if line)


def poisson(rate: float, seconds: float, seed: int) -> Iterable[float]:
    """The times at which requests are due, `rate` a second on average."""
    chance, now = random.Random(seed), 0.0
    while (now := now + chance.expovariate(rate)) < seconds:
        yield now


@dataclass
class Loader:
    """Connections to a server that are kept, and what became of all requests."""

    port: int
    outcomes: list[Outcome] = field(default_factory=list)
    check: bool = True

    def __post_init__(self) -> None:
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.started = time.perf_counter()
        self.seconds = 0.0  # that the whole load took

    @property
    def now(self) -> float:
        return time.perf_counter() - self.started

    async def open_loop(self, plan: Iterable[tuple[float, Shot]]) -> None:
        """Send each request when it is due; returns when all have ended."""
        tasks = []
        for due, shot in plan:
            if (early := due - self.now) > 0:
                await asyncio.sleep(early)
            tasks.append(asyncio.create_task(self.send(shot, due)))
        await asyncio.gather(*tasks)

    async def closed_loop(self, shots: Sequence[Shot], seconds: float) -> None:
        """Send one request after the other until the time is up, and one at least."""
        for turn in itertools.count():
            await self.send(shots[turn % len(shots)], self.now)
            if self.now >= seconds:
                return

    async def send(self, shot: Shot, due: float) -> None:
        outcome = Outcome(shot, due)
        self.outcomes.append(outcome)
        try:
            reader, writer = await self._connect()
        except OSError:
            outcome.done = self.now
            return
        try:
            writer.write(shot.content)
            kept = await asyncio.wait_for(self._read(reader, outcome), shot.patience)
        except (asyncio.TimeoutError, TimeoutError):
            outcome.status, kept = GONE, False
        except (OSError, asyncio.IncompleteReadError):
            outcome.status, kept = BROKEN, False
        outcome.done = self.now
        if kept:
            self._idle.append((reader, writer))
        else:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection that was idle last, or a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the server closes what was idle for 75 s
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port, limit=2**26)

    async def _read(self, reader: asyncio.StreamReader, outcome: Outcome) -> bool:
        """Read an answer; returns whether the connection is kept."""
        head = await reader.readuntil(b"\r\n\r\n")
        headers = headers_of(head)
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        outcome.note(head, headers, body, self.check)
        return headers.get("connection") != "close"

    def close(self) -> None:
        self.seconds = self.now
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies; NaN of none."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
