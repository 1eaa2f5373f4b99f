"""The interface of sentence-transformers, without the library: existing code changes one import.

    from e5core.integrations.sentence_transformers import CrossEncoder, SentenceTransformer

Names, shapes and types are those of sentence-transformers 6.2, whose source they were read in.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.integrations import as_model
from e5core.integrations.cross_encoder import CrossEncoder
from e5core.integrations.missing import Module, name_device, refuse_arguments
from e5core.model import E5
from e5core.texts.containers import several
from e5core.texts.cutting import cut
from e5core.texts.errors import TextError
from e5core.tokenizer import PAD
from e5core.vectors.cosine import similarity
from e5core.vectors.stack import kept

__all__ = ["CrossEncoder", "SentenceTransformer"]


class SentenceTransformer(Module):
    """An E5 model behind the methods of a SentenceTransformer.

    `encode` puts no prefix before a text unless one is asked for, as there: code that writes
    "query: " and "passage: " itself gets the same vectors. `encode_query` and `encode_document`
    put the model's own. (sentence-transformers 6.2 leaves documents without one where a folder
    calls it "passage", as E5's do.) Prompts of other names, and the one that the folder calls its
    default, are those of the folder.

    Whatever the library has and this class lacks is a TypeError that names what to use: see
    missing.py.
    """

    def __init__(
        self,
        model_name_or_path: E5 | str | Path,
        *,
        device: str | torch.device | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        cache_folder: str | Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Load a model, or take one that is loaded.

        prompts              prefixes by name, beside the model's own "query" and "document"
        default_prompt_name  the one that `encode` puts where it is given none; None takes the
                             folder's
        truncate_dim         numbers of a vector that are kept; None takes the folder's
        model_kwargs         further options of E5.from_pretrained, such as dtype
        others               refused where they ask for anything: see missing.py

        The vectors have unit length where the folder's modules.json has the step Normalize, as
        those of E5 have, and those of a loaded model; elsewhere on request.
        """
        refuse_arguments(others)
        names = ("device", "cache_dir", "revision", "local_files_only", "token", "truncate_dim")
        values = (name_device(device), cache_folder, revision, local_files_only or None, token)
        given = zip(names, (*values, truncate_dim), strict=True)
        options: dict[str, Any] = {name: value for name, value in given if value not in (None, "")}
        options |= model_kwargs or {}
        self.prompts: dict[str, str] = {}
        if isinstance(model_name_or_path, E5):
            self.model, self._normalizes = as_model(E5, model_name_or_path, options), True
        else:
            load = LoadOptions(**options)
            folder = ModelFolder.open(model_name_or_path, load)
            self.model, self._normalizes = E5.from_folder(folder, load), folder.normalizes
            self.prompts |= folder.named_prompts
            default_prompt_name = default_prompt_name or folder.default_prompt_name
        if self.model.prompts is not None:
            query, passage = self.model.prompts["query"], self.model.prompts["passage"]
            self.prompts |= {"query": query, "document": passage, "passage": passage}
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

    @property
    def truncate_dim(self) -> int | None:
        """Numbers of a vector that are kept, None for all; can be set."""
        return self.model.truncate_dim

    @truncate_dim.setter
    def truncate_dim(self, size: int | None) -> None:
        kept(size, self.model.pipeline.size)  # raises for what is none
        self.model.truncate_dim = size

    def tokenize(self, texts: Iterable[str], **others: Any) -> dict[str, Tensor]:
        """Ids of texts as the library gives them: cut, and padded to the longest.

        returns  input_ids and attention_mask, each [texts, tokens of the longest] int64
        """
        refuse_arguments(others)
        limit = self.max_seq_length
        ids = [torch.tensor(cut(self.tokenizer.encode(text), limit)) for text in several(texts)]
        padded = pad_sequence(ids, batch_first=True, padding_value=PAD)
        lengths = torch.tensor([len(text) for text in ids])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        return {"input_ids": padded, "attention_mask": mask}

    preprocess = tokenize

    def get_max_seq_length(self) -> int:
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        return self.model.dimension

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
        truncate_dim: int | None = None,
        device: Any = None,
        **others: Any,
    ) -> Any:
        """Vectors of texts, with no prefix but the one asked for, or the default prompt's.

        prompt_name  a key of `prompts`, whose value is put before every text; "query" for search
                     requests and every text of a symmetric task, "document" for what is found
        prompt       such a text itself; it counts before prompt_name
        batch_size   a pass takes at most the tokens of so many longest texts; None leaves it to
                     e5core, whose packed batches count tokens anyway
        show_progress_bar  None shows one on a terminal
        truncate_dim  numbers of a vector that are kept, before it gets unit length where the
                     model's vectors have it; None takes the model's own
        device, others  refused where they ask for anything that is not done: see missing.py

        returns  [texts, dimension] float32: an array, with convert_to_tensor a tensor on the
                 model's device, with neither a list of tensors; without the first axis for a
                 str; for no texts an empty array or tensor of the shape [0]

        Raises ValueError for an unknown prompt_name, and as E5.embed does.
        """
        refuse_arguments(others)
        self.check_device(device)
        prefix = self._prefix(prompt_name, prompt)
        budget = self.model.pipeline.budget(None)
        if batch_size is not None:
            if batch_size < 1:
                raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
            budget = min(budget, batch_size * self.max_seq_length)
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(several(sentences, "sentences"))
        vectors = self._embed(
            texts,
            prefix,
            normalize=self._normalizes or normalize_embeddings,
            truncate_dim=truncate_dim,
            max_tokens_per_batch=budget,
            show_progress=show_progress_bar,
        )
        if convert_to_tensor:
            tensor = torch.from_numpy(vectors).to(self.device)
            return tensor[0] if single else tensor if texts else tensor.new_empty(0)
        if convert_to_numpy:
            return vectors[0] if single else vectors if texts else np.array([])
        return torch.from_numpy(vectors[0]) if single else list(torch.from_numpy(vectors))

    def _embed(self, texts: list[str], prefix: str, **options: Any) -> npt.NDArray[np.float32]:
        # An item that is no text gets no prefix; `encode` refuses it and names its place.
        prefixed = [prefix + text if isinstance(text, str) else text for text in texts]
        try:
            return self.model.encode(prefixed, input_type=None, **options)
        except TextError as error:
            for index in error.indices:  # which counts the characters of the prefix too
                try:
                    self.tokenizer.encode(texts[index])
                except ValueError as fault:
                    raise TextError(f"{{}}: {fault}", index) from None
            raise

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n] float32 of row i of the one with row i of the other."""
        left, right = _rows(embeddings1), _rows(embeddings2)
        if left.shape != right.shape:
            raise ValueError(
                f"embeddings1 has the shape {list(left.shape)}, embeddings2 {list(right.shape)}; "
                "pairs need as many rows in both"
            )
        pairs = [similarity(one, other) for one, other in zip(left, right, strict=True)]
        return torch.tensor(np.array(pairs, dtype=np.float32))

    @property
    def similarity_fn_name(self) -> str:
        return "cosine"

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
