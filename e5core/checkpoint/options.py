"""The options that everything takes which loads a model: listed here and nowhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

# The names of the precisions that a model is loaded in.
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}
AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Where a model comes from and what it runs on and in.

    revision    branch, tag or commit on the hub
    cache_dir   in place of huggingface_hub's cache
    token       the hub's access token, for private and gated models
    local_files_only  never ask the hub, use its cache
    dtype       of weights and arithmetic: "float32", "bfloat16", "float16", "float64", or "int8"
                (CPU) for linear layers in int8 with float32 between them, "float8" (NVIDIA GPU
                from Ada on) with bfloat16; "auto" is float32, and int8 for a folder that was
                converted to it
    device      None takes the GPU if there is one
    kernels     "auto" for the fastest that run, or a name in kernels.BY_NAME; "sdpa" and
                "plain" leave the encoder trainable
    prompts     "e5", "e5-instruct", "none" or a mapping, in place of the model's own
    max_length  tokens to cut texts at, in place of the model's own limit
    truncate_dim  numbers of a vector that are kept, before it gets unit length; None for all, or
                as many as the model's files say
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    token: str | None = None
    local_files_only: bool = False
    dtype: str | torch.dtype = "auto"
    device: str | torch.device | None = None
    kernels: str = "auto"
    prompts: str | Mapping[str, str] | None = None
    max_length: int | None = None
    truncate_dim: int | None = None

    def for_another(self) -> "LoadOptions":
        """Those for a second model, which has a revision, prompts and limits of its own."""
        return replace(self, revision=None, prompts=None, max_length=None, truncate_dim=None)
