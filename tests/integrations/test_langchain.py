"""The LangChain adapter, in a real vector store."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from e5core import E5
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, TOPICS, read_column

pytest.importorskip("langchain_core", reason="langchain-core is not installed")
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from e5core.integrations.langchain import E5Embeddings


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
