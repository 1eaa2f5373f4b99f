"""The vectors that a checked model gives to texts and to ids."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from e5core import E5, l2_normalize, pack
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.parity.published import TASK
from e5core.pooling import POOLINGS
from e5core.prompts import E5_PROMPTS

Vectors = npt.NDArray[Any]
Kind = Literal["query", "passage"]

LONGEST = 512  # tokens, also where a model takes 8,192: eager attention needs their square


def load(folder: ModelFolder, **options: Any) -> E5:
    """A model with its own prefixes, or E5's if it does not say: any serve a comparison."""
    prompts = folder.prompts or E5_PROMPTS
    return E5.from_folder(folder, LoadOptions(prompts=prompts, **options))


def task_of(model: E5, kind: Kind) -> str | None:
    return TASK if model.prompts and "{task}" in model.prompts[kind] else None


def embed(model: E5, texts: Sequence[str], kind: Kind) -> Vectors:
    """The public path from text to unit vector."""
    return model.encode(texts, input_type=kind, task=task_of(model, kind), show_progress=False)


def encode_ids(model: E5, ids: Sequence[Sequence[int]], batch_size: int) -> Vectors:
    """Unit vectors of tokenized texts in the model's precision, packed `batch_size` at a time."""
    vectors = []
    reduce = POOLINGS[model.pooling] if isinstance(model.pooling, str) else model.pooling
    with torch.inference_mode():
        for start in range(0, len(ids), batch_size):
            batch = pack(ids[start : start + batch_size], model.config)
            pooled = reduce(model.encoder(batch), batch.cu_seqlens)
            vectors.append(l2_normalize(pooled).numpy())
    return np.concatenate(vectors)
