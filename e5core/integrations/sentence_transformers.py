"""The interface of sentence-transformers, without the library: existing code changes one import.

    from e5core.integrations.sentence_transformers import SentenceTransformer

Names, shapes and types are those of sentence-transformers 6.2, whose source they were read in.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.integrations import as_model
from e5core.model import E5
from e5core.vectors.cosine import similarity


class SentenceTransformer:
    """An E5 model behind the methods of a SentenceTransformer.

    `encode` puts no prefix before a text unless one is asked for, as there: code that writes
    "query: " and "passage: " itself gets the same vectors. `encode_query` and `encode_document`
    put the model's own. (sentence-transformers 6.2 leaves documents without one where a folder
    calls it "passage", as E5's do.)

    Arguments that are missing here, such as `precision` and `truncate_dim`, are a TypeError.
    """

    def __init__(
        self,
        model_name_or_path: E5 | str | Path,
        *,
        device: str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Load a model, or take one that is loaded.

        prompts              prefixes by name, beside the model's own "query" and "document"
        default_prompt_name  the one that `encode` puts where it is given none
        model_kwargs         further options of E5.from_pretrained, such as dtype

        The vectors have unit length where the folder's modules.json has the step Normalize, as
        those of E5 have, and those of a loaded model; elsewhere on request.
        """
        names = ("device", "cache_dir", "revision", "local_files_only", "token")
        values = (device, cache_folder, revision, local_files_only, token)
        given = zip(names, values, strict=True)
        options: dict[str, Any] = {name: value for name, value in given if value}
        options |= model_kwargs or {}
        if isinstance(model_name_or_path, E5):
            self.model, self._normalizes = as_model(model_name_or_path, options), True
        else:
            load = LoadOptions(**options)
            folder = ModelFolder.open(model_name_or_path, load)
            self.model, self._normalizes = E5.from_folder(folder, load), folder.normalizes
        self.prompts: dict[str, str] = {}
        if self.model.prompts is not None:
            query, passage = self.model.prompts["query"], self.model.prompts["passage"]
            self.prompts = {"query": query, "document": passage, "passage": passage}
        self.prompts |= prompts or {}
        self.default_prompt_name = default_prompt_name
        if default_prompt_name is not None:
            self._named_prompt(default_prompt_name)

    @property
    def device(self) -> torch.device:
        return self.model.encoder.device

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens that a text is cut at, `<s>` and `</s>` included; can be set."""
        return self.model.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        limit = self.model.config.max_length
        if not 3 <= tokens <= limit:
            raise ValueError(f"max_seq_length is {tokens}, this model takes 3 to {limit}")
        self.model.max_length = tokens

    def get_max_seq_length(self) -> int:
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        return self.model.config.hidden_size

    def get_sentence_embedding_dimension(self) -> int:
        return self.get_embedding_dimension()

    def encode_query(self, sentences: str | Iterable[str], *args: Any, **options: Any) -> Any:
        """`encode` with the prefix of queries, unless another prompt is given."""
        return self._encode_as("query", sentences, *args, **options)

    def encode_document(self, sentences: str | Iterable[str], *args: Any, **options: Any) -> Any:
        """`encode` with the prefix of passages, unless another prompt is given."""
        return self._encode_as("document", sentences, *args, **options)

    def _encode_as(
        self,
        kind: str,
        sentences: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        if prompt_name is None and prompt is None:
            prompt_name = kind
        return self.encode(sentences, prompt_name, prompt, *args, **options)

    def encode(
        self,
        sentences: str | Iterable[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
    ) -> Any:
        """Vectors of texts, with no prefix but the one asked for.

        prompt_name  a key of `prompts`, whose value is put before every text; "query" for search
                     requests and every text of a symmetric task, "document" for what is found
        prompt       such a text itself; it counts before prompt_name
        batch_size   a pass takes at most the tokens of so many longest texts; None leaves it to
                     e5core, whose packed batches count tokens anyway
        show_progress_bar  None shows one on a terminal

        returns  [texts, hidden_size] float32: an array, with convert_to_tensor a tensor on the
                 model's device, with neither a list of tensors; without the first axis for a
                 str; for no texts an empty array or tensor of the shape [0]

        Raises ValueError for an unknown prompt_name, and as E5.embed does.
        """
        prefix = self._prefix(prompt_name, prompt)
        budget = self.model.pipeline.budget(None)
        if batch_size is not None:
            if batch_size < 1:
                raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
            budget = min(budget, batch_size * self.max_seq_length)
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        vectors = self.model.encode(
            # What is no text is named by its place further down.
            [prefix + text if isinstance(text, str) else text for text in texts],
            input_type=None,
            normalize=self._normalizes or normalize_embeddings,
            max_tokens_per_batch=budget,
            show_progress=show_progress_bar,
        )
        if convert_to_tensor:
            tensor = torch.from_numpy(vectors).to(self.device)
            return tensor[0] if single else tensor if texts else tensor.new_empty(0)
        if convert_to_numpy:
            return vectors[0] if single else vectors if texts else np.array([])
        return torch.from_numpy(vectors[0]) if single else list(torch.from_numpy(vectors))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n, m] float32 of two arrays or tensors [n, hidden_size], [m, hidden_size]."""
        return torch.from_numpy(similarity(_rows(embeddings1), _rows(embeddings2)))

    def _prefix(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = self.default_prompt_name if prompt_name is None else prompt_name
        return "" if name is None else self._named_prompt(name)

    def _named_prompt(self, name: str) -> str:
        if name not in self.prompts:
            raise ValueError(
                f"there is no prompt named {name!r}, the names are {sorted(self.prompts)}; pass "
                f"prompts={{{name!r}: ...}} when loading, or prompt= here"
            )
        if "{task}" in self.prompts[name]:
            filled = self.prompts[name].replace("{task}", "what the query is for")
            raise ValueError(
                f"the prompt {name!r} starts with an instruction; pass it, as prompt={filled!r}"
            )
        return self.prompts[name]


def _rows(vectors: Any) -> npt.NDArray[Any]:
    """[n, hidden_size] from an array, a tensor, or a list of either; one vector is a row."""
    if isinstance(vectors, list) and vectors and isinstance(vectors[0], Tensor):
        vectors = torch.stack(vectors)
    if isinstance(vectors, Tensor):
        vectors = vectors.detach().cpu().float().numpy()
    return np.atleast_2d(np.asarray(vectors))
