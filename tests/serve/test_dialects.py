"""Each dialect over a real connection: vectors and scores in bits, options, errors in its form."""

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.serving import Answer, Running, same_bits, serving

from e5core import E5, Reranker
from e5core.serve.app import App
from e5core.serve.models import Models, serve_embedder
from e5core.serve.service import Service

TEXTS = ["the query", "a passage: ß я", "日本", "z"]
LONG = "a b c " * 40  # more than the 64 tokens of the tiny models
PINECONE = {"x-pinecone-api-version": "2026-07"}


def pinecone(server: Running, kind: str, texts: list[str], **parameters: Any) -> Answer:
    body = {
        "model": "tiny-e5",
        "inputs": [{"text": text} for text in texts],
        "parameters": {"input_type": kind, **parameters},
    }
    return server.post("/embed", body, PINECONE)


def vectors_of(server: Running, dialect: str, kind: str, texts: list[str]) -> Any:
    """The vectors of texts through a dialect."""
    named = f"tiny-e5-{kind}"
    if dialect == "pinecone":
        return [row["values"] for row in pinecone(server, kind, texts).json["data"]]
    if dialect == "pinecone prefix":
        body = {
            "model": "tiny-e5",
            "inputs": [{"text": text} for text in texts],
            "parameters": {"input_type": kind},
        }
        return [row["values"] for row in server.post("/pinecone/embed", body).json["data"]]
    if dialect == "openai":
        rows = server.post("/v1/embeddings", {"model": named, "input": texts}).json["data"]
        assert [row["index"] for row in rows] == list(range(len(texts)))
        return [row["embedding"] for row in rows]
    if dialect == "openai base64":
        body = {"model": "tiny-e5", "input": texts, "input_type": kind, "encoding_format": "base64"}
        rows = server.post("/embeddings", body).json["data"]
        raw = [base64.b64decode(row["embedding"]) for row in rows]
        return [struct.unpack(f"<{len(one) // 4}f", one) for one in raw]
    if dialect == "cohere v1":
        kind = {"query": "search_query", "passage": "search_document"}[kind]
        body = {"model": "tiny-e5", "texts": texts, "input_type": kind}
        return server.post("/v1/embed", body).json["embeddings"]
    if dialect == "cohere v2":
        kind = {"query": "clustering", "passage": "search_document"}[kind]
        body = {"model": "tiny-e5", "texts": texts, "input_type": kind, "embedding_types": None}
        return server.post("/v2/embed", body).json["embeddings"]["float"]
    if dialect == "tei":
        return server.post("/embed", {"inputs": texts, "prompt_name": kind}).json
    if dialect == "tei root":
        return server.post("/", {"inputs": texts, "prompt_name": kind}).json
    assert dialect == "ollama"
    return server.post("/api/embed", {"model": f"{named}:latest", "input": texts}).json[
        "embeddings"
    ]


DIALECTS = [
    "pinecone",
    "pinecone prefix",
    "openai",
    "openai base64",
    "cohere v1",
    "cohere v2",
    "tei",
    "tei root",
    "ollama",
]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_vectors_have_the_bits_of_embed(server: Running, tiny: E5, dialect: str) -> None:
    for kind in ("query", "passage"):
        expected = tiny.embed(TEXTS, input_type=kind).vectors
        assert same_bits(vectors_of(server, dialect, kind, TEXTS), expected)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_order_of_500_mixed_texts_is_kept(server: Running, tiny: E5, dialect: str) -> None:
    words = ["the", "query", "a", "passage", "ß"]
    texts = [" ".join(words[: 1 + i % 5]) + f" {i}" for i in range(500)]
    expected = tiny.embed(texts, input_type="passage").vectors
    assert len({row.tobytes() for row in expected}) > 100  # no two orders look alike
    assert same_bits(vectors_of(server, dialect, "passage", texts), expected)


def test_usage_counts_what_was_computed_and_cuts_are_reported(server: Running, tiny: E5) -> None:
    found = pinecone(server, "query", ["a", LONG])
    counts = tiny.embed(["a", LONG], input_type="query").token_counts
    assert counts[1] > tiny.max_length
    assert found.json["usage"] == {"total_tokens": int(counts[0]) + tiny.max_length}
    assert found.headers["x-truncated"] == "1"
    assert found.headers["x-truncated-count"] == "1"
    assert found.headers["x-compute-tokens"] == str(found.json["usage"]["total_tokens"])
    assert "x-truncated" not in pinecone(server, "query", ["a"]).headers


def test_long_texts_are_refused_where_they_are_not_to_be_cut(server: Running) -> None:
    found = pinecone(server, "query", ["a", LONG], truncate="NONE")
    assert found.status == 400
    assert "inputs[1] has" in found.json["error"]["message"]
    body = {"model": "tiny-e5-query", "input": LONG, "truncate": False}
    assert "the model takes 64" in server.post("/api/embed", body).json["error"]


def test_the_start_is_cut_behind_the_prefix(server: Running, tiny: E5) -> None:
    body = {"inputs": LONG + "日本", "prompt_name": "query", "truncation_direction": "Left"}
    ids = tiny.tokenizer.encode("query: " + LONG + "日本")
    lead = tiny.tokenizer.encode_pieces("query: ")
    kept = [ids[0], *lead, *ids[-(tiny.max_length - 1 - len(lead)) :]]
    assert len(kept) == tiny.max_length
    expected = tiny.pipeline.run([kept]).numpy()
    found = np.array(server.post("/embed", {**body, "normalize": False}).json, np.float32)
    assert found.tobytes() == expected.tobytes()


def test_dimensions_are_cut_and_scaled_anew(server: Running, tiny: E5) -> None:
    expected = tiny.embed(TEXTS, input_type="query", truncate_dim=7).vectors
    body = {"model": "tiny-e5-query", "input": TEXTS, "dimensions": 7}
    rows = server.post("/v1/embeddings", body).json["data"]
    assert same_bits([row["embedding"] for row in rows], expected)
    tei = {"inputs": TEXTS, "prompt_name": "query", "dimensions": 7}
    assert same_bits(server.post("/embed", tei).json, expected)
    for wrong in (0, 25, 1.5, "7", True):
        found = server.post("/v1/embeddings", {**body, "dimensions": wrong})
        assert (found.status, found.json["error"]["param"]) == (400, "dimensions")


def test_vectors_need_not_be_scaled(server: Running, tiny: E5) -> None:
    expected = tiny.embed(TEXTS, input_type="query", normalize=False).vectors
    body = {"inputs": TEXTS, "prompt_name": "query", "normalize": False}
    assert same_bits(server.post("/embed", body).json, expected)


def test_null_is_a_field_left_out(server: Running, tiny: E5) -> None:
    names = ("encoding_format", "dimensions", "user", "truncate", "task", "input_type")
    body = {"model": "tiny-e5-query", "input": "a", **dict.fromkeys(names)}
    [row] = server.post("/v1/embeddings", body).json["data"]
    assert same_bits(row["embedding"], tiny.embed("a", input_type="query").vectors)


def test_token_states(server: Running, tiny: E5) -> None:
    found = server.post("/embed_all", {"inputs": ["a", "the query"], "prompt_name": "query"}).json
    for text, states in zip(("a", "the query"), found, strict=True):
        assert len(states) == tiny.tokenizer.count("query: " + text)
        mean = np.array(states, np.float32).mean(axis=0)
        expected = tiny.embed(text, input_type="query", normalize=False).vectors
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-5)


def test_types_of_cohere(server: Running, tiny: E5) -> None:
    types = ["float", "base64", "ubinary", "binary"]
    body = {"model": "tiny-e5", "texts": TEXTS, "input_type": "search_query"}
    found = server.post("/v2/embed", {**body, "embedding_types": types}).json["embeddings"]
    expected = tiny.embed(TEXTS, input_type="query").vectors
    assert same_bits(found["float"], expected)
    assert base64.b64decode(found["base64"][1]) == expected[1].tobytes()
    bits = np.packbits(expected > 0, axis=1)
    assert found["ubinary"] == bits.tolist()
    assert found["binary"] == (bits.astype(int) - 128).tolist()
    refused = server.post("/v2/embed", {**body, "embedding_types": ["int8"]})
    assert refused.status == 400
    assert "ask for float" in refused.json["message"]
    parts = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    body = {"model": "tiny-e5", "inputs": parts, "input_type": "search_query"}
    assert same_bits(server.post("/v2/embed", body).json["embeddings"]["float"], expected)


DOCUMENTS = ["日本", "the query", LONG, "a passage"]


def ranked(server: Running, dialect: str, **more: Any) -> list[tuple[int, float, Any]]:
    """Place, score and document of each answer."""
    body: dict[str, Any] = {"model": "tiny-ranker", "query": "the query", **more}
    if dialect == "tei":
        body |= {"texts": DOCUMENTS, "return_text": True}
        rows = server.post("/rerank", body).json
        return [(row["index"], row["score"], row["text"]) for row in rows]
    if dialect == "pinecone":
        parameters = {"parameters": {"truncate": "END"}}
        body |= {"documents": [{"text": text, "id": 1} for text in DOCUMENTS], **parameters}
        rows = server.post("/rerank", body, PINECONE).json["data"]
        return [(row["index"], row["score"], row["document"]["text"]) for row in rows]
    body |= {"documents": DOCUMENTS, "return_documents": True}
    rows = server.post({"jina": "/rerank"}.get(dialect, f"/{dialect}/rerank"), body).json["results"]
    return [(row["index"], row["relevance_score"], row["document"]["text"]) for row in rows]


@pytest.mark.parametrize("dialect", ["tei", "pinecone", "jina", "v1", "v2"])
def test_scores_have_the_bits_of_the_reranker(
    server: Running, tiny_reranker: Reranker, dialect: str
) -> None:
    expected = tiny_reranker.rank("the query", DOCUMENTS, normalize=True)
    found = ranked(server, dialect)
    assert [place for place, _, _ in found] == expected.indices.tolist()
    assert same_bits([score for _, score, _ in found], expected.scores)
    assert [text for _, _, text in found] == [DOCUMENTS[place] for place, _, _ in found]


def test_options_of_reranking(server: Running, tiny_reranker: Reranker) -> None:
    raw = tiny_reranker.score("the query", DOCUMENTS)
    body = {"query": "the query", "texts": DOCUMENTS, "raw_scores": True}
    for row in server.post("/rerank", body).json:
        assert np.float32(row["score"]) == raw[row["index"]]
        assert "text" not in row
    assert len(ranked(server, "v2", top_n=2)) == 2
    assert len(ranked(server, "pinecone", top_n=1)) == 1
    bare = {"model": "tiny-ranker", "query": "a", "documents": [{"t": "b"}], "rank_fields": ["t"]}
    found = server.post(
        "/rerank", {**bare, "return_documents": False}
    ).json  # no header: rank_fields
    assert list(found["data"][0]) == ["index", "score"]
    assert found["usage"] == {"rerank_units": 1}
    found = server.post("/rerank", {**bare, "rank_fields": ["text"]}, PINECONE)
    assert found.status == 400
    assert "documents[0] has no field 'text'" in found.json["error"]["message"]
    cut = {"model": "tiny-ranker", "query": "a", "documents": [LONG], "max_tokens_per_doc": 5}
    [row] = server.post("/v2/rerank", cut).json["results"]
    pieces = tiny_reranker.tokenizer.encode_pieces(LONG)[:5]
    text = tiny_reranker.tokenizer.decode(pieces)
    assert np.float32(row["relevance_score"]) == tiny_reranker.score("a", [text], normalize=True)[0]


def test_pinecone_cuts_no_pair_unless_it_is_told_to(server: Running) -> None:
    body = {"model": "tiny-ranker", "query": "a", "documents": [{"text": "b"}, {"text": LONG}]}
    found = server.post("/rerank", body, PINECONE)
    assert found.status == 400
    assert "the query with documents[1] has" in found.json["error"]["message"]


def test_similarity(server: Running, tiny: E5) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    vectors = tiny.embed(TEXTS, input_type="query").vectors
    for path in ("/similarity", "/"):
        np.testing.assert_allclose(
            server.post(path, body).json, vectors[1:] @ vectors[0], rtol=0, atol=1e-6
        )
    passage = {**body, "parameters": {"prompt_name": "passage"}}
    assert server.post("/similarity", passage).json != server.post("/similarity", body).json


def test_tokens_and_back(server: Running, tiny: E5) -> None:
    [tokens] = server.post("/tokenize", {"inputs": "the a"}).json
    ids = [token["id"] for token in tokens]
    assert ids == tiny.tokenizer.encode("the a")
    assert [token["text"] for token in tokens][::3] == ["<s>", "</s>"]
    assert [token["special"] for token in tokens] == [True, False, False, True]
    places = [(token["start"], token["stop"]) for token in tokens]
    assert places == [(None, None), (0, 3), (4, 5), (None, None)]
    asked = {"inputs": "the a", "prompt_name": "query", "add_special_tokens": False}
    [tokens] = server.post("/tokenize", asked).json
    text = "query: the a"
    assert [text[token["start"] : token["stop"]] for token in tokens] == ["query", ":", "the", "a"]
    assert server.post("/decode", {"ids": ids}).json == ["the a"]
    body = {"ids": [ids], "skip_special_tokens": False}
    assert server.post("/decode", body).json == ["<s>the a</s>"]
    [bare] = server.post("/tokenize", {"inputs": ["the a"], "add_special_tokens": False}).json
    assert [token["id"] for token in bare] == ids[1:-1]
    assert server.post("/decode", {"ids": [[10**6]]}).status == 422
    many = {"/tokenize": {"inputs": ["a" * 1000] * 1001}, "/decode": {"ids": [[5] * 1000] * 1001}}
    for path, body in many.items():
        refused = server.post(path, body)
        assert refused.status == 413
        assert "has 1,001,000" in refused.json["error"]


def test_what_is_served(server: Running, tiny: E5) -> None:
    info = server.get("/info").json
    assert info["model_id"] == "tiny-e5"
    assert info["max_input_length"] == tiny.max_length
    names = [row["id"] for row in server.get("/v1/models").json["data"]]
    assert names == ["tiny-e5", "tiny-e5-query", "tiny-e5-passage", "tiny-ranker"]
    assert server.get("/models").json["data"] == server.get("/v1/models").json["data"]
    assert server.get("/v1/models/org%2Ftiny-e5").json["id"] == "org/tiny-e5"
    listed = server.get("/models", PINECONE).json["models"]
    assert [model["type"] for model in listed] == ["embed", "rerank"]
    for kind, name in (("embed", "tiny-e5"), ("rerank", "tiny-ranker")):
        [model] = server.get(f"/models?type={kind}", PINECONE).json["models"]
        assert model["model"] == name
    assert server.get("/models/tiny-e5", PINECONE).json == listed[0]
    assert server.get("/models/tiny-ranker", PINECONE).json == listed[1]
    assert server.get("/models/nope", PINECONE).json["error"]["code"] == "NOT_FOUND"


def test_errors_have_the_form_of_the_dialect(server: Running) -> None:
    openai = server.post("/v1/embeddings", {"model": "tiny-e5", "input": "a"})
    assert openai.status == 400
    assert openai.json["error"]["code"] == "input_type_missing"
    assert '"tiny-e5-query"' in openai.json["error"]["message"]
    unknown = server.post("/v1/embeddings", {"model": "nope", "input": "a"})
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    tokens = server.post("/v1/embeddings", {"model": "tiny-e5-query", "input": [[1, 2]]})
    assert tokens.json["error"]["code"] == "token_input"
    assert "check_embedding_ctx_length=False" in tokens.json["error"]["message"]
    pinecone = server.post("/embed", {"model": "tiny-e5", "inputs": [{"text": "a"}]})
    assert pinecone.json["status"] == 400
    assert pinecone.json["error"]["code"] == "INVALID_ARGUMENT"
    assert isinstance(server.post("/v2/embed", {"model": "tiny-e5"}).json["message"], str)
    tei = server.post("/embed", {"inputs": [], "prompt_name": "query"})
    assert (tei.status, tei.json["error_type"]) == (422, "Empty")
    ollama = server.post("/api/embed", {"model": "nope", "input": "a"})
    assert (ollama.status, list(ollama.json)) == (404, ["error"])
    jina = server.post("/rerank", {"documents": ["a"]})
    assert "query is missing" in jina.json["error"]["message"]
    assert server.post("/embed", b"{", PINECONE).json["error"]["code"] == "INVALID_ARGUMENT"
    wrong_method = server.get("/v1/embeddings")
    assert (wrong_method.status, wrong_method.headers["allow"]) == (405, "POST")
    assert server.post("/nowhere", {}).status == 404
    assert server.post("/api/nowhere", {}).json.keys() == {"error"}


@pytest.mark.parametrize("blank", ["", " \t\n", "\u200b"])
def test_empty_texts_are_named(server: Running, blank: str) -> None:
    found = pinecone(server, "query", ["a", blank, "b", blank])
    assert found.status == 400
    assert found.json["error"]["message"].startswith("inputs[1], inputs[3] are empty")
    rerank = server.post("/v2/rerank", {"model": "tiny-ranker", "query": blank, "documents": ["a"]})
    assert (rerank.status, "query is empty" in rerank.json["message"]) == (400, True)


def test_a_type_that_contradicts_the_name_is_refused(server: Running) -> None:
    body = {"model": "tiny-e5-query", "input": "a", "input_type": "passage"}
    found = server.post("/v1/embeddings", body)
    assert (found.status, found.json["error"]["param"]) == (400, "input_type")
    body = {"model": "tiny-e5", "input": "a", "input_type": "image"}
    assert server.post("/v1/embeddings", body).status == 400


def test_ollama_takes_no_input(server: Running) -> None:
    found = server.post("/api/embed", {"model": "tiny-e5-query", "input": []})
    assert (found.status, found.json["embeddings"]) == (200, [])


def test_an_instruction_is_sent_or_is_the_operator_s(folders: tuple[Path, Path]) -> None:
    """An instruct model's queries need one, and many clients have no field for it."""
    model = E5.from_pretrained(folders[0], prompts="e5-instruct")
    models = Models([serve_embedder(model, "instruct")])
    own, sent = "Retrieve what answers the query", "Find a duplicate"
    body = {"model": "instruct", "texts": TEXTS, "input_type": "search_query"}

    def vectors(server: Running, **more: str) -> Any:
        return server.post("/v2/embed", body | more).json["embeddings"]["float"]

    with serving(App(Service(models))) as server:
        refused = server.post("/v2/embed", body)
        assert refused.status == 400
        assert "a field task" in refused.json["message"]
        expected = model.embed(TEXTS, input_type="query", task=sent).vectors
        assert same_bits(vectors(server, task=sent), expected)
        expected = model.embed(TEXTS, input_type="passage").vectors
        assert same_bits(vectors(server, input_type="search_document"), expected)
    with serving(App(Service(models, default_task=own))) as server:
        expected = model.embed(TEXTS, input_type="query", task=own).vectors
        assert same_bits(vectors(server), expected)
        body = {"inputs": TEXTS, "prompt_name": "query"}
        assert same_bits(server.post("/tei/embed", body).json, expected)


def test_a_model_without_prompts_takes_texts_as_they_are(tiny: E5) -> None:
    model = E5(tiny.encoder, tiny.tokenizer)
    with serving(App(Service(Models([serve_embedder(model, "bare")])))) as server:
        for more in ({}, {"input_type": "query"}):
            refused = server.post("/v1/embeddings", {"input": TEXTS, **more})
            assert (refused.status, refused.json["error"]["code"]) == (400, "prompts_unknown")
            assert "--prompts" in refused.json["error"]["message"]
        [row] = server.post("/v1/embeddings", {"input": "a", "input_type": "none"}).json["data"]
        assert same_bits(row["embedding"], model.embed("a", input_type=None).vectors)
