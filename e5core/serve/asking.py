"""What several dialects ask for in the same way."""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from e5core.serve.engines import Rows
from e5core.serve.errors import bad
from e5core.serve.fields import Fields, either
from e5core.serve.http import Answer, Call
from e5core.serve.models import INPUT_TYPES, ServedEmbedder
from e5core.serve.service import Service

# Other names of the input types: Cohere's and Voyage's. Symmetric tasks take the query prefix.
# Source: the model cards of intfloat/multilingual-e5-*.
INPUT_TYPE_NAMES = {
    **{name: name for name in INPUT_TYPES},
    "search_query": "query",
    "classification": "query",
    "clustering": "query",
    "search_document": "passage",
    "document": "passage",
}

TRUNCATE = {"END": "end", "START": "start", "NONE": "none"}

# Numbers that are written at once: this takes about 0.6 ms. More are written in a thread, in
# slices of about SLICE_NUMBERS, since nothing else of the process runs meanwhile.
WRITTEN_AT_ONCE = 32_768
SLICE_NUMBERS = 98_304

MOST_LISTED = 100  # places in the header x-truncated: proxies take a few kilobytes of headers


def find_embedder(
    service: Service, name: str | None, fields: Fields, type_field: str = "input_type"
) -> tuple[ServedEmbedder, str]:
    """The model of a request and the prefix of its texts.

    fields      which may hold the input type and the task
    type_field  what the input type is called
    """
    served, input_type = service.models.embedder(name)
    asked = fields.text(type_field)
    if asked is not None:
        known = INPUT_TYPE_NAMES.get(asked)
        if known is None:
            raise bad(
                f"{type_field} is {asked!r:.60}, expected {either(list(INPUT_TYPE_NAMES))}",
                type_field,
            )
        if input_type not in (None, known):
            raise bad(
                f"the model's name says {input_type} and {type_field} says {asked}; leave one out",
                type_field,
            )
        input_type = known
    input_type = input_type or service.default_input_type
    return served, served.prefix(input_type, fields.text("task"), service.default_task)


def truncation(fields: Fields, default: str = "end") -> str:
    """What becomes of texts that are too long: the field truncate, in Cohere's and NIM's words."""
    asked = fields.text("truncate")
    if asked is None:
        return default
    if asked.upper() not in TRUNCATE:
        raise bad(f"truncate is {asked!r:.60}, expected {either(list(TRUNCATE))}", "truncate")
    return TRUNCATE[asked.upper()]


def document_texts(documents: Sequence[Any], field: str, name: str = "documents") -> list[str]:
    """The text of each document, which is a string or an object with a field for it."""
    texts = []
    for index, document in enumerate(documents):
        text = document
        if isinstance(document, dict):
            text = document.get(field)
            if text is None:
                raise bad(f"{name}[{index}] has no field {field!r}", name)
        if not isinstance(text, str):
            raise bad(f"{name}[{index}] has no string as its text", name)
        texts.append(text)
    return texts


def first(order: list[int], top_n: int | None) -> list[int]:
    """The best places, all if top_n is None."""
    return order[:top_n]


def not_offered(fields: Fields, *names: str) -> None:
    """RefusedError (400) if a field asks for what no model here does."""
    for name in names:
        if fields.has(name):
            raise bad(f"{name} is not offered by this server; leave it out", name)


def report_headers(call: Call, tokens: Sequence[int], truncated: Sequence[int]) -> dict[str, str]:
    """What was computed and what was cut."""
    headers = {
        "x-compute-type": "gpu+cpu" if call.log.get("device") == "cuda" else "cpu",
        "x-compute-characters": str(call.log["characters"]),
        "x-compute-tokens": str(sum(tokens)),
        "x-tokenization-time": str(round(call.log["tokenization_ms"])),
        "x-queue-time": str(round(call.log["queue_ms"])),
        "x-inference-time": str(round(call.log["inference_ms"])),
    }
    if truncated:
        headers["x-truncated"] = ",".join(map(str, truncated[:MOST_LISTED]))
        headers["x-truncated-count"] = str(len(truncated))
    return headers


def written(
    before: bytes, rows: Rows | list[Rows], item: Any, after: bytes, headers: dict[str, str]
) -> Answer:
    """An answer that holds a JSON list of rows.

    before, after  the JSON around the items of the list
    item           from a place and a row to what stands for it in the list
    """
    numbers = sum(row.size for row in rows)
    parts = _parts(before, rows, item, after)
    wide = numbers > WRITTEN_AT_ONCE
    return Answer(parts if wide else [b"".join(parts)], headers=headers, wide=wide)


def _parts(before: bytes, rows: Rows | list[Rows], item: Any, after: bytes) -> Iterable[bytes]:
    lead, items, numbers = before, [], 0
    for index, row in enumerate(rows):
        items.append(item(index, row))
        numbers += row.size
        if numbers >= SLICE_NUMBERS or index == len(rows) - 1:
            # Shortest digits that give the same float32.
            yield lead + orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            lead, items, numbers = b",", [], 0
    yield after


def rest_of(**fields: Any) -> bytes:
    """The other fields of an object behind its list, and its end."""
    return b"]," + orjson.dumps(fields)[1:]
