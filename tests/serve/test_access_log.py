"""The access log: a line for every request, in which no text of it stands."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.serving import serving

from e5core.serve.access import AccessLog
from e5core.serve.app import App
from e5core.serve.keys import Keys
from e5core.serve.service import Service

PRIVATE = "a private text"
REST = {"query": "a", "texts": ["a"]}
KEY = {"authorization": "Bearer the-key"}
FIELDS = {
    "/v1/embeddings": ("model", "input", "encoding_format", "dimensions", "input_type", "truncate"),
    "/pinecone/embed": ("model", "inputs", "parameters"),
    "/tei/embed": ("inputs", "prompt_name", "truncate", "truncation_direction"),
    "/v2/embed": ("model", "texts", "input_type", "embedding_types", "images", "inputs"),
    "/v1/rerank": ("model", "query", "documents", "top_n", "rank_fields"),
    "/tei/rerank": ("query", "texts", "raw_scores"),
    "/similarity": ("inputs", "parameters"),
    "/decode": ("ids", "skip_special_tokens"),
    "/api/embed": ("model", "input", "truncate"),
}


@pytest.mark.parametrize("path", FIELDS)
def test_no_text_stands_in_the_log(make_service: Callable[..., Service], path: str) -> None:
    """Not even where a field holds what it should not, and the answer says so."""
    stream = io.StringIO()
    model = "tiny-ranker" if "rerank" in path else "tiny-e5"
    values: list[Any] = [PRIVATE, [PRIVATE], {PRIVATE: PRIVATE}, [{"text": PRIVATE}]]
    with serving(App(make_service(), Keys(["the-key"]), log=AccessLog(stream))) as server:
        quoted = b""
        for field in FIELDS[path]:
            for value in values:
                quoted += server.post(path, {"model": model, **REST, field: value}, KEY).body
        server.post(path, PRIVATE.encode(), KEY)
        server.post(path, {}, {"authorization": f"Bearer {PRIVATE}"})
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == len(FIELDS[path]) * len(values) + 2
    assert PRIVATE.encode() in quoted
    assert PRIVATE not in stream.getvalue()
    assert "the-key" not in stream.getvalue()
    assert {line["error"] for line in lines[-2:]} == {"invalid_json", "invalid_api_key"}
    assert all("error" in line for line in lines if line["status"] >= 400)
