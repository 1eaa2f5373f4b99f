"""LangChain: its interfaces of embeddings and of what compresses, here reorders, documents.

Needs langchain-core, the extra `langchain`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5core.integrations import as_model, extra
from e5core.model import E5
from e5core.reranker import Reranker, TruncatePair
from e5core.texts.containers import one, several

with extra("langchain", "langchain_core"):
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import PrivateAttr


class E5Embeddings(Embeddings):
    """LangChain embeddings; documents are embedded as passages, a query as a query.

    >>> store = InMemoryVectorStore(E5Embeddings(model))  # doctest: +SKIP

    The interface is made for retrieval. For similarity or clustering, embed every text with
    `embed_query`.
    """

    def __init__(
        self,
        model: E5 | str | Path,
        *,
        task: str | None = None,
        model_name: str | None = None,
        **options: Any,
    ) -> None:
        """Wrap a model.

        model       a loaded model, a folder or a hub id
        task        the instruction for queries, which large-instruct models need
        model_name  what caches tell models apart by; by default the folder or the hub id
        options     for E5.from_pretrained, if `model` is a folder or a hub id
        """
        self.model = as_model(E5, model, options)
        self.task = task
        self._model_name = str(model) if not (model_name or isinstance(model, E5)) else model_name

    @property
    def model_name(self) -> str:
        """The namespace for a `CacheBackedEmbeddings`.

        Raises AttributeError for a loaded model that was given none: it does not know where it
        came from, and two models must not share a cache.
        """
        if self._model_name is None:
            raise AttributeError(
                "a loaded model has no name that a cache could tell it from others by; pass "
                'E5Embeddings(model, model_name="...")'
            )
        return self._model_name

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors [texts][hidden_size] of passages."""
        if isinstance(texts, str):
            raise TypeError("texts is one str, expected several texts; pass [text]")
        passages = several(texts)
        found: list[list[float]] = self.model.encode_passage(passages, show_progress=False).tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """The unit vector [hidden_size] of a query."""
        vector: list[float] = self.model.encode_query(one(text), task=self.task).tolist()
        return vector


class E5Reranker(BaseDocumentCompressor):
    """The documents that a cross-encoder scores highest, best first.

    >>> reranker.compress_documents(store.similarity_search(query, k=100), query)  # doctest: +SKIP

    Documents are copies, whose metadata holds the logit as "relevance_score". It orders the
    documents of one query and means nothing beside those of another.
    """

    top_n: int | None = 3
    truncate: TruncatePair = "passage"
    normalize: bool = False
    _reranker: Reranker = PrivateAttr()

    def __init__(
        self,
        model: Reranker | str | Path,
        *,
        top_n: int | None = 3,
        truncate: TruncatePair = "passage",
        normalize: bool = False,
        **options: Any,
    ) -> None:
        """Wrap a cross-encoder.

        model      a loaded Reranker, a folder or a hub id
        top_n      documents to keep, as LangChain's own rerankers have it; None keeps all
        truncate   for Reranker.compute: "passage", "longest" or "none"
        normalize  give the sigmoid of the logits, from 0 to 1
        options    for Reranker.from_pretrained, if `model` is a folder or a hub id
        """
        super().__init__(top_n=top_n, truncate=truncate, normalize=normalize)
        self._reranker = as_model(Reranker, model, options)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> list[Document]:
        """The best documents, in the order of their scores; equal ones as they came."""
        documents = list(documents)
        best = self._reranker.rank(
            query,
            [document.page_content for document in documents],
            self.top_n,
            truncate=self.truncate,
            normalize=self.normalize,
            show_progress=False,
        )
        return [
            documents[index].model_copy(
                update={"metadata": {**documents[index].metadata, "relevance_score": float(score)}}
            )
            for index, score in zip(best.indices, best.scores, strict=True)
        ]
