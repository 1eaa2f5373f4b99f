"""What is taken and what is refused: load, limits, deadlines, clients that leave, keys, origins."""

import asyncio
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.gates import gated, in_thread, until
from support.serving import serving

from e5core import E5, Reranker
from e5core.serve.access import AccessLog
from e5core.serve.app import App
from e5core.serve.asking import report_headers
from e5core.serve.engines import Rows
from e5core.serve.http import Call
from e5core.serve.keys import Keys, read_keys
from e5core.serve.limits import Limits
from e5core.serve.models import Models, serve_embedder, serve_reranker
from e5core.serve.service import THREADS, TOKENIZED_AT_ONCE, Service

MakeService = Callable[..., Service]
BODY = {"model": "tiny-e5-query", "input": "the query"}
PINECONE = {"x-pinecone-api-version": "2026-07"}


def test_work_that_would_wait_too_long_is_refused_whole(make_service: MakeService) -> None:
    service = make_service(limits=Limits(max_wait=2))
    texts = ["the query a passage " * 6] * 60
    with gated(service) as (server, gate):
        pace = service.models.embedders[0].engine.pace
        pace.start(500, 1)  # tokens a second
        first, answers = in_thread(lambda: server.post("/v1/embeddings", {**BODY, "input": texts}))
        assert gate.started.wait(60)  # the first pass has taken its texts: no more are taken
        before = service.scheduler.waiting()
        refused = server.post("/v1/embeddings", {**BODY, "input": texts})
        assert refused.status == 429
        assert refused.json["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        exact = int(refused.headers["retry-after-ms"])
        assert exact <= 1000 * int(refused.headers["retry-after"]) <= exact + 1000
        assert service.scheduler.waiting() == before  # nothing was half admitted
        pinecone = {"model": "tiny-e5", "parameters": {"input_type": "query"}}
        body = {**pinecone, "inputs": [{"text": text} for text in texts]}
        found = server.post("/embed", body, PINECONE)
        assert found.json["error"]["code"] == "RESOURCE_EXHAUSTED"
        # A lone query takes its turn whatever waits.
        second, lone = in_thread(lambda: server.post("/v1/embeddings", BODY))
        until(lambda: service.scheduler.waiting()[0] > before[0])
        gate.release.set()
        for thread in (first, second):
            thread.join()
        assert [answer.status for answer in (*answers, *lone)] == [200, 200]


def test_an_empty_queue_takes_work_of_any_length(make_service: MakeService) -> None:
    service = make_service(limits=Limits(max_wait=0.001))
    with serving(App(service)) as server:
        service.models.embedders[0].engine.pace.start(1, 1)
        answer = server.post("/v1/embeddings", {**BODY, "input": ["the query"] * 300})
        assert answer.status == 200


@pytest.mark.parametrize(
    ("limits", "body", "status", "message"),
    [
        ({"max_texts": 3}, {**BODY, "input": ["a"] * 4}, 400, "has 4 texts, this server takes 3"),
        ({"max_characters": 5}, {**BODY, "input": ["a", "b" * 6]}, 413, "input[1] has 6 char"),
        ({"max_body": 100}, {**BODY, "input": "a" * 200}, 413, "this server takes 100"),
    ],
)
def test_limits_are_named(
    make_service: MakeService, limits: Any, body: Any, status: int, message: str
) -> None:
    with serving(App(make_service(limits=Limits(**limits)))) as server:
        found = server.post("/v1/embeddings", body)
        assert (found.status, message in found.json["error"]["message"]) == (status, True)
        assert server.post("/v1/embeddings", {**BODY, "input": "a"}).status == 200


def test_a_body_without_a_length_is_counted_while_it_comes(make_service: MakeService) -> None:
    with (
        serving(App(make_service(limits=Limits(max_body=1000)))) as server,
        server.connect() as connection,
    ):
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b"400\r\n" + b" " * 1024 + b"\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("header", ["x-request-timeout", "x-stainless-read-timeout", None])
def test_a_request_past_its_deadline_is_given_up(
    make_service: MakeService, header: str | None
) -> None:
    allowed = 1 if header else 3  # which the first request has too, so that it needs some
    service = make_service(limits=Limits() if header else Limits(timeout=allowed))
    with gated(service) as (server, gate):
        running, _ = in_thread(lambda: server.post("/v1/embeddings", BODY))
        assert gate.started.wait(60)
        headers = {header: "1"} if header else {}
        late = server.post("/v1/embeddings", BODY, headers)
        assert (late.status, late.json["error"]["code"]) == (504, "deadline_exceeded")
        assert f"within {allowed} s" in late.json["error"]["message"]
        assert service.scheduler.waiting() == (0, 0)
        gate.release.set()
        running.join()
        until(lambda: service.worker.counts.batches > 0)
        assert len(gate.seen) == 1  # nobody computed what was given up


def test_a_client_that_hangs_up_costs_the_running_pass_at_most(make_service: MakeService) -> None:
    service = make_service()
    with gated(service) as (server, gate):
        body = json.dumps({**BODY, "input": ["the query a passage " * 10] * 500}).encode()
        connection = server.connect()
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: service.scheduler.waiting()[0] > 0)
        assert gate.started.wait(60)
        connection.close()
        until(lambda: service.scheduler.waiting() == (0, 0))
        gate.release.set()
        until(lambda: service.worker.counts.batches == 1)
        assert service.worker.counts.tokens <= service.models.embedders[0].engine.pace.budget
        assert service.worker.counts.unread == service.worker.counts.tokens
        assert service.dropped > 10 * service.worker.counts.tokens
        until(lambda: "e5core_dropped_tokens_total" in server.get("/metrics").body.decode())
        failures = 'te_request_failure{err="dropped"} 1'
        until(lambda: failures in server.get("/metrics").body.decode())


def test_one_bad_text_fails_its_own_request(make_service: MakeService, tiny: E5) -> None:
    service = make_service()
    bad = tiny.tokenizer.encode("query: 日本")
    with gated(service) as (server, gate):
        run = gate._run

        def failing(sequences: Sequence[Sequence[int]]) -> Sequence[Rows]:
            if bad in [list(ids) for ids in sequences]:
                raise RuntimeError("a defect")
            return run(sequences)

        gate._run = failing
        first, _ = in_thread(lambda: server.post("/v1/embeddings", BODY))
        assert gate.started.wait(60)
        good, answers = in_thread(lambda: server.post("/v1/embeddings", BODY))
        ill, refused = in_thread(
            lambda: server.post("/v1/embeddings", {**BODY, "input": ["a", "日本"]})
        )
        until(lambda: service.scheduler.waiting()[0] == 3)
        gate.release.set()
        for thread in (first, good, ill):
            thread.join()
        assert [answer.status for answer in answers] == [200]
        assert [answer.status for answer in refused] == [500]
        assert "a defect" not in refused[0].body.decode()
        assert server.get("/readyz").status == 200


def test_every_route_but_health_needs_a_key(make_service: MakeService) -> None:
    from e5core.serve.table import OF_PREFIX, ROUTES

    with serving(App(make_service(), Keys(["one", "zwei-ß"]))) as server:
        for path in ("/livez", "/readyz", "/health", "/ping"):
            assert server.get(path).status == 200
        paths = [*ROUTES, *OF_PREFIX, ("GET", "/metrics"), ("GET", "/nowhere"), ("POST", "/x")]
        for method, path in paths:
            for headers in ({}, {"authorization": "Bearer two"}, {"api-key": "on"}):
                assert server.ask(method, path, b"{}", headers).status == 401, path
        for headers in (
            {"authorization": "Bearer one"},
            {"authorization": "bearer one"},
            {"authorization": "one"},
            {"api-key": "one"},
            {"x-api-key": "one"},
        ):
            assert server.post("/v1/embeddings", BODY, headers).status == 200
        refused = server.post("/embed", {}, PINECONE)
        assert refused.json["error"]["code"] == "UNAUTHENTICATED"


@pytest.mark.parametrize("key", ["zwei-ß", "schlüssel-à", "鍵"])
@pytest.mark.parametrize("form", ["utf-8", "latin-1"])
def test_a_key_may_have_any_letters(make_service: MakeService, key: str, form: str) -> None:
    """Most clients send UTF-8; Python's http.client and requests send Latin-1 where they can."""
    sent = key.encode(form, "ignore")
    head = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n\r\n"
    with serving(App(make_service(), Keys([key]))) as server, server.connect() as connection:
        connection.sendall(head % sent)
        status = connection.recv(12)
        assert status == (b"HTTP/1.1 200" if sent.decode(form) == key else b"HTTP/1.1 401")


def test_keys_come_from_the_environment_and_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("E5CORE_API_KEY", "a b")
    file = tmp_path / "keys"
    file.write_text("# of the team\nc\n\n d \n")
    assert read_keys(file) == ["a", "b", "c", "d"]
    monkeypatch.delenv("E5CORE_API_KEY")
    assert read_keys(None) == []
    file.write_text("# none yet\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(file)


def test_pages_of_other_origins_are_told_nothing_unless_they_are_listed(
    make_service: MakeService,
) -> None:
    ours = {"origin": "https://example.org"}
    with serving(App(make_service(), origins=["https://example.org"])) as server:
        asked = server.ask("OPTIONS", "/v1/embeddings", None, ours)
        assert asked.headers["access-control-allow-origin"] == "https://example.org"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        found = server.post("/v1/embeddings", BODY, ours)
        assert found.headers["access-control-allow-origin"] == "https://example.org"
        other = server.post("/v1/embeddings", BODY, {"origin": "https://example.com"})
        assert not [name for name in other.headers if name.startswith("access-control")]
    with serving(App(make_service())) as server:
        for method in ("OPTIONS", "POST"):
            found = server.ask(method, "/v1/embeddings", BODY, ours)
            assert not [name for name in found.headers if name.startswith("access-control")]


# What Prometheus takes of a line; its own parser in Go refuses the whole page for one other line.
# Source: prometheus/prometheus, model/textparse/promlex.l.
NAME, NUMBER = "[a-zA-Z_:][a-zA-Z0-9_:]*", r"[+-]?(\d+(\.\d+)?(e[+-]?\d+)?|Inf)"
TYPE_LINE = re.compile(f"# TYPE ({NAME}) (counter|gauge|histogram)")
SAMPLE_LINE = re.compile(rf'({NAME})(\{{[a-z_]+="([^"\\\n]|\\["\\n])*"\}})? {NUMBER}')


def test_prometheus_can_read_the_metrics(tiny: E5, tiny_reranker: Reranker) -> None:
    models = Models(
        [serve_embedder(tiny, "a", 'with "quotes" and\ttab'), serve_embedder(tiny, "b")],
        [serve_reranker(tiny_reranker, "ranker")],
    )
    with serving(App(Service(models))) as server:
        server.post("/v1/embeddings", {"model": "b-query", "input": ["a", "b"]})
        server.post("/v1/embeddings", {})
        lines = server.get("/metrics").body.decode().splitlines()
    families: list[str] = []
    for line in lines:
        if line.startswith("#"):
            found = TYPE_LINE.fullmatch(line)
            assert found, line
            families.append(found[1])
        else:
            found = SAMPLE_LINE.fullmatch(line)
            assert found, line
            name = found[1]
            assert name.removeprefix(families[-1]) in ("", "_bucket", "_sum", "_count"), line
    assert len(families) == len(set(families))  # the samples of a name stand together
    speeds = [line for line in lines if line.startswith("e5core_tokens_per_second{")]
    assert len(speeds) == 3


def test_pages_of_elsewhere_may_not_post_where_no_key_is_asked_for(
    make_service: MakeService,
) -> None:
    """Not even if their name was made to point to this machine: then Host is theirs as well."""
    listed = "https://example.org"
    app = App(make_service(), origins=[listed], hosts={"127.0.0.1", "localhost"})
    with serving(app) as server:
        for origin in (
            "http://evil.example:8080",
            "null",
            "http://127.0.0.1.evil.example",
            "http://[",
        ):
            for headers in ({}, {"host": "evil.example:8080"}):
                found = server.post("/v1/embeddings", BODY, {"origin": origin, **headers})
                assert found.status == 403
                assert "--cors-origin" in found.json["error"]["message"]
        for origin in (listed, f"http://127.0.0.1:{server.port}", "http://localhost:3000"):
            assert server.post("/v1/embeddings", BODY, {"origin": origin}).status == 200
        assert server.post("/v1/embeddings", BODY).status == 200  # no browser sends it


def test_metrics_count_a_known_sequence(
    make_service: MakeService, tiny: E5, tiny_reranker: Reranker
) -> None:
    with serving(App(make_service())) as server:
        server.post("/v1/embeddings", BODY)
        server.post("/v1/embeddings", {**BODY, "input": ["a", "b"]})
        server.post("/v1/embeddings", {"model": "tiny-e5"})
        server.post("/v2/rerank", {"model": "tiny-ranker", "query": "a", "documents": ["a"] * 3})
        server.get("/v1/models")
        lines = server.get("/metrics").body.decode().splitlines()
    tokens = tiny.embed(["the query", "a", "b"], input_type="query").token_counts.sum()
    tokens += 3 * 2 * tiny_reranker.tokenizer.count("a")  # of a pair: <s> a </s> </s> a </s>
    for expected in (
        'te_request_count{method="single"} 2',
        'te_request_count{method="batch"} 2',
        'te_request_success{method="single"} 1',
        'te_request_success{method="batch"} 2',
        'te_request_failure{err="validation"} 1',
        "te_embed_count 3",
        "te_predict_success 3",
        "te_request_duration_count 3",
        "te_request_queue_duration_count 3",
        f"te_request_input_length_sum {tokens}",
        f"e5core_computed_tokens_total {tokens}",
        f"te_batch_next_tokens_sum {tokens}",
        "te_queue_size 0",
        "e5core_ready 1",
    ):
        assert expected in lines
    buckets = [line for line in lines if line.startswith("te_request_duration_bucket")]
    counts = [int(line.split()[1]) for line in buckets]
    assert counts == sorted(counts)
    assert (len(counts), counts[-1]) == (36, 3)


def test_metrics_are_what_prometheus_reads(tiny: E5, tiny_reranker: Reranker) -> None:
    """Every value stands behind the one line of its kind, with names that need escapes too."""
    parser = pytest.importorskip("prometheus_client.parser")
    names = ["plain", 'a "quoted" \\ name\n日本']
    models = Models(
        [serve_embedder(tiny, "x", name) for name in names],
        [serve_reranker(tiny_reranker, "ranker")],
    )
    with serving(App(Service(models))) as server:
        server.post("/v1/embeddings", {"model": "plain-query", "input": "a"})
        text = server.get("/metrics").body.decode()
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    speeds = families["e5core_tokens_per_second"]
    assert [sample.labels["model"] for sample in speeds.samples] == [*names, "ranker"]
    kinds = {family.type for family in families.values()}
    assert kinds == {"counter", "gauge", "histogram"}
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len({*types})


def test_a_server_that_cannot_compute_says_so(make_service: MakeService) -> None:
    """The worker hangs: what it has is failed, readiness is off, and whoever runs it is told."""
    service = make_service(limits=Limits(hang_seconds=0.3))
    reasons: list[str] = []
    with gated(service, on_failure=reasons.append) as (server, gate):
        thread, answers = in_thread(lambda: server.post("/v1/embeddings", BODY))
        thread.join()
        assert answers[0].status == 503
        ready = server.get("/readyz")
        assert (ready.status, ready.json["status"]) == (503, "not ready")
        assert server.get("/livez").status == 200
        assert server.post("/v1/embeddings", BODY).status == 503
        until(lambda: reasons != [])
        assert "has not ended for 0.3 s" in reasons[0]
        gate.release.set()


def test_work_that_meets_a_closed_queue_is_refused(make_service: MakeService) -> None:
    """The worker is lost while the texts of a request are tokenized: nobody would compute them."""
    service = make_service()
    long = {**BODY, "input": "the query " * TOKENIZED_AT_ONCE}  # tokenized in a thread
    with gated(service) as (server, gate):
        busy = [service.threads.submit(gate.release.wait, 60) for _ in range(THREADS)]
        thread, answers = in_thread(lambda: server.post("/v1/embeddings", long))
        until(lambda: service.threads._work_queue.qsize() == 1)
        service.worker.abandon(RuntimeError("the device is lost"))
        gate.release.set()
        thread.join()
        assert answers[0].status == 503
        assert answers[0].headers["retry-after"] == "1"
        assert answers[0].json["error"]["message"] == "the worker has died; try again"
        assert service.scheduler.waiting() == (0, 0)
        assert all(waiter.result() for waiter in busy)


@pytest.mark.parametrize("headers", [{}, PINECONE])
def test_a_model_that_is_not_there_is_looked_for_among_all(
    tiny: E5, headers: dict[str, str]
) -> None:
    with serving(App(Service(Models([serve_embedder(tiny, "tiny-e5")])))) as server:
        found = server.get("/models/nope", headers)
        assert found.status == 404
        message = "there is no model 'nope'; this server has 'tiny-e5'"
        assert found.json["error"]["message"] == message


def test_the_device_is_named(make_service: MakeService) -> None:
    stream = io.StringIO()
    with serving(App(make_service(), log=AccessLog(stream))) as server:
        ranked = {"model": "tiny-ranker", "query": "a", "documents": ["a"]}
        for path, body in (("/v1/embeddings", BODY), ("/v2/rerank", ranked)):
            assert server.post(path, body).headers["x-compute-type"] == "cpu"
    assert [json.loads(line)["device"] for line in stream.getvalue().splitlines()] == ["cpu"] * 2
    call = Call({"method": "POST", "path": "/", "headers": []}, lambda: asyncio.sleep(0))
    call.log |= dict.fromkeys(("characters", "tokenization_ms", "queue_ms", "inference_ms"), 1)
    call.log["device"] = "cuda"
    assert report_headers(call, [1], [])["x-compute-type"] == "gpu+cpu"


def test_head_has_no_body(make_service: MakeService) -> None:
    with serving(App(make_service())) as server:
        found = server.ask("HEAD", "/health")
        assert (found.status, found.body) == (200, b"")
        assert int(found.headers["content-length"]) > 0


def test_large_answers_come_in_slices(make_service: MakeService, tiny: E5) -> None:
    texts = [f"a {i}" for i in range(1500)]
    with serving(App(make_service())) as server:
        found = server.post("/v1/embeddings", {**BODY, "input": texts})
        assert found.headers["transfer-encoding"] == "chunked"
        rows = [row["embedding"] for row in found.json["data"]]
    from support.serving import same_bits

    assert same_bits(rows, tiny.embed(texts, input_type="query").vectors)
