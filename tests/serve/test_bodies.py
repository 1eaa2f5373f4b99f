"""Bodies of requests: how many bytes of them are in memory at once, and who is refused for it."""

import json
from collections.abc import Callable

import pytest
from support.gates import gated, in_thread, until
from support.serving import Running, serving

from e5core.serve.app import BODIES, SMALL_BODY, App
from e5core.serve.limits import Limits
from e5core.serve.service import Service

MakeService = Callable[..., Service]
QUERY = {"model": "tiny-e5-query", "input": "the query"}
LARGE = {"model": "tiny-e5-query", "input": "ab " * 30_000}
LIMITS = Limits(max_body=100_000)
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"


def statuses(server: Running, *bodies: object) -> list[int]:
    return [server.post("/v1/embeddings", body).status for body in bodies]


def test_a_body_that_is_promised_shuts_nobody_out(make_service: MakeService) -> None:
    assert len(json.dumps(LARGE)) > SMALL_BODY
    with serving(App(make_service(limits=LIMITS))) as server:
        idle = [server.connect() for _ in range(4 * BODIES)]
        for connection in idle:
            connection.sendall(HEAD + b"content-length: 100000\r\n\r\n")
        assert statuses(server, QUERY, LARGE) == [200, 200]
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("length", ["content-length: 100000\r\n\r\n", "transfer-encoding: chunked"])
def test_bodies_count_as_they_come(make_service: MakeService, length: str) -> None:
    """Whether a body says its length or not. A query is answered whatever else is in memory."""
    app = App(make_service(limits=LIMITS))
    sent = 90_000
    part = b" " * sent
    if "chunked" in length:
        length += "\r\n\r\n"
        part = b"%x\r\n%b\r\n" % (sent, part)
    with serving(app) as server:
        slow = [server.connect() for _ in range(BODIES)]
        for connection in slow:
            connection.sendall(HEAD + length.encode() + part)
        until(lambda: app._held == BODIES * sent)
        assert statuses(server, QUERY) == [200]
        refused = server.post("/v1/embeddings", LARGE)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "this server takes 800,000 at once" in refused.json["error"]["message"]
        for connection in slow:
            connection.close()
        until(lambda: app._held == 0)
        assert statuses(server, LARGE) == [200]


def test_a_body_counts_until_its_request_is_answered(make_service: MakeService) -> None:
    with gated(make_service(limits=LIMITS)) as (server, gate):
        app = server.app
        waiting = [in_thread(lambda: server.post("/v1/embeddings", LARGE)) for _ in range(BODIES)]
        until(lambda: app._held == BODIES * len(json.dumps(LARGE)))
        assert statuses(server, LARGE) == [429]
        gate.release.set()
        for thread, _ in waiting:
            thread.join()
        assert [answer.status for _, [answer] in waiting] == [200] * BODIES
        assert statuses(server, LARGE) == [200]
        until(lambda: app._held == 0)
