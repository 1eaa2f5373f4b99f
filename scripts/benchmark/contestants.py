"""The processes that hold a library each, and the rounds in which they work in turn."""

import importlib
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engines import OURS, Engine, Vectors

AGREES = 0.9999  # cosine between the float32 vectors of two libraries, or one of them is wrong


class WorkerError(ValueError):
    """What went wrong in the process of a library."""


@dataclass
class Contestant:
    """One library in one precision, in its own process."""

    engine: str
    precision: str
    process: Any
    connection: Connection
    load_seconds: float = 0.0
    sizes: tuple[int, ...] = (0,)  # of batches, to try
    batch_sizes: dict[str, int] = field(default_factory=dict)  # the fastest of a workload
    seconds: dict[str, list[float]] = field(default_factory=dict)  # a round each
    latencies: list[float] = field(default_factory=list)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    peak_mb: float = 0.0

    @property
    def label(self) -> str:
        return f"{self.engine} {self.precision}"

    def ask(self, *message: Any) -> Any:
        """The worker's answer; raises WorkerError with its error, or if it has died."""
        try:
            self.connection.send(message)
            kind, answer = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerError("its process died") from None
        if kind == "error":
            raise WorkerError(answer)
        return answer

    def encode(self, name: str, batch: Sequence[Any]) -> Any:
        """Seconds and vectors of a workload. Its first time, every size of batch is tried twice."""
        if name not in self.batch_sizes:
            fastest = self.sizes[0]
            if len(self.sizes) > 1:
                tries = [(self.ask("encode", batch, size)[0], size) for size in 2 * self.sizes]
                fastest = min(tries)[1]
            self.batch_sizes[name] = fastest
        return self.ask("encode", batch, self.batch_sizes[name])

    @property
    def batch(self) -> str:
        """The sizes of batches for a table."""
        sizes = self.batch_sizes
        if len(set(sizes.values())) > 1:
            return ", ".join(f"{name} {size}" for name, size in sizes.items())
        return str(next(iter(sizes.values()), self.sizes[0]) or "packed")


def work(
    connection: Connection,
    kind: type[Engine],
    folder: Path,
    precision: str,
    threads: int,
    device: str,
) -> None:
    """A worker's life: export or load once, then do whatever it is asked."""
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (the libraries' own progress and advice)
    loaded: Any = None
    reply: Any
    while True:
        try:
            what, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if what == "export":
                reply = kind.export(folder, precision)
            elif what == "load":
                importlib.import_module("torch")  # no library is measured by these imports
                importlib.import_module(kind.package)
                start = time.perf_counter()
                loaded = kind(folder, precision, threads, device)
                loaded.encode(kind.first, 1)
                reply = time.perf_counter() - start
            elif what == "encode":
                start = time.perf_counter()
                vectors = loaded.encode(*arguments)
                reply = time.perf_counter() - start, vectors
            elif what == "one by one":
                reply = [seconds_of(partial(loaded.encode, [text], 1)) for text in arguments[0]]
            elif what == "at once":
                reply = seconds_of(partial(encode_at_once, loaded, *arguments))
            else:
                reply = peak_megabytes()
            connection.send(("ok", reply))
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            connection.send(("error", f"{type(error).__name__}: {text[0]}"))


def encode_at_once(engine: Any, texts: list[str], callers: int) -> None:
    """Each text by itself, by threads that share the engine."""
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda text: engine.encode([text], 1), texts))


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_megabytes() -> float:
    """The most memory this process ever had, mapped files included."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return math.nan
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def start(
    kind: type[Engine],
    precision: str,
    folder: Path,
    threads: int,
    device: str,
    batch_size: int | None = None,
) -> Contestant | str:
    """A loaded contestant, or why it is not there.

    batch_size  of libraries that pad; None tries theirs on each workload and takes the fastest
    """
    context = multiprocessing.get_context("spawn")
    has_export = kind.export.__func__ is not Engine.export.__func__
    for stage in ("export", "load")[not has_export :]:  # an export's memory is not the engine's
        ours, theirs = context.Pipe()
        options = (theirs, kind, folder, precision, threads, device)
        process = context.Process(target=work, args=options, daemon=True)
        process.start()
        theirs.close()
        contestant = Contestant(kind.name, precision, process, ours)
        try:
            answer = contestant.ask(stage)
            if stage == "load":
                contestant.load_seconds = answer
                sizes = kind.batch_sizes
                if batch_size and any(sizes):
                    sizes = (batch_size,)
                contestant.sizes = sizes
        except WorkerError as error:
            ours.close()
            return str(error)
        if stage == "export":
            ours.close()
            process.join()
    return contestant


def run_rounds(
    contestants: list[Contestant],
    ceiling: Callable[[str], float],
    texts: dict[str, list[Any]],
    rounds: int,
) -> dict[str, list[float]]:
    """Fill the contestants' figures; returns the ceilings, GFLOP/s a round, by precision."""
    ceilings: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first one warms up and does not count
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        for precision in dict.fromkeys(c.precision for c in contestants):
            ceilings.setdefault(precision, []).append(ceiling(precision))
        for name, batch in texts.items():
            for contestant in contestants:
                if name == "one":
                    latencies = contestant.ask("one by one", batch)
                    seconds = statistics.median(latencies)
                    contestant.latencies += latencies if number else []
                else:
                    seconds, contestant.vectors[name] = contestant.encode(name, batch)
                if number:
                    contestant.seconds.setdefault(name, []).append(seconds)
    for contestant in contestants:
        contestant.peak_mb = contestant.ask("peak")
    return ceilings


def ratios(ours: Contestant, other: Contestant, name: str) -> list[float]:
    """How many times faster `ours` is, round by round."""
    pairs = zip(ours.seconds[name], other.seconds[name], strict=True)
    return [theirs / mine for mine, theirs in pairs]


def ratio(ours: Contestant, other: Contestant, name: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(ratios(ours, other, name))


def disagreement(contestants: list[Contestant]) -> str | None:
    """Who has other float32 vectors than e5core: then there is nothing to compare."""
    reference = exact(contestants)
    for other in contestants if reference else ():
        for name, vectors in other.vectors.items() if other.precision == "float32" else ():
            assert reference is not None
            cosine = float((vectors * reference.vectors[name]).sum(axis=1).min())
            if not cosine > AGREES:
                return f"{other.label} has a cosine of {cosine:.5f} to {reference.label} on {name}"
    return None


def exact(contestants: list[Contestant]) -> Contestant | None:
    """e5core in float32, which the vectors of all others are compared with."""
    return next((c for c in contestants if c.engine in OURS and c.precision == "float32"), None)
