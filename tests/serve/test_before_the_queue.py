"""What happens to a request before its work is queued: it is admitted, waited for, given up."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.gates import gated, in_thread, until
from support.serving import serving

from e5core import E5, Reranker
from e5core.serve import service as service_module
from e5core.serve.app import App
from e5core.serve.limits import Limits
from e5core.serve.models import serve_embedder, serve_reranker
from e5core.serve.service import THREADS, Service
from e5core.serve.tokenizing import (
    EmbedRequest,
    RankRequest,
    StoppedError,
    never,
    tokenize_pairs,
    tokenize_texts,
)

MakeService = Callable[..., Service]
QUERY = {"model": "tiny-e5-query", "input": "the query"}
MANY = {"model": "tiny-e5-query", "input": ["the query a passage " * 6] * 60}


@contextmanager
def busy_threads(service: Service) -> Iterator[None]:
    """Let every thread beside the event loop be busy until the block ends."""
    release = threading.Event()
    for _ in range(THREADS):
        service.threads.submit(release.wait, 60)
    try:
        yield
    finally:
        release.set()


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of every request that begins to be tokenized."""
    seen: list[int] = []

    def noted(asked: EmbedRequest, stopped: Callable[[], bool]) -> Any:
        seen.append(len(asked.texts))
        return tokenize_texts(asked, stopped)

    monkeypatch.setattr(service_module, "tokenize_texts", noted)
    return seen


def test_what_is_cut_off_is_not_expected(tiny: E5, tiny_reranker: Reranker) -> None:
    limit, long = tiny.max_length, "ab " * 10_000
    asked = EmbedRequest(serve_embedder(tiny, "e5"), [long] * 3 + ["a" * 40], "")
    assert asked.expected_tokens == 3 * limit + 10
    cut = EmbedRequest(asked.served, [long] * 3, "")
    assert tokenize_texts(cut, never).tokens == cut.expected_tokens == 3 * limit
    ranker = serve_reranker(tiny_reranker, "ranker")
    limit = tiny_reranker.max_length
    assert RankRequest(ranker, "a" * 20, [long, "a" * 20]).expected_tokens == limit + 10
    short = RankRequest(ranker, "a" * 20, [long, long], tokens_per_document=7)
    assert short.expected_tokens == 2 * (5 + 7)


def test_a_long_text_waits_as_long_as_what_is_computed_of_it(make_service: MakeService) -> None:
    service = make_service(limits=Limits(max_wait=5))
    with gated(service) as (server, gate):
        service.models.embedders[0].engine.pace.start(100, 1)  # tokens a second
        requests = [in_thread(lambda: server.post("/v1/embeddings", QUERY))]
        assert gate.started.wait(60)
        requests.append(in_thread(lambda: server.post("/v1/embeddings", QUERY)))
        until(lambda: service.scheduler.waiting()[0] == 1)
        long = {**QUERY, "input": ["ab " * 10_000] * 3}  # thousands of tokens, if all were computed
        requests.append(in_thread(lambda: server.post("/v1/embeddings", long)))
        until(lambda: service.scheduler.waiting()[0] == 4 or bool(requests[-1][1]))
        gate.release.set()
        for thread, _ in requests:
            thread.join()
        assert [answer.status for _, [answer] in requests] == [200, 200, 200]


def test_texts_that_wait_for_a_thread_count_as_waiting(make_service: MakeService) -> None:
    service = make_service(limits=Limits(max_wait=2))
    with serving(App(service)) as server:
        service.models.embedders[0].engine.pace.start(500, 1)  # tokens a second
        with busy_threads(service):
            first, answers = in_thread(lambda: server.post("/v1/embeddings", MANY))
            until(lambda: sum(service._coming.values()) == 60 * 120 // 4)
            refused = server.post("/v1/embeddings", MANY)
            assert refused.status == 429
            assert "1,800 tokens are waiting" in refused.json["error"]["message"]
            assert server.post("/v1/embeddings", QUERY).status == 200  # it takes its turn
        first.join()
        assert answers[0].status == 200
        assert not any(service._coming.values())


def test_nobody_tokenizes_for_a_client_that_hung_up(
    make_service: MakeService, tokenized: list[int]
) -> None:
    service = make_service()
    body = json.dumps(MANY).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with serving(App(service)) as server:
        with busy_threads(service):
            connection = server.connect()
            connection.sendall(head.encode() + body)
            until(lambda: sum(service._coming.values()) > 0)
            connection.close()
            until(lambda: service.metrics.counters['te_request_failure{err="dropped"}'] == 1)
        assert server.post("/v1/embeddings", MANY).status == 200
    assert tokenized == [60]
    assert not any(service._coming.values())


def test_the_clock_runs_before_the_queue(make_service: MakeService, tokenized: list[int]) -> None:
    service = make_service()
    with serving(App(service)) as server:
        with busy_threads(service):
            late = server.post("/v1/embeddings", MANY, {"x-request-timeout": "0.2"})
            assert (late.status, late.json["error"]["code"]) == (504, "deadline_exceeded")
        assert server.post("/v1/embeddings", MANY).status == 200
    assert tokenized == [60]


def test_tokenizing_stops_once_nobody_wants_it(tiny: E5, tiny_reranker: Reranker) -> None:
    asked_of: list[int] = []

    def stopped() -> bool:
        asked_of.append(1)
        return len(asked_of) > 2

    with pytest.raises(StoppedError):
        tokenize_texts(EmbedRequest(serve_embedder(tiny, "e5"), ["a"] * 9, ""), stopped)
    assert len(asked_of) == 3
    asked_of.clear()
    ranker = serve_reranker(tiny_reranker, "ranker")
    with pytest.raises(StoppedError):
        tokenize_pairs(RankRequest(ranker, "a", ["a"] * 9), stopped)
    assert len(asked_of) == 3
