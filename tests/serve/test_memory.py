"""What requests hold in memory: bodies and token states, and who is refused for it."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from support.gates import gated, in_thread, until
from support.serving import Running, same_bits, serving

from e5core import E5
from e5core.serve import asking, tokenizing
from e5core.serve.app import App
from e5core.serve.limits import Limits
from e5core.serve.memory import BODIES, SMALL
from e5core.serve.service import Service

MakeService = Callable[..., Service]
QUERY = {"model": "tiny-e5-query", "input": "the query"}
LARGE = {"model": "tiny-e5-query", "input": "ab " * 30_000}
LIMITS = Limits(max_body=100_000)
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\n"


def small_memory(make_service: MakeService) -> Service:
    """A service that takes as many bytes at once as BODIES of its largest bodies have."""
    service = make_service(limits=LIMITS)
    service.memory.most = BODIES * LIMITS.max_body
    return service


def statuses(server: Running, *bodies: object) -> list[int]:
    return [server.post("/v1/embeddings", body).status for body in bodies]


def test_a_body_that_is_promised_shuts_nobody_out(make_service: MakeService) -> None:
    assert len(json.dumps(LARGE)) > SMALL
    with serving(App(small_memory(make_service))) as server:
        idle = [server.connect() for _ in range(4 * BODIES)]
        for connection in idle:
            connection.sendall(HEAD + b"content-length: 100000\r\n\r\n")
        assert statuses(server, QUERY, LARGE) == [200, 200]
        for connection in idle:
            connection.close()


@pytest.mark.parametrize("length", ["content-length: 100000\r\n\r\n", "transfer-encoding: chunked"])
def test_bodies_count_as_they_come(make_service: MakeService, length: str) -> None:
    """Whether a body says its length or not. A query is answered whatever else is in memory."""
    app = App(small_memory(make_service))
    sent = 90_000
    part = b" " * sent
    if "chunked" in length:
        length += "\r\n\r\n"
        part = b"%x\r\n%b\r\n" % (sent, part)
    with serving(app) as server:
        slow = [server.connect() for _ in range(BODIES)]
        for connection in slow:
            connection.sendall(HEAD + length.encode() + part)
        until(lambda: app.service.memory.held == BODIES * sent)
        assert statuses(server, QUERY) == [200]
        refused = server.post("/v1/embeddings", LARGE)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "this server takes 800,000 at once" in refused.json["error"]["message"]
        for connection in slow:
            connection.close()
        until(lambda: app.service.memory.held == 0)
        assert statuses(server, LARGE) == [200]


def test_a_body_counts_until_its_request_is_answered(make_service: MakeService) -> None:
    with gated(small_memory(make_service)) as (server, gate):
        app = server.app
        waiting = [in_thread(lambda: server.post("/v1/embeddings", LARGE)) for _ in range(BODIES)]
        until(lambda: app.service.memory.held == BODIES * len(json.dumps(LARGE)))
        assert statuses(server, LARGE) == [429]
        gate.release.set()
        for thread, _ in waiting:
            thread.join()
        assert [answer.status for _, [answer] in waiting] == [200] * BODIES
        assert statuses(server, LARGE) == [200]
        until(lambda: app.service.memory.held == 0)


def test_token_states_count_until_their_request_is_answered(
    make_service: MakeService, tiny: E5
) -> None:
    service = make_service(limits=LIMITS)
    body = {"inputs": ["the query a passage " * 20] * 20, "prompt_name": "query"}
    states = 4 * 20 * tiny.max_length * tiny.encoder.config.hidden_size
    service.memory.most = states + len(json.dumps(body)) + 1000  # of the queries beside it
    assert states > SMALL
    with gated(service) as (server, gate):
        requests = [in_thread(lambda: server.post("/v1/embeddings", QUERY))]
        assert gate.started.wait(60)
        requests.append(in_thread(lambda: server.post("/embed_all", body)))
        until(lambda: service.memory.held > states)
        refused = server.post("/embed_all", body)
        assert (refused.status, refused.json["error_type"]) == (429, "Overloaded")
        assert statuses(server, LARGE) == [429]
        requests.append(in_thread(lambda: server.post("/v1/embeddings", QUERY)))
        gate.release.set()
        for thread, _ in requests:
            thread.join()
        assert [answer.status for _, [answer] in requests] == [200, 200, 200]
        until(lambda: service.memory.held == 0)


def test_token_states_have_a_limit(
    make_service: MakeService, tiny: E5, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "MOST_STATES", 100)
    with serving(App(make_service())) as server:
        texts = ["the query a passage " * 20] * 2  # of max_length tokens each
        refused = server.post("/embed_all", {"inputs": texts, "prompt_name": "query"})
        assert refused.status == 413
        assert "inputs[0] to inputs[1] have more than 100 tokens" in refused.json["error"]
        given = server.post("/embed_all", {"inputs": texts[:1], "prompt_name": "query"})
        assert np.shape(given.json) == (1, tiny.max_length, tiny.encoder.config.hidden_size)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {"inputs": ["a" * 40_000] * 2}, "inputs has 80,000 characters"),
        ("/decode", {"ids": [5] * 80_000}, "ids has 80,000 ids"),
        ("/decode", {"ids": [[5]] * 80_000}, "ids has 80,000 lists"),
    ],
)
def test_what_is_described_has_a_limit(
    server: Running, path: str, body: object, message: str
) -> None:
    refused = server.post(path, body)
    assert refused.status == 413
    assert refused.json["error"].startswith(f"{message}, this server takes 65,536 of them")


def test_answers_are_cut_by_their_numbers() -> None:
    """Rows of token states are as long as their texts: the first one says nothing of the others."""
    chance = np.random.default_rng(0)
    rows = [chance.random((n, 384), np.float32) for n in (2, 300, 200, 100, 1)]
    answer = asking.written(b"[", rows, lambda index, row: row, b"]", {})
    parts = list(answer.parts)
    assert answer.wide
    assert len(parts) == 4  # the first two rows, the next two, the last one, the end
    found = json.loads(b"".join(parts))
    assert all(same_bits(*pair) for pair in zip(found, rows, strict=True))
