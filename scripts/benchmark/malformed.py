"""Bodies that are wrong in one way or another, for every route of the server."""

import json
import random
from collections.abc import Iterator
from typing import Any

# A body that each route takes, if it serves `model` and the reranker `ranker`.
GOOD: dict[str, Any] = {
    "/v1/embeddings": {"model": "model-query", "input": ["a", "b"], "dimensions": 3},
    "/embed": {
        "model": "model",
        "inputs": [{"text": "a"}, {"text": "b"}],
        "parameters": {"input_type": "query", "truncate": "END"},
    },
    "/tei/embed": {"inputs": ["a", "b"], "prompt_name": "query", "truncate": True},
    "/embed_all": {"inputs": "a", "prompt_name": "query"},
    "/v1/embed": {"model": "model", "texts": ["a"], "input_type": "search_query"},
    "/v2/embed": {"model": "model", "texts": ["a"], "embedding_types": ["float", "binary"]},
    "/api/embed": {"model": "model-passage", "input": "a", "truncate": True},
    "/rerank": {"model": "ranker", "query": "a", "documents": [{"text": "b"}], "top_n": 1},
    "/v2/rerank": {"model": "ranker", "query": "a", "documents": ["b"], "top_n": 1},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/tokenize": {"inputs": ["a"], "add_special_tokens": True},
    "/decode": {"ids": [[0, 5, 2]], "skip_special_tokens": True},
    "/": {"inputs": "a", "prompt_name": "query"},
}
# What stands in place of a field's value.
WRONG: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**400, -(2**63), "", "\x00", "a", [], [None], [[]], [[[]]],
    [1], [[1, 2]], [True], {}, {"text": None}, [{"text": 1}], [{"text": ["a"]}], ["a", 1],
    "a" * 500,
]  # fmt: skip
# No body of any route.
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
    """More than a thousand paths and bodies; a few of them are right by chance."""
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
