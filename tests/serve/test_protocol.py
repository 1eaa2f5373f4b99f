"""What comes before a request is known: heads without an end, and none at all."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse
from typing import Any

import pytest
from support.gates import gated, until
from support.serving import Running, serving

from e5core.serve.app import App
from e5core.serve.keys import Keys
from e5core.serve.protocol import MOST_HEAD, Protocol
from e5core.serve.service import Service

MakeService = Callable[..., Service]
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\n"

# More than a server reads, and than the system keeps for a connection.
ENDLESS = 1000 * MOST_HEAD


def protocol(head_seconds: float) -> Callable[..., Protocol]:
    return partial(Protocol, head_seconds=head_seconds)


@pytest.fixture(scope="module")
def guarded(make_service: MakeService) -> Iterator[Running]:
    with serving(App(make_service(), Keys(["key"])), http=protocol(60)) as server:
        yield server


def sent_until_closed(connection: socket.socket, part: bytes) -> int:
    """Send a part again and again until the server closes the connection; returns the bytes."""
    sent = 0
    with suppress(ConnectionError):
        while sent < ENDLESS:
            connection.sendall(part)
            sent += len(part)
    return sent


@pytest.mark.parametrize(
    ("begin", "part"),
    [
        (b"", b"\r\n" * 512),
        (b"GET /", b"a" * 1024),
        (HEAD, b"x-%b: %b\r\n" % (b"a" * 20, b"b" * 1000)),
        (HEAD + b"x-one: ", b"b" * 1024),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n \r\n0\r\nx-trailer: ", b"b" * 1024),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n \r\n5;x=", b"b" * 1024),
    ],
    ids=["lines", "path", "headers", "one-header", "trailer", "extension"],
)
def test_a_head_has_an_end(guarded: Running, begin: bytes, part: bytes) -> None:
    with guarded.connect() as connection:
        connection.sendall(begin)
        assert sent_until_closed(connection, part) < ENDLESS
    assert guarded.get("/readyz").status == 200


def test_a_head_that_is_too_long_is_told(guarded: Running) -> None:
    with guarded.connect() as connection:
        connection.sendall(HEAD + b"x-one: " + b"b" * MOST_HEAD)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"more than 65536 bytes" in answer


def test_bodies_in_parts_of_any_size_are_no_head(guarded: Running) -> None:
    body = b'{"model": "tiny-e5-query", "input": "a"}' + b" " * 3000
    parts = b"".join(b"1;%b\r\n%c\r\n" % (b"x" * 50, byte) for byte in body)
    assert len(parts) > MOST_HEAD
    with guarded.connect() as connection:
        for _ in range(2):  # and again on the same connection
            connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + parts + b"0\r\n\r\n")
            answer = HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.read()[:8]) == (200, b'{"data":')


@pytest.mark.parametrize("sent", [b"", HEAD])
def test_a_head_that_does_not_come_is_not_waited_for(
    make_service: MakeService, sent: bytes
) -> None:
    with serving(App(make_service()), http=protocol(0.2)) as server, server.connect() as slow:
        slow.sendall(sent)
        with suppress(ConnectionError):
            assert slow.recv(4096) == b""


def test_a_request_is_answered_whatever_follows_it(make_service: MakeService) -> None:
    """The next one may be sent before, on the same connection, and stop in the middle."""
    made: list[Protocol] = []

    def protocol(**options: Any) -> Protocol:
        made.append(Protocol(head_seconds=60, **options))
        return made[-1]

    service = make_service()
    body = b'{"model": "tiny-e5-query", "input": "a"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with gated(service, http=protocol) as (server, gate), server.connect() as connection:
        connection.sendall(head + body + HEAD)
        assert gate.started.wait(60)
        until(lambda: made[0]._timer is not None)  # it waits for the rest of the second head
        given_up = threading.Event()
        loop = made[0].loop
        loop.call_soon_threadsafe(made[0]._give_up)
        loop.call_soon_threadsafe(given_up.set)
        assert given_up.wait(60)
        gate.release.set()
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        until(lambda: made[0].cycle.response_complete)
        loop.call_soon_threadsafe(made[0]._give_up)
        while connection.recv(4096):
            pass
