"""OpenAI's embeddings. Sources: openai 3.57.0 for Python; NVIDIA's NIM for the input type."""

import base64
import time
from typing import Any

from e5core.serve.asking import find_embedder, report_headers, rest_of, truncation, written
from e5core.serve.engines import Rows
from e5core.serve.errors import RefusedError
from e5core.serve.fields import Fields
from e5core.serve.http import Answer, Call, json_answer
from e5core.serve.models import SUFFIXES
from e5core.serve.routing import Dialect, Route
from e5core.serve.service import Service
from e5core.serve.tokenizing import EmbedRequest

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error(refusal: RefusedError) -> dict[str, Any]:
    """The client keeps type, param and code only of an object `error` with these keys."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": refusal.message,
            "type": TYPES.get(refusal.status, kind),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


async def embeddings(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /v1/embeddings. The Python client asks for base64 where its caller says nothing."""
    model = fields.text("model")
    form = fields.choice("encoding_format", ("float", "base64"), "float")
    dimensions = fields.count("dimensions")
    texts = fields.texts("input")
    served, prefix = find_embedder(service, model, fields)
    asked = EmbedRequest(served, texts, prefix, truncate=truncation(fields), dimensions=dimensions)
    found = await service.embed(call, asked)
    tokens = sum(found.tokens)

    def item(index: int, row: Rows) -> dict[str, Any]:
        vector = encoded(row) if form == "base64" else row
        return {"object": "embedding", "index": index, "embedding": vector}

    rest = rest_of(
        object="list",
        model=model or served.name,
        usage={"prompt_tokens": tokens, "total_tokens": tokens},
    )
    headers = report_headers(call, found.tokens, found.truncated)
    return written(b'{"data":[', found.rows, item, rest, headers)


def encoded(row: Rows) -> str:
    """A vector as the base64 of its little-endian float32."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode("ascii")


async def models(service: Service, call: Call, fields: Fields) -> Answer:
    """GET /v1/models and /v1/models/ID; front ends let people choose from this list."""
    names = [
        served.name + suffix for served in service.models.embedders for suffix in ("", *SUFFIXES)
    ]
    names += [served.name for served in service.models.rerankers]
    listed = {
        name: {"id": name, "object": "model", "created": _STARTED, "owned_by": "e5core"}
        for name in names
    }
    _, _, wanted = call.path.partition("/models/")
    if not wanted:
        return json_answer({"object": "list", "data": list(listed.values())})
    if wanted in listed:
        return json_answer(listed[wanted])
    return json_answer({**listed[service.models.either(wanted).name], "id": wanted})


_STARTED = int(time.time())

OPENAI = Dialect("openai", error)
EMBEDDINGS = Route(OPENAI, embeddings)
MODELS = Route(OPENAI, models)
