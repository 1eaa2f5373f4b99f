"""A server in a thread of the test's process, and plain HTTP to it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from support.models import ROOT

JSON = {"content-type": "application/json"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A server that listens on 127.0.0.1."""

    port: int
    app: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Any:
        return self.app.service

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, JSON | (headers or {}))
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, names, found.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.ask("GET", path, None, headers)

    def connect(self) -> socket.socket:
        """A bare connection, for requests that no client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextmanager
def serving(app: Any, **settings: Any) -> Iterator[Running]:
    """Serve an application until the block ends."""
    import uvicorn

    from e5core.serve.server import Server

    ready = threading.Event()

    class Watched(Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready.set()

    config = uvicorn.Config(
        app,
        port=0,
        loop="asyncio",
        lifespan="on",
        ws="none",
        log_level="error",
        access_log=False,
        **settings,
    )
    server = Watched(config, app, 0, "{}")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(60), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(port, app)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"


def where_it_listens(process: "subprocess.Popen[str]") -> tuple[str, int]:
    """The line in which a server says its port, behind warnings of which kernels run."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if found := re.search(r" at http://127\.0\.0\.1:(\d+)$", line.strip()):
            return line, int(found[1])
    raise AssertionError(seen)


class Program:
    """`e5core serve` as a process of its own."""

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "e5core", "serve", "--port", "0", "--drain", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        self.line, port = where_it_listens(self.process)
        self.server = Running(port, None)

    def end(self, how: int = signal.SIGTERM) -> tuple[int, list[dict[str, object]], str]:
        """Send a signal; returns the exit code, the lines of the log, and standard error."""
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], err


@contextmanager
def program(*arguments: object, **options: dict[str, str]) -> Iterator[Program]:
    running = Program(*arguments, **options)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def same_bits(found: Any, expected: npt.NDArray[np.float32]) -> bool:
    """Whether numbers of JSON are the very float32 that are expected."""
    array = np.asarray(found, dtype=np.float32)
    return array.shape == expected.shape and array.tobytes() == expected.tobytes()
