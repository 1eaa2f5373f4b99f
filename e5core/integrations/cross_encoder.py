"""The interface of sentence-transformers' CrossEncoder, without the library.

    from e5core.integrations.sentence_transformers import CrossEncoder

Names, shapes and types are those of sentence-transformers 6.2, whose source they were read in.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.integrations import as_model
from e5core.integrations.missing import (
    CROSS_ENCODER_ARGUMENTS,
    CROSS_ENCODER_METHODS,
    Module,
    name_device,
    refuse_arguments,
)
from e5core.reranker import Reranker
from e5core.texts.containers import several
from e5core.texts.pairs import PAIR_SPECIALS

Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Activation] = {
    "Sigmoid": torch.nn.Sigmoid(),
    "Identity": torch.nn.Identity(),
}
_refuse = partial(refuse_arguments, owner="CrossEncoder", known=CROSS_ENCODER_ARGUMENTS)


class CrossEncoder(Module):
    """A reranker behind the methods of a CrossEncoder.

    As there, `predict` and `rank` give the sigmoid of the logits, unless the folder names another
    activation, as that of cross-encoder/mmarco-mMiniLMv2-L12-H384-v1 does. With
    activation_fn=torch.nn.Identity() they give the logits. Pairs that are too long are cut
    "longest_first", as there.

    In float32 the sigmoid of many logits is 1. `rank` orders these by their logits; the library
    leaves them in the order of the documents.
    """

    ways: ClassVar[Mapping[str, str]] = CROSS_ENCODER_METHODS

    def __init__(
        self,
        model_name_or_path: Reranker | str | Path,
        *,
        device: str | torch.device | None = None,
        cache_folder: str | Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        **others: Any,
    ) -> None:
        """Load a model, or take one that is loaded.

        max_length     tokens that a pair is cut at, in place of the model's own limit
        activation_fn  applied to logits [pairs, 1], in place of the folder's; of a loaded model
                       the sigmoid
        model_kwargs   further options of Reranker.from_pretrained, such as dtype
        others         refused where they ask for anything: see missing.py
        """
        _refuse(others)
        names = ("device", "cache_dir", "revision", "local_files_only", "token", "max_length")
        values = (name_device(device), cache_folder, revision, local_files_only, token, max_length)
        given = zip(names, values, strict=True)
        options: dict[str, Any] = {name: value for name, value in given if value}
        options |= model_kwargs or {}
        if isinstance(model_name_or_path, (str, Path)):
            load = LoadOptions(**options)
            folder = ModelFolder.open(model_name_or_path, load)
            self.activation_fn = activation_fn or _activation(folder.activation)
            self.model = Reranker.from_folder(folder, load)
        else:
            self.activation_fn = activation_fn or _activation(None)
            self.model = as_model(Reranker, model_name_or_path, options)

    num_labels = 1

    @property
    def device(self) -> torch.device:
        return self.model.encoder.device

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens that a pair is cut at, four special ones included; can be set."""
        return self.model.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int) -> None:
        least, limit = PAIR_SPECIALS + 2, self.model.config.max_length
        if not least <= tokens <= limit:
            raise ValueError(f"max_seq_length is {tokens}, this model takes {least} to {limit}")
        self.model.max_length = tokens

    max_length = max_seq_length  # its name before release 6

    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        **others: Any,
    ) -> Any:
        """Scores of pairs (query, passage).

        inputs         several pairs, or one
        batch_size     a pass takes at most the tokens of so many longest pairs; None leaves it to
                       e5core, whose packed batches count tokens anyway
        activation_fn  applied to logits [pairs, 1], in place of the model's own
        others         refused where they ask for anything that is not done: see missing.py

        returns  [pairs] float32: an array, with convert_to_tensor a tensor on the model's device,
                 with neither a list of tensors; without the axis for a single pair; for no pairs
                 an empty array or tensor of the shape [0]

        Raises TypeError and ValueError as Reranker.compute does.
        """
        inputs = others.pop("sentences", None) if inputs is None else inputs  # its older name
        _refuse(others | {"prompt_name": prompt_name, "prompt": prompt})
        pairs, single = _pairs(inputs)
        logits = self._logits(pairs, batch_size, show_progress_bar, device)
        scores = (activation_fn or self.activation_fn)(logits)
        scores = scores.squeeze(-1) if scores.ndim > 1 else scores
        if convert_to_tensor:
            return scores[0] if single else scores
        if convert_to_numpy:
            array = scores.float().cpu().numpy() if pairs else np.array([])
            return array[0] if single else array
        return scores[0] if single else list(scores)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        device: Any = None,
        **others: Any,
    ) -> list[dict[str, Any]]:
        """Documents in the order of their scores, best first, each as a dict.

        returns  dicts of "corpus_id", the place among the documents, "score", and with
                 return_documents "text"; `top_k` of them, all if it is None
        """
        _refuse(others | {"prompt_name": prompt_name, "prompt": prompt})
        texts = _list(documents, "documents")
        pairs = [(query, text) for text in texts]
        logits = self._logits(pairs, batch_size, show_progress_bar, device)
        scores = (activation_fn or self.activation_fn)(logits).flatten().tolist()
        keys = list(zip(scores, logits.flatten().tolist(), strict=True))
        best = sorted(range(len(texts)), key=keys.__getitem__, reverse=True)[:top_k]
        more = [{"text": texts[i]} if return_documents else {} for i in best]
        return [
            {"corpus_id": i, "score": scores[i], **text} for i, text in zip(best, more, strict=True)
        ]

    def _logits(
        self, pairs: list[Any], batch_size: int | None, show_progress: bool | None, device: Any
    ) -> Tensor:
        """Logits [pairs, 1] float32 on the model's device."""
        self.check_device(device)
        budget = self.model.pipeline.budget(None)
        if batch_size is not None:
            if batch_size < 1:
                raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
            budget = min(budget, batch_size * self.max_seq_length)
        scores = self.model.score_pairs(
            pairs, truncate="longest", max_tokens_per_batch=budget, show_progress=show_progress
        )
        return torch.from_numpy(scores).to(self.device)[:, None]


def _activation(named: str | None) -> Activation:
    """The activation of that name, which is a class of torch by its path; None: the sigmoid."""
    kind = "Sigmoid" if named is None else named.rpartition(".")[2]
    if kind not in _ACTIVATIONS or not (named or "torch.").startswith("torch."):
        raise ValueError(
            f"the folder names the activation {named!r}, expected one of torch.nn's "
            f"{' or '.join(_ACTIVATIONS)}; pass activation_fn="
        )
    return _ACTIVATIONS[kind]


def _pairs(inputs: Any) -> tuple[list[Any], bool]:
    """Pairs, and whether a single one was meant; what is told apart as the library does it."""
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()
    if isinstance(inputs, (list, tuple)) and inputs and not isinstance(inputs[0], (list, tuple)):
        return [inputs], True
    return _list(inputs, "inputs"), False


def _list(texts: Any, name: str) -> list[Any]:
    if isinstance(texts, str):
        raise TypeError(f"{name} is one str, expected several; pass them in a list")
    return list(several(texts, name))
