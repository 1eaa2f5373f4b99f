"""The real clients, unmodified: every vector has the bits that `E5.embed` gives it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import ROOT
from support.serving import Running, same_bits, serving

from e5core import E5, Reranker
from e5core.parity.samples import QUERIES, SENTENCES
from e5core.serve.app import App
from e5core.serve.keys import Keys
from e5core.serve.models import Models, serve_embedder, serve_reranker
from e5core.serve.service import Service

NAME = "multilingual-e5-small"
LARGE = "multilingual-e5-large"  # to which LangChain's class for Pinecone adds the input type
RANKER = "bge-reranker-v2-m3"
COHERE = "embed-multilingual-v3.0"  # LlamaIndex's class for Cohere takes Cohere's names alone
# 500 texts of many languages and lengths, no two alike.
TEXTS = [f"{text} {i}" for i, text in zip(range(500), (SENTENCES + QUERIES) * 9, strict=False)]
DOCUMENTS = ["日本", "the query", "a passage"]


@pytest.fixture(scope="module")
def server(tiny: E5, tiny_reranker: Reranker) -> Iterator[Running]:
    """Tiny models under published names, and a key."""
    models = Models(
        [serve_embedder(tiny, f"intfloat/{name}") for name in (NAME, LARGE, COHERE)],
        [serve_reranker(tiny_reranker, RANKER)],
    )
    with serving(App(Service(models), Keys(["key"]))) as running:
        yield running


@pytest.fixture(scope="module")
def expected(tiny: E5) -> dict[str, Any]:
    """The vectors of the texts as queries and as passages."""
    return {kind: tiny.embed(TEXTS, input_type=kind).vectors for kind in ("query", "passage")}


def test_pinecone(server: Running, expected: dict[str, Any], tiny_reranker: Reranker) -> None:
    pinecone = pytest.importorskip("pinecone")
    inference = pinecone.Pinecone(api_key="key", host=server.url).inference
    for kind, vectors in expected.items():
        found = inference.embed(model=NAME, inputs=TEXTS, parameters={"input_type": kind})
        assert same_bits([row.values for row in found.data], vectors)
        assert found.model == NAME
    ranked = inference.rerank(model=RANKER, query="the query", documents=DOCUMENTS, top_n=2)
    best = tiny_reranker.rank("the query", DOCUMENTS, 2, normalize=True)
    assert [row.index for row in ranked.data] == best.indices.tolist()
    assert same_bits([row.score for row in ranked.data], best.scores)
    assert [model.model for model in inference.list_models()] == [*(NAME, LARGE, COHERE, RANKER)]
    assert inference.get_model(model=NAME).default_dimension == 24
    with pytest.raises(Exception, match="is empty"):
        inference.embed(model=NAME, inputs=[""], parameters={"input_type": "query"})
    with pytest.raises(Exception, match="no embedding model 'nope'"):
        inference.embed(model="nope", inputs=["a"], parameters={"input_type": "query"})


def test_openai(server: Running, expected: dict[str, Any]) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="key")
    for kind, vectors in expected.items():
        for form in (openai.NOT_GIVEN, "float"):
            found = client.embeddings.create(
                model=f"{NAME}-{kind}", input=TEXTS, encoding_format=form
            )
            assert same_bits([row.embedding for row in found.data], vectors)
    body = {"input_type": "passage"}
    found = client.embeddings.create(model=NAME, input=TEXTS[0], extra_body=body)
    assert same_bits(found.data[0].embedding, expected["passage"][0])
    assert next(model.id for model in client.models.list()) == NAME
    assert client.models.retrieve(f"intfloat/{NAME}").id == f"intfloat/{NAME}"
    with pytest.raises(openai.BadRequestError, match="-query") as failed:
        client.embeddings.create(model=NAME, input="a")
    assert (failed.value.code, failed.value.param) == ("input_type_missing", "model")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()


def test_cohere(server: Running, expected: dict[str, Any], tiny_reranker: Reranker) -> None:
    cohere = pytest.importorskip("cohere")
    two = cohere.ClientV2(api_key="key", base_url=server.url)
    one = cohere.Client(api_key="key", base_url=server.url)
    for kind, input_type in (("query", "search_query"), ("passage", "search_document")):
        texts, rows = TEXTS[:96], expected[kind][:96]
        options = {"model": NAME, "texts": texts, "input_type": input_type}
        found = two.embed(**options, embedding_types=["float"])
        assert same_bits(found.embeddings.float_, rows)
        assert same_bits(one.embed(**options).embeddings, rows)
    ranked = two.rerank(model=RANKER, query="the query", documents=DOCUMENTS)
    best = tiny_reranker.rank("the query", DOCUMENTS, normalize=True)
    assert [row.index for row in ranked.results] == best.indices.tolist()
    assert same_bits([row.relevance_score for row in ranked.results], best.scores)
    with pytest.raises(cohere.errors.NotFoundError, match="no reranker 'nope'"):
        two.rerank(model="nope", query="a", documents=["b"])


def test_huggingface_hub(server: Running, expected: dict[str, Any]) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    for base in (server.url, f"{server.url}/embed"):
        client = InferenceClient(base_url=base, token="key")
        for kind, vectors in expected.items():
            found = client.feature_extraction(TEXTS, prompt_name=kind)
            assert same_bits(found, vectors)
    client = InferenceClient(base_url=server.url, token="key")
    cosines = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:4])
    query = expected["query"]
    np.testing.assert_allclose(cosines, query[1:4] @ query[0], rtol=0, atol=1e-6)
    with pytest.raises(HfHubHTTPError, match="say which"):
        client.feature_extraction("a")


def test_ollama(server: Running, expected: dict[str, Any]) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url, headers={"Authorization": "Bearer key"})
    for kind, vectors in expected.items():
        found = client.embed(model=f"{NAME}-{kind}", input=TEXTS)
        assert same_bits(found.embeddings, vectors)
    with pytest.raises(ollama.ResponseError, match="no embedding model"):
        client.embed(model="nope", input="a")


def test_langchain(server: Running, expected: dict[str, Any], tiny_reranker: Reranker) -> None:
    for module in ("langchain_openai", "langchain_cohere", "langchain_ollama"):
        pytest.importorskip(module)
    from langchain_cohere import CohereEmbeddings, CohereRerank
    from langchain_ollama import OllamaEmbeddings
    from langchain_openai import OpenAIEmbeddings

    both = CohereEmbeddings(model=NAME, cohere_api_key="key", base_url=server.url)
    assert same_bits(both.embed_query(TEXTS[0]), expected["query"][0])
    assert same_bits(both.embed_documents(TEXTS[:200]), expected["passage"][:200])
    ranker = CohereRerank(model=RANKER, cohere_api_key="key", base_url=server.url)
    best = tiny_reranker.rank("the query", DOCUMENTS, normalize=True)
    ranked = ranker.rerank(DOCUMENTS, "the query", top_n=3)
    assert [row["index"] for row in ranked] == best.indices.tolist()
    assert same_bits([row["relevance_score"] for row in ranked], best.scores)
    for kind, vectors in expected.items():
        openai: Any = OpenAIEmbeddings(
            model=f"{NAME}-{kind}",
            api_key="key",  # type: ignore[arg-type]
            base_url=f"{server.url}/v1",
            check_embedding_ctx_length=False,
        )
        assert same_bits(openai.embed_documents(TEXTS), vectors)
        ollama = OllamaEmbeddings(
            model=f"{NAME}-{kind}",
            base_url=server.url,
            client_kwargs={"headers": {"Authorization": "Bearer key"}},
        )
        assert same_bits(ollama.embed_documents(TEXTS), vectors)


def test_llama_index(
    server: Running, expected: dict[str, Any], tiny: E5, tiny_reranker: Reranker
) -> None:
    like = pytest.importorskip("llama_index.embeddings.openai_like")
    tei = pytest.importorskip("llama_index.embeddings.text_embeddings_inference")
    rerank = pytest.importorskip("llama_index.postprocessor.tei_rerank")
    for kind, vectors in expected.items():
        model = like.OpenAILikeEmbedding(
            model_name=f"{NAME}-{kind}", api_base=f"{server.url}/v1", api_key="key"
        )
        assert same_bits(model.get_text_embedding_batch(TEXTS[:100]), vectors[:100])
    ranker = rerank.TextEmbeddingInference(
        base_url=server.url, auth_token="key", top_n=3, model_name=RANKER
    )
    assert_it_ranks(ranker, tiny_reranker)
    # It puts the prefixes itself, and the server takes the texts as they are.
    models = Models([serve_embedder(tiny, NAME)])
    with serving(App(Service(models, default_input_type="none"))) as as_they_are:
        client = tei.TextEmbeddingsInference(
            model_name=NAME,
            base_url=as_they_are.url,
            query_instruction="query:",
            text_instruction="passage:",
        )
        assert same_bits(client.get_query_embedding(TEXTS[0]), expected["query"][0])
        assert same_bits(client.get_text_embedding(TEXTS[0]), expected["passage"][0])


def assert_it_ranks(ranker: Any, tiny_reranker: Reranker) -> None:
    """One of LlamaIndex's rerankers puts documents in the order that Reranker.rank gives."""
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text), score=0) for text in DOCUMENTS]
    found = ranker.postprocess_nodes(nodes, query_str="the query")
    best = tiny_reranker.rank("the query", DOCUMENTS, normalize=True)
    assert [DOCUMENTS.index(node.node.get_content()) for node in found] == best.indices.tolist()
    assert same_bits([node.score for node in found], best.scores)


def test_llama_index_s_classes_for_hosted_services(
    server: Running,
    expected: dict[str, Any],
    tiny_reranker: Reranker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They put the input type by themselves."""
    embeddings = pytest.importorskip("llama_index.embeddings.cohere")
    rerank = pytest.importorskip("llama_index.postprocessor.cohere_rerank")
    native = pytest.importorskip("llama_index.postprocessor.pinecone_native_rerank")
    model = embeddings.CohereEmbedding(model_name=COHERE, api_key="key", base_url=server.url)
    assert same_bits(model.get_query_embedding(TEXTS[0]), expected["query"][0])
    assert same_bits(model.get_text_embedding_batch(TEXTS[:20]), expected["passage"][:20])
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", server.url)
    for ranker in (
        rerank.CohereRerank(model=RANKER, api_key="key", base_url=server.url, top_n=3),
        native.PineconeNativeRerank(model=RANKER, api_key="key", top_n=3),
    ):
        assert_it_ranks(ranker, tiny_reranker)


def test_the_snippets_of_the_page(server: Running, tiny: E5) -> None:
    """docs/serving.md: every client's lines, with nothing changed but the port."""
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    *clients, mounted = [block.replace("http://127.0.0.1:8080", server.url) for block in blocks]
    assert len(clients) == 7
    names: dict[str, Any] = {}
    missing = set()
    for block in clients:
        try:
            exec(compile(block, "serving.md", "exec"), names)
        except ModuleNotFoundError as error:
            missing.add(error.name)
    query = tiny.embed("How much protein should a female eat?", input_type="query").vectors
    found = [value for name, value in names.items() if name.endswith("_vector")]
    assert len(found) >= 5 - len(missing)
    for vector in (*found, *names.get("langchain_vectors", [])):
        assert same_bits(vector, query)
    assert "Service(Models([serve_embedder(" in mounted
    if missing:
        pytest.skip(f"not all of serving.md: {', '.join(map(str, missing))} is not installed")


def test_the_real_model(real_model: E5) -> None:
    """multilingual-e5-small over HTTP, a batch of mixed lengths in one request."""
    openai = pytest.importorskip("openai")
    texts = [*TEXTS[:40], "A long text. " * 200, "x"]
    with serving(App(Service(Models([serve_embedder(real_model, NAME)])))) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any")
        for kind in ("query", "passage"):
            found = client.embeddings.create(model=f"{NAME}-{kind}", input=texts)
            vectors = real_model.embed(texts, input_type=kind).vectors
            assert same_bits([row.embedding for row in found.data], vectors)


OLD_CLIENT = """
import json, sys
from pinecone import Pinecone
url, texts = sys.argv[1], json.loads(sys.argv[2])
inference = Pinecone(api_key="key", host=url).inference
found = inference.embed(
    model="multilingual-e5-small", inputs=texts, parameters={"input_type": "query"}
)
ranked = inference.rerank(
    model="bge-reranker-v2-m3", query=texts[0], documents=texts, parameters={"truncate": "END"}
)
from langchain_pinecone import PineconeEmbeddings, PineconeRerank
embeddings = PineconeEmbeddings(
    model="multilingual-e5-large", pinecone_api_key="key", batch_size=96
)
reranker = PineconeRerank(model="bge-reranker-v2-m3", pinecone_api_key="key", top_n=5)
from llama_index.embeddings.ollama import OllamaEmbedding
ollama = {
    kind: OllamaEmbedding(
        model_name=f"multilingual-e5-small-{kind}",
        base_url=url,
        client_kwargs={"headers": {"Authorization": "Bearer key"}},
    ).get_text_embedding_batch(texts)
    for kind in ("query", "passage")
}
print(json.dumps({
    "langchain order": [row["index"] for row in reranker.rerank(texts, texts[0])],
    "ollama": ollama,
    "rows": [list(row.values) for row in found.data],
    "order": [row.index for row in ranked.data],
    "query": embeddings.embed_query(texts[0]),
    "documents": embeddings.embed_documents(texts),
}))
"""


def test_pinecone_7_and_what_else_needs_a_folder_of_its_own(
    server: Running, expected: dict[str, Any], tmp_path: Path
) -> None:
    """LangChain's class for Pinecone excludes pinecone 10, and LlamaIndex's for Ollama is there.

    The latter has along pytest-asyncio, which these tests should run without.
    """
    pytest.importorskip("langchain_openai")
    packages = ["pinecone==7.3.0", "langchain-pinecone==0.2.13", "simsimd", "aiohttp-retry"]
    packages += ["pinecone-plugin-interface", "pinecone-plugin-assistant"]
    packages += ["llama-index-embeddings-ollama==0.10.0"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(tmp_path), *packages],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        pytest.skip(f"pinecone 7.3.0 cannot be installed here: {done.stderr[-200:]}")
    hosts = dict.fromkeys(("PINECONE_CONTROLLER_HOST", "PINECONE_BASE_URL"), server.url)
    done = subprocess.run(
        [sys.executable, "-c", OLD_CLIENT, server.url, json.dumps(TEXTS[:5])],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **hosts, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert same_bits(found["rows"], expected["query"][:5])
    assert sorted(found["order"]) == list(range(5))
    assert same_bits(found["query"], expected["query"][0])
    assert same_bits(found["documents"], expected["passage"][:5])
    assert found["langchain order"] == found["order"]
    for kind, vectors in expected.items():
        assert same_bits(found["ollama"][kind], vectors[:5])
