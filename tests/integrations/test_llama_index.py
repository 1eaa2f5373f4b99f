"""The LlamaIndex adapter, in a real index."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from e5core import E5
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, TOPICS, read_column

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode

from e5core.integrations.llama_index import EMBED_BATCH_SIZE, E5Embedding


def test_texts_are_passages_and_a_query_is_a_query(real_model: E5) -> None:
    embedding = E5Embedding(real_model)
    assert isinstance(embedding, BaseEmbedding)
    texts = embedding.get_text_embedding_batch(SENTENCES[:5])
    query = embedding.get_query_embedding(QUERIES[0])
    np.testing.assert_array_equal(texts, real_model.encode_passage(SENTENCES[:5]))
    np.testing.assert_array_equal(query, real_model.encode_query(QUERIES[0]))
    single = embedding.get_text_embedding(QUERIES[0])
    np.testing.assert_array_equal(single, real_model.encode_passage(QUERIES[0]))
    assert np.abs(np.array(single) - query).max() > 1e-3
    assert type(query) is type(texts[0]) is list
    assert type(query[0]) is type(texts[0][0]) is float


def test_an_index_finds_across_languages(real_model: E5) -> None:
    nodes = [
        TextNode(id_=topic, text=sentence)
        for sentence, topic, language in zip(SENTENCES, TOPICS, LANGUAGES, strict=True)
        if language == "en"
    ]
    index = VectorStoreIndex(nodes, embed_model=E5Embedding(real_model))
    retriever = index.as_retriever(similarity_top_k=1)
    found = [retriever.retrieve(query)[0].node.node_id for query in QUERIES]
    assert found == read_column("queries.tsv", "topic")


def test_async_methods(real_model: E5) -> None:
    embedding = E5Embedding(real_model)

    async def all_three() -> tuple[list[float], list[float], list[list[float]]]:
        return await asyncio.gather(
            embedding.aget_query_embedding(QUERIES[0]),
            embedding.aget_text_embedding(SENTENCES[0]),
            embedding.aget_text_embedding_batch(SENTENCES[:3]),
        )

    query, text, texts = asyncio.run(all_three())
    assert query == embedding.get_query_embedding(QUERIES[0])
    assert text == embedding.get_text_embedding(SENTENCES[0])
    assert texts == embedding.get_text_embedding_batch(SENTENCES[:3])


def test_a_folder_with_options(tiny_folder: Path) -> None:
    embedding = E5Embedding(
        tiny_folder,
        task="find it",
        load_options={"prompts": "e5-instruct", "kernels": "plain"},
        embed_batch_size=3,
    )
    expected = E5.from_pretrained(tiny_folder, prompts="e5-instruct", kernels="plain")
    query = expected.encode_query("text", task="find it").tolist()
    assert embedding.get_query_embedding("text") == query
    assert embedding.get_text_embedding("text") == expected.encode_passage("text").tolist()
    assert (embedding.embed_batch_size, embedding.model_name) == (3, str(tiny_folder))
    assert embedding.to_dict()["class_name"] == "E5Embedding"


def test_a_call_gets_hundreds_of_texts(real_model: E5, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = real_model.encode_passage
    monkeypatch.setattr(
        real_model, "encode_passage", lambda texts, **o: sizes.append(len(texts)) or encode(texts)
    )
    E5Embedding(real_model).get_text_embedding_batch(SENTENCES)
    assert sizes == [len(SENTENCES)]
    assert len(SENTENCES) <= EMBED_BATCH_SIZE
