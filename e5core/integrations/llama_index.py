"""LlamaIndex: its interfaces of embeddings and of what reorders nodes.

Needs llama-index-core, the extra `llama-index`.
"""

import asyncio
from pathlib import Path
from typing import Any

from e5core.integrations import as_model, extra
from e5core.model import E5
from e5core.reranker import Reranker, TruncatePair
from e5core.texts.containers import one, several

with extra("llama-index", "llama_index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

# How many texts LlamaIndex hands over at a time. Its own default of 10 leaves packed batches half
# empty. A larger number costs no memory, because e5core cuts batches by tokens.
EMBED_BATCH_SIZE = 512

_RETRIEVAL = "retrieval_score"  # where LlamaIndex's own rerankers keep it


class E5Embedding(BaseEmbedding):
    """LlamaIndex embeddings; nodes and texts are embedded as passages, a query as a query.

    >>> Settings.embed_model = E5Embedding("intfloat/multilingual-e5-small")  # doctest: +SKIP

    The interface is made for retrieval. For similarity or clustering, embed every text with
    `get_query_embedding`.
    """

    task: str | None = None
    _model: E5 = PrivateAttr()

    def __init__(
        self,
        model: E5 | str | Path,
        *,
        task: str | None = None,
        embed_batch_size: int = EMBED_BATCH_SIZE,
        load_options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Wrap a model.

        model         a loaded model, a folder or a hub id
        task          the instruction for queries, which large-instruct models need
        load_options  for E5.from_pretrained, if `model` is a folder or a hub id
        fields        for BaseEmbedding, such as num_workers or embeddings_cache
        """
        loaded = as_model(E5, model, load_options or {})
        # Traces and caches show this name. A loaded model does not know where it came from.
        name = "e5core" if isinstance(model, E5) else str(model)
        fields.setdefault("model_name", name)
        super().__init__(task=task, embed_batch_size=embed_batch_size, **fields)
        self._model = loaded

    @classmethod
    def class_name(cls) -> str:
        return "E5Embedding"

    # LlamaIndex takes lists apart before it hands them over; anything else would be misread there.

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **options: Any
    ) -> list[list[float]]:
        """Vectors of passages; TypeError for what holds no texts in an order."""
        vectors: list[list[float]] = super().get_text_embedding_batch(
            _list(texts), show_progress, **options
        )
        return vectors

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **options: Any
    ) -> list[list[float]]:
        vectors: list[list[float]] = await super().aget_text_embedding_batch(
            _list(texts), show_progress, **options
        )
        return vectors

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._model.encode_query(one(query, "query"), task=self.task).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([one(text)])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors = self._model.encode_passage(texts, show_progress=False)
        nested: list[list[float]] = vectors.tolist()
        return nested

    # These work in a thread, so that the event loop is free meanwhile.

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


def _list(texts: Any) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts is one str, expected several texts; pass [text]")
    return list(several(texts))


class E5Rerank(BaseNodePostprocessor):
    """The nodes that a cross-encoder scores highest, best first, with their logits as scores.

    >>> index.as_query_engine(node_postprocessors=[E5Rerank(model, top_n=3)])  # doctest: +SKIP

    It reads of a node what an embedding model would read, its metadata among it, as LlamaIndex's
    own rerankers do.
    """

    top_n: int | None = 2
    keep_retrieval_score: bool = False
    truncate: TruncatePair = "passage"
    normalize: bool = False
    _reranker: Reranker = PrivateAttr()
    _name: str = PrivateAttr()

    def __init__(
        self,
        model: Reranker | str | Path,
        *,
        top_n: int | None = 2,
        keep_retrieval_score: bool = False,
        truncate: TruncatePair = "passage",
        normalize: bool = False,
        load_options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Wrap a cross-encoder.

        model      a loaded Reranker, a folder or a hub id
        top_n      nodes to keep, as LlamaIndex's SentenceTransformerRerank has it; None keeps all
        keep_retrieval_score  put the retriever's score into the metadata of a copy of the node,
                   as "retrieval_score", which no model is shown
        truncate   for Reranker.compute: "passage", "longest" or "none"
        normalize  give the sigmoid of the logits, from 0 to 1
        load_options  for Reranker.from_pretrained, if `model` is a folder or a hub id
        fields     for BaseNodePostprocessor, such as callback_manager
        """
        super().__init__(
            top_n=top_n,
            keep_retrieval_score=keep_retrieval_score,
            truncate=truncate,
            normalize=normalize,
            **fields,
        )
        self._reranker = as_model(Reranker, model, load_options or {})
        self._name = "e5core" if isinstance(model, Reranker) else str(model)

    @classmethod
    def class_name(cls) -> str:
        return "E5Rerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("query_bundle is None; pass query_str= or query_bundle=")
        what = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self._name,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=what) as event:
            best = self._reranker.rank(
                query_bundle.query_str,
                [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes],
                self.top_n,
                truncate=self.truncate,
                normalize=self.normalize,
                show_progress=False,
            )
            found = [
                self._scored(nodes[index], float(score))
                for index, score in zip(best.indices, best.scores, strict=True)
            ]
            event.on_end(payload={EventPayload.NODES: found})
        return found

    def _scored(self, found: NodeWithScore, score: float) -> NodeWithScore:
        """The node with its new score; the caller's own stays as it is."""
        node = found.node
        if self.keep_retrieval_score:
            hidden, name = (
                {"excluded_embed_metadata_keys", "excluded_llm_metadata_keys"},
                _RETRIEVAL,
            )
            changes = {key: [*getattr(node, key), name] for key in hidden}
            node = node.model_copy(
                update={**changes, "metadata": {**node.metadata, name: found.score}}
            )
        return NodeWithScore(node=node, score=score)
