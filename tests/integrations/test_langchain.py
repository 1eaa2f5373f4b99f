"""The LangChain adapter, in a real vector store."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from support.models import write_tiny_reranker

from e5core import E5, Reranker
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, TOPICS, read_column

pytest.importorskip("langchain_core", reason="langchain-core is not installed")
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from e5core.integrations.langchain import E5Embeddings, E5Reranker


def test_documents_are_passages_and_a_query_is_a_query(real_model: E5) -> None:
    embeddings = E5Embeddings(real_model)
    assert isinstance(embeddings, Embeddings)
    documents, query = embeddings.embed_documents(SENTENCES[:5]), embeddings.embed_query(QUERIES[0])
    np.testing.assert_array_equal(documents, real_model.encode_passage(SENTENCES[:5]))
    np.testing.assert_array_equal(query, real_model.encode_query(QUERIES[0]))
    assert np.abs(embeddings.embed_documents([QUERIES[0]])[0] - np.array(query)).max() > 1e-3
    assert type(query) is type(documents[0]) is list
    assert type(query[0]) is type(documents[0][0]) is float
    assert embeddings.embed_documents([]) == []


def test_a_vector_store_finds_across_languages(real_model: E5) -> None:
    store = InMemoryVectorStore(E5Embeddings(real_model))
    english = [i for i, language in enumerate(LANGUAGES) if language == "en"]
    store.add_texts([SENTENCES[i] for i in english], [{"topic": TOPICS[i]} for i in english])
    found = [store.similarity_search(query, k=1)[0].metadata["topic"] for query in QUERIES]
    assert found == read_column("queries.tsv", "topic")


def test_async_methods(real_model: E5) -> None:
    embeddings = E5Embeddings(real_model)

    async def both() -> tuple[list[float], list[list[float]]]:
        return await asyncio.gather(
            embeddings.aembed_query(QUERIES[0]), embeddings.aembed_documents(SENTENCES[:2])
        )

    query, documents = asyncio.run(both())
    assert query == embeddings.embed_query(QUERIES[0])
    assert documents == embeddings.embed_documents(SENTENCES[:2])


def test_a_folder_with_options(tiny_folder: Path) -> None:
    embeddings = E5Embeddings(tiny_folder, prompts="e5-instruct", task="find it", kernels="plain")
    expected = E5.from_pretrained(tiny_folder, prompts="e5-instruct", kernels="plain")
    assert embeddings.model.encoder.kernels.name == "plain"
    query = expected.encode_query("text", task="find it").tolist()
    assert embeddings.embed_query("text") == query
    assert embeddings.embed_documents(["text"]) == expected.encode_passage(["text"]).tolist()


def test_options_for_a_loaded_model(real_model: E5) -> None:
    with pytest.raises(TypeError, match=r"loaded already, dtype cannot change it.*from_pretrained"):
        E5Embeddings(real_model, dtype="bfloat16")


@pytest.fixture
def reranker(tmp_path: Path) -> Reranker:
    return Reranker.from_pretrained(write_tiny_reranker(tmp_path / "reranker", "xlm-roberta"))


TEXTS = ["a b", "日本 é", "the query", "", "x y z"]
DOCUMENTS = [
    Document(id=str(i), page_content=text, metadata={"place": i}) for i, text in enumerate(TEXTS)
]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("top_n", [1, 3, 9, None])
def test_documents_are_reranked(reranker: Reranker, top_n: int | None, normalize: bool) -> None:
    compressor = E5Reranker(reranker, top_n=top_n, normalize=normalize)
    assert isinstance(compressor, BaseDocumentCompressor)
    found = compressor.compress_documents(DOCUMENTS, "a query")
    best = reranker.rank("a query", TEXTS, top_n, normalize=normalize)
    assert [document.metadata["place"] for document in found] == best.indices.tolist()
    scores = [document.metadata["relevance_score"] for document in found]
    assert scores == best.scores.tolist()
    assert all(type(score) is float for score in scores)
    for document in found:
        place = document.metadata["place"]
        assert (document.id, document.page_content) == (str(place), TEXTS[place])
        assert DOCUMENTS[place].metadata == {"place": place}  # the caller's own stays as it is
    assert asyncio.run(compressor.acompress_documents(DOCUMENTS, "a query")) == found
    assert compressor.compress_documents([], "a query") == []


def test_a_chain_searches_and_reranks(real_model: E5, reranker: Reranker) -> None:
    store = InMemoryVectorStore(E5Embeddings(real_model))
    store.add_texts(SENTENCES[:20])
    retriever = store.as_retriever(search_kwargs={"k": 10})
    compressor = E5Reranker(reranker, top_n=2)
    chain = RunnableLambda(lambda q: compressor.compress_documents(retriever.invoke(q), q))
    found = [document.page_content for document in chain.invoke(QUERIES[0])]
    hits = [document.page_content for document in retriever.invoke(QUERIES[0])]
    assert found == [hits[i] for i in reranker.rank(QUERIES[0], hits, 2).indices]


def test_options_of_a_reranker(tmp_path: Path, reranker: Reranker) -> None:
    folder = tmp_path / "reranker"
    compressor = E5Reranker(folder, kernels="plain", truncate="none", max_length=20)
    assert compressor.top_n == 3
    with pytest.raises(ValueError, match=r"pair 1 has \d+ tokens, the model takes 20"):
        compressor.compress_documents([Document("a"), Document("a b " * 20)], "q")
    with pytest.raises(TypeError, match=r"loaded already, dtype cannot.*Reranker.from_pretrained"):
        E5Reranker(reranker, dtype="bfloat16")
    with pytest.raises(TypeError, match="query is None of type NoneType, expected one str"):
        compressor.compress_documents(DOCUMENTS, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_n"):
        E5Reranker(folder, top_n="three")  # type: ignore[arg-type]


def test_models_of_the_other_kind(real_model: E5, reranker: Reranker) -> None:
    with pytest.raises(
        TypeError, match="type E5, expected a folder, a hub id or a loaded Reranker"
    ):
        E5Reranker(real_model)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match="type Reranker, expected a folder, a hub id or a loaded E5"
    ):
        E5Embeddings(reranker)  # type: ignore[arg-type]
