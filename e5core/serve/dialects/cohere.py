"""Cohere's embed and rerank, versions 1 and 2. Source: cohere 7.3.1 and 5.21.1 for Python."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from e5core.serve.asking import (
    document_texts,
    find_embedder,
    first,
    not_offered,
    report_headers,
    truncation,
    written,
)
from e5core.serve.dialects.openai import encoded
from e5core.serve.engines import Rows
from e5core.serve.errors import RefusedError, bad
from e5core.serve.fields import Fields, either
from e5core.serve.http import Answer, Call, json_answer
from e5core.serve.routing import Dialect, Route
from e5core.serve.service import Service
from e5core.serve.tokenizing import EmbedRequest, RankRequest

# How a row of each type is written. Bits are the signs of the numbers; as signed bytes they have
# 128 subtracted.
FORMS: dict[str, Callable[[Rows], Any]] = {
    "float": lambda row: row,
    "base64": encoded,
    "ubinary": lambda row: np.packbits(row > 0),
    "binary": lambda row: (np.packbits(row > 0).astype(np.int16) - 128).astype(np.int8),
}

UNKNOWN_SCALES = (
    "Cohere does not say how it scales numbers to bytes, so no bytes made here would go with those "
    "of its service; ask for float and let your database make bytes, or for ubinary"
)


def error(refusal: RefusedError) -> dict[str, Any]:
    return {"message": refusal.message}


async def embed(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /v1/embed and /v2/embed; the first gives a plain list where no types are asked for."""
    not_offered(fields, "images", "max_tokens")
    version = _version(call)
    types = fields.texts("embedding_types", one=False) if fields.has("embedding_types") else []
    for form in types:
        if form not in FORMS:
            offered = either(list(FORMS))
            way_out = f"; {UNKNOWN_SCALES}" if form in ("int8", "uint8") else ""
            message = f"embedding_types has {form!r:.40}, expected {offered}{way_out}"
            raise bad(message, "embedding_types")
    texts = _contents(fields) if fields.has("inputs") else fields.texts("texts", one=False)
    served, prefix = find_embedder(service, fields.text("model"), fields)
    asked = EmbedRequest(
        served,
        texts,
        prefix,
        field="texts",
        truncate=truncation(fields),
        dimensions=fields.count("output_dimension"),
    )
    found = await service.embed(call, asked)
    rest = {
        "id": call.id,
        "texts": texts,
        "meta": _meta(version, {"input_tokens": sum(found.tokens)}),
    }
    headers = report_headers(call, found.tokens, found.truncated)
    if not types and version == "1":
        rest["response_type"] = "embeddings_floats"
        after = b"]," + orjson.dumps(rest)[1:]
        return written(b'{"embeddings":[', found.rows, lambda i, row: row, after, headers)
    rest["response_type"] = "embeddings_by_type"
    chosen = list(dict.fromkeys(types)) or ["float"]
    if chosen == ["float"]:  # as long as the texts are many, and written in slices
        after = b"]}," + orjson.dumps(rest)[1:]
        return written(b'{"embeddings":{"float":[', found.rows, lambda i, row: row, after, headers)

    def dumped() -> bytes:
        forms = {form: [FORMS[form](row) for row in found.rows] for form in chosen}
        value = {"embeddings": forms, **rest}
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)

    return Answer([await service.aside(dumped)], headers=headers)


def _contents(fields: Fields) -> list[str]:
    """The texts of `inputs`, each of which is one text part."""
    texts = []
    for index, content in enumerate(fields.items("inputs")):
        parts = Fields(content, f"inputs[{index}]").items("content")
        read = [Fields(part, f"inputs[{index}].content[{n}]") for n, part in enumerate(parts)]
        if len(read) != 1 or read[0].text("type") != "text":
            raise bad(f"inputs[{index}] is not one text part, which is all this server takes")
        texts.append(read[0].needed_text("text"))
    return texts


async def rerank(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /v1/rerank and /v2/rerank. Jina's and vLLM's clients come here too and read `usage`."""
    model = fields.text("model")
    documents = fields.items("documents")
    ranked_by = fields.texts("rank_fields") if fields.has("rank_fields") else ["text"]
    if len(ranked_by) != 1:
        raise bad(f"rank_fields has {len(ranked_by)} fields, expected one", "rank_fields")
    asked = RankRequest(
        service.models.reranker(model),
        fields.needed_text("query"),
        document_texts(documents, ranked_by[0]),
        tokens_per_document=fields.count("max_tokens_per_doc"),
    )
    top_n, with_documents = fields.count("top_n"), fields.flag("return_documents", False)
    raw = fields.flag("raw_scores", False)
    not_offered(fields, "truncate_prompt_tokens")
    found = await service.rank(call, asked)
    scores: Rows = found.logits if raw else found.scores
    results = [
        {"index": i, "relevance_score": float(scores[i])}
        | ({"document": _as_object(documents[i])} if with_documents else {})
        for i in first(found.order, top_n)
    ]
    tokens = sum(found.tokens)
    version = _version(call)
    value = {
        "id": call.id,
        "object": "rerank",
        "model": model or asked.served.name,
        "results": results,
        "meta": _meta(version, {"search_units": 1}),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_answer(value, headers=report_headers(call, found.tokens, found.truncated))


def _as_object(document: Any) -> Any:
    return {"text": document} if isinstance(document, str) else document


def _version(call: Call) -> str:
    return "2" if "/v2/" in call.path else "1"


def _meta(version: str, billed: dict[str, int]) -> dict[str, Any]:
    return {"api_version": {"version": version}, "billed_units": billed}


COHERE = Dialect("cohere", error)
EMBED = Route(COHERE, embed)
RERANK = Route(COHERE, rerank)
