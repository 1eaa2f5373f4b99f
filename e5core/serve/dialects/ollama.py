"""Ollama's embed. Source: ollama/ollama server/routes.go, and the Python client 0.6.3."""

import time
from typing import Any

from e5core.serve.asking import find_embedder, report_headers, rest_of, written
from e5core.serve.errors import RefusedError
from e5core.serve.fields import Fields
from e5core.serve.http import Answer, Call, json_answer
from e5core.serve.routing import Dialect, Route
from e5core.serve.service import Service
from e5core.serve.tokenizing import EmbedRequest


def error(refusal: RefusedError) -> dict[str, Any]:
    return {"error": refusal.message}


async def embed(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /api/embed. No input is no error, and gives no vector."""
    model = fields.needed_text("model")
    served, prefix = find_embedder(service, model, fields)
    if fields.value("input") == []:
        return json_answer({"model": model, "embeddings": []})
    asked = EmbedRequest(
        served,
        fields.texts("input"),
        prefix,
        truncate="end" if fields.flag("truncate", True) else "none",
        dimensions=fields.count("dimensions"),
    )
    found = await service.embed(call, asked)
    rest = rest_of(
        model=model,
        total_duration=round((time.perf_counter() - call.started) * 1e9),
        load_duration=0,
        prompt_eval_count=sum(found.tokens),
    )
    headers = report_headers(call, found.tokens, found.truncated)
    return written(b'{"embeddings":[', found.rows, lambda i, row: row, rest, headers)


OLLAMA = Dialect("ollama", error)
EMBED = Route(OLLAMA, embed)
