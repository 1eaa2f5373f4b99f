"""A server whose forward passes wait for a test, and what tests need to wait for the server."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from support.serving import Answer, Running, serving

from e5core.serve.app import App
from e5core.serve.engines import Rows
from e5core.serve.service import Service


class Gate:
    """Lets the forward passes of a service begin and end when a test says so."""

    def __init__(self, service: Service) -> None:
        self.started, self.release = threading.Event(), threading.Event()
        self.seen: list[int] = []
        engine = service.models.embedders[0].engine
        self._run, self._engine = engine.run, engine
        engine.run = self
        engine.run_with_pauses = lambda sequences, pause: self(sequences)

    def __call__(self, sequences: Sequence[Sequence[int]]) -> Sequence[Rows]:
        self.started.set()
        assert self.release.wait(60)
        self.seen.append(sum(map(len, sequences)))
        return self._run(sequences)


@contextmanager
def gated(service: Service, http: Any = "auto", **options: Any) -> Iterator[tuple[Running, Gate]]:
    """A server whose next forward pass ends when the gate is opened."""
    with serving(App(service, **options), http=http) as running:
        gate = Gate(service)
        try:
            yield running, gate
        finally:
            gate.release.set()


def in_thread(function: Callable[[], Answer]) -> tuple[threading.Thread, list[Answer]]:
    found: list[Answer] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    return thread, found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)
