"""The program around the application: uvicorn, signals, and the exit code."""

import asyncio
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from e5core.serve.app import App
from e5core.serve.protocol import Protocol

KEEP_ALIVE = 75  # seconds: longer than the proxies keep theirs, or they meet closed connections
# Seconds that are left for sending the last answers, once the last request has had its time.
SENDING = 10
LOST = 1  # exit code if the worker was lost, so that a supervisor starts the server anew


class Server(uvicorn.Server):  # type: ignore[misc, unused-ignore]
    """uvicorn that says where it listens, and that goes on for a while when it is told to stop.

    drain  seconds in which readiness is off and connections are closed with their answers, so
           that clients and proxies go elsewhere, before no connection is taken any more
    """

    def __init__(self, config: uvicorn.Config, app: App, drain: float, ready: str) -> None:
        super().__init__(config)
        self._app = app
        self._drain = drain
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        # What is there by now stays. The collector of cycles would stop everything for a tenth of a
        # second to look through it, 180,000 objects of PyTorch's most of them (measured).
        gc.collect()
        gc.freeze()
        if self.started:
            addresses = [s.getsockname() for server in self.servers for s in server.sockets]
            host, port = addresses[0][:2] if isinstance(addresses[0], tuple) else (addresses[0], 0)
            where = f"[{host}]" if ":" in str(host) else host
            print(self._ready.format(f"http://{where}:{port}"), file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain first; a second signal, or an interrupt, stops at once."""
        service = self._app.service
        if sig == signal.SIGINT or service.draining or not self._drain or self._loop is None:
            service.draining = service.stopping = True
            super().handle_exit(sig, frame)
            return
        service.draining = True
        self._captured_signals.append(sig)
        self._loop.call_soon_threadsafe(self._stop_later)

    def _stop_later(self) -> None:
        asyncio.get_running_loop().call_later(self._drain, self.stop)

    def stop(self) -> None:
        self._app.service.stopping = True
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError if the address cannot be had."""
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named.
    found = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise OSError(f"{host}, port {port}: {str(error.strerror).lower()}") from None
    return found


def serve(
    make_app: Callable[[Callable[[str], None]], App],
    *,
    host: str,
    port: int,
    drain: float,
    ready: str,
) -> int:
    """Serve until a signal; returns the exit code, 1 if the worker was lost.

    What was taken before the signal is answered, however long it takes: each request ends within
    its own time, and whoever cannot wait for them kills the process.

    make_app  makes the application, given what to call when the worker is lost
    ready     the line on standard error once it listens, with {} for the address
    """
    reasons: list[str] = []
    server: Server | None = None

    def lost(reason: str) -> None:
        reasons.append(reason)
        if server is not None:
            server.stop()

    app = make_app(lost)
    config = uvicorn.Config(
        app,
        http=partial(Protocol, head_seconds=app.service.limits.body_seconds),
        loop="asyncio",  # what is tested, also where uvloop is installed
        lifespan="on",
        ws="none",
        access_log=False,
        log_level="error",
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(app.service.limits.timeout) + SENDING,
    )
    server = Server(config, app, drain, ready)
    # The worker and the event loop hand the interpreter to each other: a turn of 5 ms, which is
    # Python's default, would be a part of every query's time.
    sys.setswitchinterval(0.001)
    server.run([listen(host, port)])
    if reasons:
        print(f"e5core serve: the worker was lost: {reasons[0]}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(LOST)  # a thread that hangs would keep the interpreter from ending
    return 0 if server.started else 2
