"""Load on `e5core serve`: latency from the time at which requests are due, every vector checked.

    python scripts/benchmark serve                  all scenarios but the long ones
    python scripts/benchmark serve --only c e       some of them
    python scripts/benchmark serve --only f --seconds 1800

The server is a process of its own; the load comes from this one, over loopback, on the same cores.
C is what `E5.embed` computes alone of the same texts, in texts a second.

    overhead  single texts as fast as a closed loop sends them, to a model that gives constants
    one       one query over HTTP beside one call of encode_query
    bulk      96 passages a request beside one call of E5.embed
    a         queries alone, at 0.5, 0.8, 1 and 2 C
    b         96 passages a request, at 0.5, 0.8, 1 and 2 C
    c         queries at 0.2 C beside endless requests of 2,000 passages
    d         half of the clients hang up after 50 ms
    e         2 C: only 200 and 429, memory flat
    f         queries at 0.8 of what can be answered, for long: the growth of memory
    g         SIGTERM under load
    h         bodies that never end beside queries
    malformed a thousand wrong bodies, and the speed before and after them
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import signal
import socket
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from loader import (
    BROKEN,
    GONE,
    UNSENT,
    Loader,
    Outcome,
    Shot,
    ask,
    percentile,
    poisson,
    post,
    request,
)
from malformed import malformed
from workloads import model_folder

from e5core.cli.program import Parser, run_program
from e5core.formats.files import write_json
from e5core.parity.samples import QUERIES, SENTENCES, text_of_length

NAME = "model"
BULK, ENDLESS = 96, 2000  # passages of a request
LOADS = (0.5, 0.8, 1.0, 2.0)
CLOSED = 16  # connections of a closed loop that keeps a server busy
LONE = 2.0  # queries a second of which each is alone
MAX_WAIT = 20.0
PAUSE = 0.005  # seconds between calls that are timed one by one
WARM, TURN = 3, 20  # calls of a turn that are not counted, and that are


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("benchmark serve", description=__doc__)
    parser.add_argument("--model", default="small", help="small, base, large or a folder")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, help="scenarios to run")
    parser.add_argument("--seconds", type=float, default=10, help="of each load (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.set_defaults(run=run)
    return run_program(parser, arguments)


def run(options: argparse.Namespace) -> int:
    if options.seconds <= 0:
        raise ValueError(f"--seconds is {options.seconds}, expected more than 0")
    bench = Bench(model_folder(options.model), options.dtype, options.seconds)
    for name in options.only or [name for name in SCENARIOS if name != "f"]:
        SCENARIOS[name](bench)
    if options.json:
        write_json(options.json, bench.figures)
    return 1 if bench.wrong else 0


def make_service(folder: Path, dtype: str, constant: bool) -> Any:
    """The service of a model. With `constant` it gives the same vector for every text."""
    from e5core import E5
    from e5core.serve.limits import Limits
    from e5core.serve.models import Models, serve_embedder
    from e5core.serve.service import Service

    served = serve_embedder(E5.from_pretrained(folder, dtype=dtype), NAME)
    if constant:
        row = np.full((1, served.model.dimension), 0.5, np.float32)
        served.engine.run = lambda sequences: np.repeat(row, len(sequences), axis=0)
        served.engine.run_with_pauses = None
    return Service(Models([served]), Limits(max_wait=MAX_WAIT))


def serve_process(folder: Path, dtype: str, port: int, constant: bool) -> None:
    """The program of the server."""
    import sys

    from e5core.serve.access import AccessLog
    from e5core.serve.app import App
    from e5core.serve.server import serve

    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    service = make_service(folder, dtype, constant)
    sys.exit(
        serve(
            lambda lost: App(service, log=AccessLog(sys.stdout), on_failure=lost),
            host="127.0.0.1",
            port=port,
            drain=1,
            ready="{}",
        )
    )


@contextmanager
def server(folder: Path, dtype: str, constant: bool = False) -> Iterator[tuple[int, Any]]:
    """A server that is ready: its port and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=serve_process, args=(folder, dtype, port, constant), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.is_alive():
            with (
                suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5),
            ):
                yield port, process
                return
            time.sleep(0.1)
        raise OSError("the server did not start")
    finally:
        process.terminate()
        process.join(60)
        process.kill()


def rss(process: Any) -> float:
    """Megabytes of memory that a process holds."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_seconds(process: Any = None) -> float:
    """The CPU time that a process has taken, this one if it is None."""
    if process is None:
        return sum(os.times()[:2])
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """The model's texts and vectors, what it computes alone, and the figures so far."""

    def __init__(self, folder: Path, dtype: str, seconds: float) -> None:
        from e5core import E5

        self.folder, self.dtype, self.seconds = folder, dtype, seconds
        self.figures: dict[str, Any] = {}
        self.wrong = False
        self.model = E5.from_pretrained(folder, dtype=dtype)
        self.queries = [QUERIES[i % len(QUERIES)] for i in range(64)]

    # Made when they are first asked for: it takes a while to embed them all.

    @cached_property
    def passages(self) -> list[str]:
        """Texts of 30 to 250 tokens."""
        lengths = [20 + 7 * (i % 31) for i in range(ENDLESS)]
        tokenizer = self.model.tokenizer
        made = {n: text_of_length(tokenizer, n, "passage: ", seed=n) for n in {*lengths}}
        return [f"{SENTENCES[i % len(SENTENCES)]} {made[n]}" for i, n in enumerate(lengths)]

    @cached_property
    def query_shots(self) -> list[Shot]:
        return [self.shot("query", [text]) for text in self.queries]

    @cached_property
    def bulk_shots(self) -> list[Shot]:
        starts = range(0, 4 * BULK, BULK)
        return [self.shot("passage", self.passages[start : start + BULK]) for start in starts]

    @cached_property
    def query_speed(self) -> float:
        """Queries a second of one call of E5.embed."""
        return self.speed("query", self.queries * 8)

    @cached_property
    def passage_speed(self) -> float:
        """Passages a second of one call of E5.embed."""
        return self.speed("passage", self.passages[: 2 * BULK])

    def shot(self, kind: str, texts: Sequence[str]) -> Shot:
        found = self.model.embed(texts, input_type=kind)
        tokens = int(np.minimum(found.token_counts, self.model.max_length).sum())
        return request(f"{NAME}-{kind}", texts, found.vectors, tokens)

    def speed(self, kind: str, texts: Sequence[str]) -> float:
        """Texts a second of one call, the median of three."""
        found = len(texts) / statistics.median(self.time(kind, texts) for _ in range(3))
        print(f"C: {found:.4g} texts/s, {kind}", flush=True)
        return found

    def time(self, kind: str, texts: Sequence[str]) -> float:
        started = time.perf_counter()
        self.model.embed(texts, input_type=kind)
        return time.perf_counter() - started

    def report(self, title: str, outcomes: Sequence[Outcome], seconds: float, **more: Any) -> None:
        """Print and keep what became of requests."""
        good = [outcome for outcome in outcomes if outcome.status == 200]
        times = [1000 * outcome.latency for outcome in good]
        wrong = sum(outcome.wrong for outcome in good)
        refused = [outcome for outcome in outcomes if outcome.status == 429]
        allowed = (200, 429, GONE)
        values = {
            "requests": len(outcomes),
            "p50 ms": percentile(times, 0.5),
            "p95 ms": percentile(times, 0.95),
            "p99 ms": percentile(times, 0.99),
            "texts/s": sum(outcome.shot.texts for outcome in good) / seconds,
            "tokens/s": sum(outcome.shot.tokens for outcome in good) / seconds,
            "queue ms": percentile([outcome.queue_ms for outcome in good], 0.5),
            "inference ms": percentile([outcome.inference_ms for outcome in good], 0.5),
            "429": len(refused),
            "of them without Retry-After": sum(not outcome.waits for outcome in refused),
            "other": sum(outcome.status not in allowed for outcome in outcomes),
            "wrong": wrong,
            **more,
        }
        self.wrong |= bool(wrong)
        self.figures[title] = values
        print(f"{title}: {figures(values)}", flush=True)

    def load(
        self,
        title: str,
        plan: Sequence[tuple[float, Shot]],
        port: int,
        process: Any,
        beside: Callable[[Loader], Any] | None = None,
    ) -> list[Outcome]:
        """Send requests when they are due, and report; returns what became of them."""
        before, cpu = rss(process), cpu_seconds()

        async def send() -> Loader:
            loader = Loader(port)
            others = None if beside is None else asyncio.create_task(beside(loader))
            await loader.open_loop(plan)
            if others is not None:
                others.cancel()
            loader.close()
            return loader

        loader = asyncio.run(send())
        ours = {id(shot) for _, shot in plan}
        found = [outcome for outcome in loader.outcomes if id(outcome.shot) in ours]
        share = (cpu_seconds() - cpu) / loader.seconds
        memory = f"{before:.0f} to {rss(process):.0f}"
        self.report(title, found, loader.seconds, rss_mb=memory, loader_cpu=share)
        return loader.outcomes


def figures(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def plan_of(
    shots: Sequence[Shot], texts_per_second: float, seconds: float
) -> list[tuple[float, Shot]]:
    """Requests at random times, so many texts a second on average, and one at least."""
    rate = texts_per_second / shots[0].texts
    times = list(poisson(rate, seconds, seed=0)) or [0.0]
    return list(zip(times, itertools.cycle(shots), strict=False))


def overhead(bench: Bench) -> None:
    """Requests a second of one server whose model costs nothing."""
    shots = bench.query_shots
    with server(bench.folder, bench.dtype, constant=True) as (port, process):

        async def load(connections: int) -> tuple[Loader, float, float]:
            loader = Loader(port, check=False)
            cpu, theirs = cpu_seconds(), cpu_seconds(process)
            tasks = (loader.closed_loop(shots, bench.seconds) for _ in range(connections))
            await asyncio.gather(*tasks)
            loader.close()
            return loader, cpu_seconds() - cpu, cpu_seconds(process) - theirs

        for connections in (1, 8, 64):
            loader, cpu, theirs = asyncio.run(load(connections))
            title = f"overhead, {connections} connections"
            # On a busy machine the CPU time of a request says more than their number a second.
            more = {
                "server_cpu_ms": 1000 * theirs / len(loader.outcomes),
                "loader_cpu_ms": 1000 * cpu / len(loader.outcomes),
            }
            bench.report(title, loader.outcomes, loader.seconds, **more)


def one(bench: Bench) -> None:
    """One query at a time, by the library and over HTTP in turns of a few each.

    Each begins after a pause. The first ones of a turn are left out: in the other's turn all that
    they need has left the processor's caches.
    """
    alone: list[float] = []
    outcomes: list[Outcome] = []
    with (
        server(bench.folder, bench.dtype) as (port, _),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        for _ in range(max(2, int(bench.seconds))):
            for place in range(WARM + TURN):
                time.sleep(PAUSE)
                started = time.perf_counter()
                bench.model.encode_query(bench.queries[place])
                alone += [time.perf_counter() - started] * (place >= WARM)
            for place in range(WARM + TURN):
                time.sleep(PAUSE)
                outcome = ask(connection, bench.query_shots[place])
                outcomes += [outcome] * (place >= WARM)
    over = [outcome.done for outcome in outcomes]
    more = {
        "encode_query_ms": 1000 * statistics.median(alone),
        "more_ms": 1000 * (statistics.median(over) - statistics.median(alone)),
    }
    bench.report("one query", outcomes, sum(over), **more)


def bulk(bench: Bench) -> None:
    """Bulk requests, four at a time, in turns with the library on the same texts."""
    texts = bench.passages[: len(bench.bulk_shots) * BULK]
    with server(bench.folder, bench.dtype) as (port, _):
        alone, over = [], []
        outcomes: list[Outcome] = []

        async def four_at_a_time() -> float:
            loader = Loader(port)
            shots = iter(bench.bulk_shots)

            async def sender() -> None:
                for shot in shots:
                    await loader.send(shot, loader.now)

            await asyncio.gather(*(sender() for _ in range(4)))
            loader.close()
            outcomes.extend(loader.outcomes)
            return loader.seconds

        for _ in range(max(3, int(bench.seconds / 2))):
            alone.append(bench.time("passage", texts))
            over.append(asyncio.run(four_at_a_time()))
        ratio = statistics.median(a / b for a, b in zip(alone, over, strict=True))
        bench.report("bulk", outcomes, sum(over), share_of_embed=ratio, best=min(alone) / min(over))


def queries_alone(bench: Bench) -> None:
    with server(bench.folder, bench.dtype) as (port, process):
        for load in LOADS:
            plan = plan_of(bench.query_shots, load * bench.query_speed, bench.seconds)
            bench.load(f"a {load} C", plan, port, process)


def bulk_alone(bench: Bench) -> None:
    with server(bench.folder, bench.dtype) as (port, process):
        for load in LOADS:
            plan = plan_of(bench.bulk_shots, load * bench.passage_speed, bench.seconds)
            bench.load(f"b {load} C", plan, port, process)


def fairness(bench: Bench) -> None:
    """Queries alone, the bulk alone, then both."""
    endless = request(f"{NAME}-passage", bench.passages, None, 0)  # nobody waits for its end
    with server(bench.folder, bench.dtype) as (port, process):
        rate = 0.2 * bench.query_speed
        plan = plan_of(bench.query_shots, rate, bench.seconds)
        bench.load("c queries alone", plan, port, process)
        few = plan_of(bench.query_shots, LONE, bench.seconds)
        bench.load("c lone queries", few, port, process)
        computed = {}
        for title, queries in (
            ("bulk alone", []),
            ("bulk beside lone queries", few),
            ("bulk", plan),
        ):
            before, started = tokens_of(port), time.perf_counter()
            plan_now = queries or [(bench.seconds, bench.query_shots[0])]

            async def bulk_beside(loader: Loader) -> None:
                await loader.closed_loop([endless], 1e9)

            outcomes = bench.load(f"c queries, {title}", plan_now, port, process, bulk_beside)
            seconds = time.perf_counter() - started
            own = sum(o.shot.tokens for o in outcomes if o.shot.texts == 1 and o.status == 200)
            computed[title] = (tokens_of(port) - before - own) / seconds
            wait_until_idle(port)
        alone = computed["bulk alone"] or float("nan")
        shares = {f"share, {title}": rate / alone for title, rate in computed.items()}
        print(f"c bulk tokens/s: {figures(computed)}; {figures(shares)}")
        bench.figures["c bulk"] = {**computed, **shares}


def tokens_of(port: int, name: str = "e5core_computed_tokens_total") -> float:
    """A value of the server's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name + " "))


def wait_until_idle(port: int) -> None:
    while tokens_of(port, "e5core_queue_tokens"):
        time.sleep(0.1)


def hanging_up(bench: Bench) -> None:
    """Half of the bulk requests end after 50 ms: what is computed against what is delivered."""
    from dataclasses import replace

    shots = [
        replace(shot, patience=0.05 if number % 2 else None)
        for number, shot in enumerate(bench.bulk_shots)
    ]
    with server(bench.folder, bench.dtype) as (port, process):
        plan = plan_of(shots, bench.passage_speed, bench.seconds)
        outcomes = bench.load("d", plan, port, process)
        wait_until_idle(port)
        delivered = sum(o.shot.tokens for o in outcomes if o.status == 200)
        left = sum(o.shot.tokens for o in outcomes if o.status == GONE)
        values = {
            "delivered": delivered,
            "computed": tokens_of(port),
            "of clients that left": left,
            "unread": tokens_of(port, "e5core_unread_tokens_total"),
            "dropped": tokens_of(port, "e5core_dropped_tokens_total"),
        }
        bench.figures["d tokens"] = values
        print(f"d tokens: {figures(values)}")


def overload(bench: Bench) -> None:
    with server(bench.folder, bench.dtype) as (port, process):
        plan = plan_of(bench.bulk_shots, 2 * bench.passage_speed, bench.seconds)
        outcomes = bench.load("e 2 C", plan, port, process)
        done = sum(o.shot.texts for o in outcomes if o.status == 200)
        seconds = max(o.done for o in outcomes)
        print(f"e goodput: {done / seconds / bench.passage_speed:.3f} of C")


def long_run(bench: Bench) -> None:
    """Memory after each sixth of the time, at 0.8 of what server and client do side by side."""
    with server(bench.folder, bench.dtype) as (port, process):

        async def capacity() -> float:
            loader = Loader(port)
            seconds = max(bench.seconds / 60, 0.1)
            tasks = (loader.closed_loop(bench.query_shots, seconds) for _ in range(CLOSED))
            await asyncio.gather(*tasks)
            loader.close()
            return len(loader.outcomes) / loader.seconds

        rate = asyncio.run(capacity())
        print(f"f: {rate:.4g} queries/s over {CLOSED} connections", flush=True)
        for part in range(1, 7):
            plan = plan_of(bench.query_shots, 0.8 * rate, bench.seconds / 6)
            bench.load(f"f {part} of 6", plan, port, process)


def end_under_load(bench: Bench) -> None:
    """SIGTERM: what was taken is answered, what comes later finds nobody."""
    with server(bench.folder, bench.dtype) as (port, process):

        async def stop(loader: Loader) -> None:
            await asyncio.sleep(bench.seconds / 2)
            os.kill(process.pid, signal.SIGTERM)
            await asyncio.sleep(1e9)

        plan = plan_of(bench.query_shots, 0.8 * bench.query_speed, bench.seconds)

        async def send() -> Loader:
            loader = Loader(port)
            stopper = asyncio.create_task(stop(loader))
            await loader.open_loop(plan)
            stopper.cancel()
            loader.close()
            return loader

        loader = asyncio.run(send())
        process.join(60)
        states = {
            name: sum(o.status == status for o in loader.outcomes)
            for name, status in (("not taken", UNSENT), ("closed", BROKEN), ("503", 503))
        }
        bench.report("g", loader.outcomes, loader.seconds, exit_code=process.exitcode, **states)


def never_ending(bench: Bench) -> None:
    """Two hundred connections that send half a body, beside queries."""
    with server(bench.folder, bench.dtype) as (port, process):
        plan = plan_of(bench.query_shots, 0.5 * bench.query_speed, bench.seconds)
        bench.load("h without", plan, port, process)
        half = bench.bulk_shots[0].content[:2000]
        open_connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for connection in open_connections:
            connection.sendall(half)
        bench.load("h with", plan, port, process)
        for connection in open_connections:
            connection.close()


def malformed_bodies(bench: Bench) -> None:
    """Queries one after the other, before and after bodies that are wrong in every way."""
    with server(bench.folder, bench.dtype) as (port, process):

        async def speed() -> tuple[Loader, float]:
            loader = Loader(port)
            theirs = cpu_seconds(process)
            await loader.closed_loop(bench.query_shots, bench.seconds)
            loader.close()
            return loader, cpu_seconds(process) - theirs

        async def send() -> Loader:
            loader = Loader(port, check=False)
            for path, body in malformed(seed=17):
                await loader.send(Shot(post(path, body), 0, 0), loader.now)
            loader.close()
            return loader

        asyncio.run(speed())  # the first ones warm it up
        before, cpu = asyncio.run(speed())
        bench.report("malformed, before", before.outcomes, before.seconds)
        wrong = asyncio.run(send())
        statuses = Counter(outcome.status for outcome in wrong.outcomes)
        after, cpu_after = asyncio.run(speed())
        a, b = len(before.outcomes), len(after.outcomes)
        values = {
            "bodies": len(wrong.outcomes),
            "5xx or none": sum(n for status, n in statuses.items() if not 200 <= status < 500),
            "speed after to before": b / after.seconds / (a / before.seconds),
            "cpu after to before": cpu_after / b / (cpu / a),
        }
        bench.report("malformed, after", after.outcomes, after.seconds, **values)


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "overhead": overhead,
    "one": one,
    "bulk": bulk,
    "a": queries_alone,
    "b": bulk_alone,
    "c": fairness,
    "d": hanging_up,
    "e": overload,
    "f": long_run,
    "g": end_under_load,
    "h": never_ending,
    "malformed": malformed_bodies,
}
