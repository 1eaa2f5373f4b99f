"""Pinecone's Inference. Source: its interface 2026-07 and the Python clients 5.4, 7.3 and 10.2."""

from typing import Any
from urllib.parse import parse_qs

from e5core.serve.asking import (
    document_texts,
    find_embedder,
    first,
    report_headers,
    rest_of,
    truncation,
    written,
)
from e5core.serve.engines import Rows
from e5core.serve.errors import RefusedError, bad
from e5core.serve.fields import Fields
from e5core.serve.http import Answer, Call, json_answer
from e5core.serve.models import ServedEmbedder, ServedReranker
from e5core.serve.routing import Dialect, Route
from e5core.serve.service import Service
from e5core.serve.tokenizing import EmbedRequest, RankRequest

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    413: "OUT_OF_RANGE",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error(refusal: RefusedError) -> dict[str, Any]:
    code = CODES.get(refusal.status, "UNKNOWN")
    return {"error": {"code": code, "message": refusal.message}, "status": refusal.status}


async def embed(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /embed: inputs are objects with a text, and the input type is a parameter."""
    model = fields.needed_text("model")
    parameters = fields.inner("parameters")
    texts = document_texts(fields.items("inputs"), "text", "inputs")
    served, prefix = find_embedder(service, model, parameters)
    asked = EmbedRequest(
        served,
        texts,
        prefix,
        field="inputs",
        truncate=truncation(parameters),
        dimensions=parameters.count("dimension"),
    )
    found = await service.embed(call, asked)

    def item(index: int, row: Rows) -> dict[str, Any]:
        return {"values": row, "vector_type": "dense"}

    usage = {"total_tokens": sum(found.tokens)}
    rest = rest_of(model=model, vector_type="dense", usage=usage)
    headers = report_headers(call, found.tokens, found.truncated)
    return written(b'{"data":[', found.rows, item, rest, headers)


async def rerank(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /rerank: documents are objects; a pair that is too long is an error unless END is asked.

    Source of the defaults: Pinecone's documentation of rerank-results.
    """
    model = fields.needed_text("model")
    ranked_by = fields.texts("rank_fields") if fields.has("rank_fields") else ["text"]
    if len(ranked_by) != 1:
        raise bad(f"rank_fields has {len(ranked_by)} fields, expected one", "rank_fields")
    documents = [
        {"text": document} if isinstance(document, str) else document
        for document in fields.items("documents")
    ]
    truncate = truncation(fields.inner("parameters"), "none")
    if truncate == "start":
        raise bad("truncate is 'START', expected 'END' or 'NONE'", "parameters")
    asked = RankRequest(
        service.models.reranker(model),
        fields.needed_text("query"),
        document_texts(documents, ranked_by[0]),
        truncate={"end": "passage", "none": "none"}[truncate],
    )
    top_n, with_documents = fields.count("top_n"), fields.flag("return_documents", True)
    found = await service.rank(call, asked)
    data = [
        {"index": i, "score": float(found.scores[i])}
        | ({"document": documents[i]} if with_documents else {})
        for i in first(found.order, top_n)
    ]
    return json_answer(
        {"model": model, "data": data, "usage": {"rerank_units": 1}},
        headers=report_headers(call, found.tokens, found.truncated),
    )


async def models(service: Service, call: Call, fields: Fields) -> Answer:
    """GET /models, with type and vector_type to choose by, and /models/NAME.

    LangChain's classes for Pinecone ask for the list when they are made.
    """
    embedders, rerankers = service.models.embedders, service.models.rerankers
    _, _, wanted = call.path.partition("/models/")
    if wanted:
        found = service.models.either(wanted)
        if isinstance(found, ServedEmbedder):
            return json_answer(_embedder(service, found))
        return json_answer(_reranker(service, found))
    listed = [_embedder(service, served) for served in embedders]
    listed += [_reranker(service, served) for served in rerankers]
    query = parse_qs(call.query.decode("latin-1"))
    for field in ("type", "vector_type"):
        for value in query.get(field, []):
            listed = [model for model in listed if model.get(field) == value]
    return json_answer({"models": listed})


def _embedder(service: Service, served: ServedEmbedder) -> dict[str, Any]:
    size = served.model.dimension
    return {
        "model": served.name,
        "short_description": "multilingual text embeddings, computed by e5core",
        "type": "embed",
        "vector_type": "dense",
        "default_dimension": size,
        "modality": "text",
        # Without <s>, </s> and the three tokens of "query: ", as the hosted model counts.
        "max_sequence_length": served.model.max_length - 5,
        "max_batch_size": service.limits.max_texts,
        "provider_name": "e5core",
        "supported_dimensions": [size],
        "supported_metrics": ["cosine", "euclidean", "dotproduct"],
        "supported_parameters": [
            _parameter("input_type", ["query", "passage"], required=served.tells_apart),
            _parameter("truncate", ["END", "START", "NONE"], default="END"),
        ],
    }


def _reranker(service: Service, served: ServedReranker) -> dict[str, Any]:
    return {
        "model": served.name,
        "short_description": "a cross-encoder that scores query and document, run by e5core",
        "type": "rerank",
        "modality": "text",
        "max_sequence_length": served.model.max_length,
        "max_batch_size": service.limits.max_texts,
        "provider_name": "e5core",
        "supported_parameters": [_parameter("truncate", ["END", "NONE"], default="NONE")],
    }


def _parameter(name: str, allowed: list[str], required: bool = False, **more: Any) -> Any:
    return {
        "parameter": name,
        "type": "one_of",
        "value_type": "string",
        "required": required,
        "allowed_values": allowed,
        **more,
    }


PINECONE = Dialect("pinecone", error)
EMBED = Route(PINECONE, embed)
RERANK = Route(PINECONE, rerank)
MODELS = Route(PINECONE, models)
