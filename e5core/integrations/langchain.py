"""LangChain: its Embeddings interface. Needs langchain-core, the extra `langchain`."""

from pathlib import Path
from typing import Any

from e5core.integrations import as_model, extra
from e5core.model import E5
from e5core.texts.containers import one, several

with extra("langchain", "langchain_core"):
    from langchain_core.embeddings import Embeddings


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
        self.model = as_model(model, options)
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
