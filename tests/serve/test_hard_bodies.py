"""A thousand malformed bodies: none is a 5xx, none leaves a traceback, and the server goes on."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.serving import Running

GOOD: dict[str, Any] = {
    "/v1/embeddings": {"model": "tiny-e5-query", "input": ["a", "b"], "dimensions": 3},
    "/embed": {
        "model": "tiny-e5",
        "inputs": [{"text": "a"}, {"text": "b"}],
        "parameters": {"input_type": "query", "truncate": "END"},
    },
    "/tei/embed": {"inputs": ["a", "b"], "prompt_name": "query", "truncate": True},
    "/embed_all": {"inputs": "a", "prompt_name": "query"},
    "/v1/embed": {"model": "tiny-e5", "texts": ["a"], "input_type": "search_query"},
    "/v2/embed": {"model": "tiny-e5", "texts": ["a"], "embedding_types": ["float", "binary"]},
    "/api/embed": {"model": "tiny-e5-passage", "input": "a", "truncate": True},
    "/rerank": {"model": "tiny-ranker", "query": "a", "documents": [{"text": "b"}], "top_n": 1},
    "/v2/rerank": {"model": "tiny-ranker", "query": "a", "documents": ["b"], "top_n": 1},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/tokenize": {"inputs": ["a"], "add_special_tokens": True},
    "/decode": {"ids": [[0, 5, 2]], "skip_special_tokens": True},
    "/": {"inputs": "a", "prompt_name": "query"},
}
WRONG: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**400, -(2**63), "", "\x00", "a", [], [None], [[]], [[[]]],
    [1], [[1, 2]], [True], {}, {"text": None}, [{"text": 1}], [{"text": ["a"]}], ["a", 1],
    "a" * 500,
]  # fmt: skip
RAW = [
    b"",
    b" ",
    b"null",
    b"[]",
    b"1",
    b'"a"',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{",
    b'{"inputs": "\xc3\x28"}',
    b'{"inputs": "\\ud800"}',
    b'{"inputs": NaN}',
    b'{"inputs": Infinity}',
    b'{"inputs": 1e999}',
    b'{"inputs": ' + b"9" * 5000 + b"}",
    b"[" * 20_000,
    b'{"a":' * 5000,
    b"[" * 5000 + b"]" * 5000,
    b'{"inputs": "a", "inputs": 3}',
    b"{}" * 3,
    b"--boundary\r\ncontent-disposition: form-data\r\n",
]


def malformed(seed: int) -> Iterator[tuple[str, bytes]]:
    """A path and a body that is wrong in one way or another."""
    chance = random.Random(seed)
    for path, good in GOOD.items():
        text = json.dumps(good).encode()
        for raw in RAW:
            yield path, raw
        for _ in range(8):
            yield path, text[: chance.randrange(1, len(text))]
        for _ in range(8):  # a byte that is another one
            place = chance.randrange(len(text))
            yield path, text[:place] + bytes([chance.randrange(256)]) + text[place + 1 :]
        for field in good:
            yield path, json.dumps({k: v for k, v in good.items() if k != field}).encode()
        for _ in range(45):
            field, value = chance.choice(list(good)), chance.choice(WRONG)
            yield path, json.dumps({**good, field: value}).encode()
        yield path, json.dumps(dict.fromkeys(good)).encode()


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
    body = {"model": "tiny-e5-query", "input": "a"}
    assert all(server.post("/v1/embeddings", body).status == 200 for _ in range(20))
    for connection in slow:
        connection.close()


def test_a_body_that_is_too_slow_is_given_up(make_service: Any) -> None:
    from support.serving import serving

    from e5core.serve.app import App
    from e5core.serve.limits import Limits

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
