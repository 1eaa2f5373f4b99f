"""A thousand malformed bodies: none is a 5xx, none leaves a traceback, and the server goes on."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from malformed import GOOD, malformed
from support.serving import Running, serving

from e5core import E5, Reranker
from e5core.serve.app import App
from e5core.serve.limits import Limits
from e5core.serve.models import Models, serve_embedder, serve_reranker
from e5core.serve.service import Service


@pytest.fixture(scope="module")
def server(tiny: E5, tiny_reranker: Reranker) -> Iterator[Running]:
    """The names that the bodies have."""
    models = Models([serve_embedder(tiny, "model")], [serve_reranker(tiny_reranker, "ranker")])
    with serving(App(Service(models))) as running:
        yield running


def test_malformed_bodies(server: Running, capfd: pytest.CaptureFixture[str]) -> None:
    bodies = list(malformed(seed=17))
    assert len(bodies) >= 1000
    statuses: dict[int, int] = {}
    for path, body in bodies:
        found = server.post(path, body)
        assert found.status < 500, (path, body[:200], found.body)
        if found.status >= 400:
            assert isinstance(found.json, dict)
            assert len(found.body) < 2000
        statuses[found.status] = statuses.get(found.status, 0) + 1
    assert sum(statuses.get(status, 0) for status in (400, 404, 422)) > 700
    assert capfd.readouterr().err == ""
    assert server.service.scheduler.waiting() == (0, 0)
    assert server.get("/readyz").status == 200
    for path, good in GOOD.items():
        if path != "/v2/embed":  # it names no input type
            assert server.post(path, good).status == 200, path


def test_bodies_that_never_end_harm_nobody(server: Running) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    slow = [server.connect() for _ in range(50)]
    for connection in slow:
        connection.sendall(head + b'{"model":')
    body = {"model": "model-query", "input": "a"}
    assert all(server.post("/v1/embeddings", body).status == 200 for _ in range(20))
    for connection in slow:
        connection.close()


def test_a_body_that_is_too_slow_is_given_up(make_service: Any) -> None:
    with serving(App(make_service(limits=Limits(body_seconds=0.3)))) as server:
        connection = server.connect()
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{"
        )
        started = time.monotonic()
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 30
        connection.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
        b"content-encoding: gzip\r\n\r\n{}",
        b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /%ff%fe/../models/%00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: \xff\xfe\r\n"
        b"content-length: 2\r\n\r\n{}",
    ],
)
def test_requests_that_no_client_sends(server: Running, raw: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(raw)
        assert connection.recv(4096).startswith(b"HTTP/1.1 4")
    assert server.get("/readyz").status == 200
