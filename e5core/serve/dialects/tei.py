"""text-embeddings-inference, which Hugging Face's client speaks to.

Sources: huggingface/text-embeddings-inference, router/src, 1.9; huggingface_hub 2.4.0.
"""

from typing import Any

import numpy as np
import orjson

import e5core
from e5core.serve.asking import find_embedder, report_headers, written
from e5core.serve.checks import check_described, check_texts
from e5core.serve.errors import RefusedError, bad
from e5core.serve.fields import Fields
from e5core.serve.http import Answer, Call, json_answer
from e5core.serve.models import ServedEmbedder
from e5core.serve.routing import Dialect, Route
from e5core.serve.service import Service
from e5core.serve.tokenizing import EmbedRequest, RankRequest
from e5core.texts.spans import spans
from e5core.tokenizer import BOS, EOS
from e5core.vectors.cosine import similarity as cosines

TYPES = {
    401: "Unauthorized",
    404: "NotFound",
    429: "Overloaded",
    503: "Unhealthy",
}
SPECIALS = {BOS: "<s>", EOS: "</s>"}


def error(refusal: RefusedError) -> dict[str, Any]:
    kind = "Backend" if refusal.status >= 500 else "Validation"
    if refusal.code in ("empty", "empty_text"):
        kind = "Empty"
    return {"error": refusal.message, "error_type": TYPES.get(refusal.status, kind)}


async def embed(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /embed, and / where a client has nothing but the server's address."""
    return await _rows(service, call, fields, states=False)


async def embed_all(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /embed_all: a list of token states for each text."""
    return await _rows(service, call, fields, states=True)


async def _rows(service: Service, call: Call, fields: Fields, states: bool) -> Answer:
    fields.choice("encoding_format", ("float",))
    served, prefix = _embedder(service, fields)
    asked = EmbedRequest(
        served,
        fields.texts("inputs"),
        prefix,
        field="inputs",
        truncate=_truncate(fields, "end", "start"),
        normalize=fields.flag("normalize", True),
        dimensions=None if states else fields.count("dimensions"),
        states=states,
    )
    found = await service.embed(call, asked)
    headers = report_headers(call, found.tokens, found.truncated)
    return written(b"[", found.rows, lambda i, row: row, b"]", headers)


def _embedder(service: Service, fields: Fields, name: str = "prompt_name") -> Any:
    """The first model, or the one that is named, and the prefix that `prompt_name` says."""
    embedders = service.models.embedders
    default = embedders[0].name if embedders else None
    kind = name if fields.has(name) else "input_type"
    return find_embedder(service, fields.text("model", default), fields, kind)


def _truncate(fields: Fields, right: str, left: str) -> str:
    direction = fields.choice("truncation_direction", ("Left", "left", "Right", "right"), "right")
    if not fields.flag("truncate", True):
        return "none"
    return left if str(direction).lower() == "left" else right


async def rerank(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /rerank with `texts`. A long text is cut and the query stays whole."""
    rerankers = service.models.rerankers
    default = rerankers[0].name if rerankers else None
    asked = RankRequest(
        service.models.reranker(fields.text("model", default)),
        fields.needed_text("query"),
        fields.texts("texts", one=False),
        field="texts",
        truncate=_truncate(fields, "passage", ""),
    )
    if not asked.truncate:
        raise bad("truncation_direction is left, expected right for pairs", "truncation_direction")
    raw, with_text = fields.flag("raw_scores", False), fields.flag("return_text", False)
    found = await service.rank(call, asked)
    scores = found.logits if raw else found.scores
    value = [
        {"index": i, "score": float(scores[i])}
        | ({"text": asked.documents[i]} if with_text else {})
        for i in found.order
    ]
    return json_answer(value, headers=report_headers(call, found.tokens, found.truncated))


async def similarity(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /similarity: cosines of a sentence with others.

    The task is symmetric: all of them get the query prefix unless `parameters` names another.
    """
    inputs, parameters = fields.inner("inputs"), fields.inner("parameters")
    sentences = inputs.texts("sentences", one=False)
    chosen = any(map(parameters.has, ("prompt_name", "input_type")))
    embedders = service.models.embedders
    served, prefix = (
        _embedder(service, parameters)
        if chosen
        else (service.models.embedder(embedders[0].name if embedders else None)[0], None)
    )
    if prefix is None:
        prefix = served.prefix("query", parameters.text("task"), service.default_task)
    texts = [inputs.needed_text("source_sentence"), *sentences]
    truncate = _truncate(parameters, "end", "start")
    asked = EmbedRequest(served, texts, prefix, field="inputs", truncate=truncate)
    found = await service.embed(call, asked)
    value = cosines(np.asarray(found.rows[:1]), np.asarray(found.rows[1:]))[0].tolist()
    return json_answer(value, headers=report_headers(call, found.tokens, found.truncated))


async def root(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /: the task that the body is made for."""
    if fields.has("query") and fields.has("texts"):
        return await rerank(service, call, fields)
    if isinstance(fields.value("inputs"), dict):
        return await similarity(service, call, fields)
    return await embed(service, call, fields)


async def tokenize(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /tokenize: the tokens of texts as they are, or with the prefix of `prompt_name`.

    `start` and `stop` count characters of the text, with its prefix; they are null for specials,
    and where the tokenizer changes texts before it cuts them.
    """
    texts = fields.texts("inputs")
    served = _first(service)
    prefix = served.prefix(fields.text("prompt_name") or "none", None, service.default_task)
    specials = fields.flag("add_special_tokens", True)
    check_texts(texts, "inputs", service.limits)
    check_described(sum(map(len, texts)), "inputs", "characters")

    def described() -> bytes:
        return orjson.dumps([_tokens(served, prefix + text, specials) for text in texts])

    return Answer([await service.aside(described)])


def _first(service: Service) -> ServedEmbedder:
    embedders = service.models.embedders
    return service.models.embedder(embedders[0].name if embedders else None)[0]


def _tokens(served: ServedEmbedder, text: str, specials: bool) -> list[dict[str, Any]]:
    tokenizer = served.model.tokenizer
    ids = tokenizer.encode(text)
    places: Any = spans(tokenizer, text) or [(None, None)] * (len(ids) - 2)
    tokens = [
        {
            "id": token,
            "text": tokenizer.decode([token]) if start is None else text[start:stop],
            "special": False,
            "start": start,
            "stop": stop,
        }
        for token, (start, stop) in zip(ids[1:-1], places, strict=True)
    ]
    return [_special(BOS), *tokens, _special(EOS)] if specials else tokens


def _special(token: int) -> dict[str, Any]:
    return {"id": token, "text": SPECIALS[token], "special": True, "start": None, "stop": None}


async def decode(service: Service, call: Call, fields: Fields) -> Answer:
    """POST /decode: the texts of lists of ids."""
    lists = fields.items("ids")
    if lists and not isinstance(lists[0], list):
        lists = [lists]
    check_described(len(lists), "ids", "lists")
    check_described(sum(len(ids) for ids in lists if isinstance(ids, list)), "ids", "ids")
    skip = fields.flag("skip_special_tokens", True)
    tokenizer = _first(service).model.tokenizer

    def text_of(number: int, ids: Any) -> str:
        if not isinstance(ids, list) or any(type(i) is not int for i in ids):
            raise bad(f"ids[{number}] is not a list of token ids", "ids")
        try:
            text = tokenizer.decode(ids)
        except ValueError as fault:
            raise bad(f"ids[{number}]: {fault}", "ids") from None
        if skip:
            return text
        opened = SPECIALS[BOS] if ids[:1] == [BOS] else ""
        return f"{opened}{text}{SPECIALS[EOS] if ids[-1:] == [EOS] else ''}"

    def texts() -> bytes:
        return orjson.dumps([text_of(number, ids) for number, ids in enumerate(lists)])

    return Answer([await service.aside(texts)])


async def info(service: Service, call: Call, fields: Fields) -> Answer:
    """GET /info: the first model, and the limits."""
    served = service.models.everything[0]
    pooling = getattr(served.model, "pooling", None)
    kind: dict[str, Any] = {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    if isinstance(served, ServedEmbedder):
        kind = {"embedding": {"pooling": pooling if isinstance(pooling, str) else "mean"}}
    limits = service.limits
    return json_answer(
        {
            "model_id": served.name,
            "model_sha": None,
            "model_dtype": str(served.model.encoder.dtype).removeprefix("torch."),
            "served_model_name": served.name,
            "model_type": kind,
            "max_concurrent_requests": limits.max_texts,
            "max_input_length": served.model.max_length,
            "max_batch_tokens": served.engine.pace.budget,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": e5core.__version__,
            "sha": None,
            "docker_label": None,
        }
    )


# Hugging Face's client shows the text of a refusal for 422 only, which is TEI's status too.
TEI = Dialect("tei", error, {400: 422})
EMBED = Route(TEI, embed)
EMBED_ALL = Route(TEI, embed_all)
RERANK = Route(TEI, rerank)
SIMILARITY = Route(TEI, similarity)
ROOT = Route(TEI, root)
TOKENIZE = Route(TEI, tokenize)
DECODE = Route(TEI, decode)
INFO = Route(TEI, info)
