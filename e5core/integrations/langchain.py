"""LangChain: its Embeddings interface. Needs langchain-core, the extra `langchain`."""

from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

from e5core.integrations import as_model
from e5core.model import E5


class E5Embeddings(Embeddings):
    """LangChain embeddings; documents are embedded as passages, a query as a query.

    >>> store = InMemoryVectorStore(E5Embeddings(model))  # doctest: +SKIP

    The interface is made for retrieval. For similarity or clustering, embed every text with
    `embed_query`.
    """

    def __init__(self, model: E5 | str | Path, *, task: str | None = None, **options: Any) -> None:
        """Wrap a model.

        model    a loaded model, a folder or a hub id
        task     the instruction for queries, which large-instruct models need
        options  for E5.from_pretrained, if `model` is a folder or a hub id
        """
        self.model = as_model(model, options)
        self.task = task

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Unit vectors [texts][hidden_size] of passages."""
        vectors: list[list[float]] = self.model.encode_passage(texts, show_progress=False).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The unit vector [hidden_size] of a query."""
        vector: list[float] = self.model.encode_query(text, task=self.task).tolist()
        return vector
