"""The LlamaIndex adapter, in a real index."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from support.models import write_tiny_reranker

from e5core import E5, Reranker
from e5core.parity.samples import LANGUAGES, QUERIES, SENTENCES, TOPICS, read_column

pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    EventPayload,
    LlamaDebugHandler,
)
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from e5core.integrations.llama_index import EMBED_BATCH_SIZE, E5Embedding, E5Rerank


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


@pytest.fixture
def reranker(tmp_path: Path) -> Reranker:
    return Reranker.from_pretrained(write_tiny_reranker(tmp_path / "reranker", "xlm-roberta"))


TEXTS = ["a b", "日本 é", "the query", "x y z"]


def nodes() -> list[NodeWithScore]:
    """Nodes that show a model their title, and scores of a retriever."""
    made = (TextNode(id_=str(i), text=t, metadata={"title": t[0]}) for i, t in enumerate(TEXTS))
    return [NodeWithScore(node=node, score=0.1 * i) for i, node in enumerate(made)]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("top_n", [1, 3, 9, None])
def test_nodes_are_reranked(reranker: Reranker, top_n: int | None, normalize: bool) -> None:
    rerank = E5Rerank(reranker, top_n=top_n, normalize=normalize)
    assert isinstance(rerank, BaseNodePostprocessor)
    found = rerank.postprocess_nodes(nodes(), query_str="a query")
    shown = [f"title: {text[0]}\n\n{text}" for text in TEXTS]
    best = reranker.rank("a query", shown, top_n, normalize=normalize)
    assert [int(node.node_id) for node in found] == best.indices.tolist()
    assert [node.score for node in found] == best.scores.tolist()
    assert all(type(node.score) is float for node in found)
    again = asyncio.run(rerank.apostprocess_nodes(nodes(), QueryBundle("a query")))
    assert [node.score for node in again] == [node.score for node in found]
    assert rerank.postprocess_nodes([], query_str="a query") == []
    assert rerank.to_dict()["class_name"] == "E5Rerank"


def test_the_score_of_the_retriever_is_kept_and_shown_to_no_model(reranker: Reranker) -> None:
    given = nodes()
    rerank = E5Rerank(reranker, top_n=2, keep_retrieval_score=True)
    found = rerank.postprocess_nodes(given, query_str="a query")
    for node in found:
        assert node.metadata["retrieval_score"] == 0.1 * int(node.node_id)
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert "retrieval_score" not in node.node.get_content(mode)
    assert all("retrieval_score" not in node.metadata for node in given)
    again = rerank.postprocess_nodes(found, query_str="a query")
    assert [node.score for node in again] == [node.score for node in found]


def test_a_query_engine_searches_and_reranks(real_model: E5, reranker: Reranker) -> None:
    made = [TextNode(id_=str(i), text=text) for i, text in enumerate(SENTENCES[:20])]
    index = VectorStoreIndex(made, embed_model=E5Embedding(real_model))
    engine = index.as_query_engine(
        similarity_top_k=10, node_postprocessors=[E5Rerank(reranker)], llm=MockLLM()
    )
    found = [int(node.node_id) for node in engine.query(QUERIES[0]).source_nodes]
    hits = index.as_retriever(similarity_top_k=10).retrieve(QUERIES[0])
    best = reranker.rank(QUERIES[0], [hit.text for hit in hits], 2)
    assert found == [int(hits[i].node_id) for i in best.indices]


def test_callbacks_hear_of_it(reranker: Reranker) -> None:
    events = LlamaDebugHandler(print_trace_on_end=False)
    rerank = E5Rerank(reranker, callback_manager=CallbackManager([events]))
    found = rerank.postprocess_nodes(nodes(), query_str="a query")
    (event,) = events.get_event_pairs(CBEventType.RERANKING)
    assert event[0].payload[EventPayload.TOP_K] == 2
    assert event[1].payload[EventPayload.NODES] == found


def test_options_of_a_reranker(tmp_path: Path, reranker: Reranker) -> None:
    load = {"kernels": "plain", "max_length": 20}
    rerank = E5Rerank(tmp_path / "reranker", truncate="none", load_options=load)
    assert rerank.top_n == 2
    long = [NodeWithScore(node=TextNode(text="a b " * 20))]
    with pytest.raises(ValueError, match=r"pair 0 has \d+ tokens, the model takes 20"):
        rerank.postprocess_nodes(long, query_str="q")
    with pytest.raises(ValueError, match="query_bundle is None; pass query_str="):
        rerank.postprocess_nodes(long)
    with pytest.raises(TypeError, match=r"dtype cannot change it.*Reranker.from_pretrained"):
        E5Rerank(reranker, load_options={"dtype": "bfloat16"})
