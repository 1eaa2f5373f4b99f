"""Low-rank updates that are trained in place of linears, and merged into them at the end.

W + scale · up · down with scale = alpha / rank. Source: arXiv:2106.09685.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from e5core.checkpoint.adapters import WEIGHTS_FILE
from e5core.checkpoint.contents import ADAPTER_FILE
from e5core.checkpoint.names import tensor_names
from e5core.encoder import Encoder
from e5core.formats.files import write_json
from e5core.train.cached import draw_seed

ALPHA_OF_RANK = 2.0  # alpha is twice the rank, so the scale is 2


class LowRank(nn.Module):
    """What a matrix of so many outputs and inputs is with its update; none at the start."""

    def __init__(self, outputs: int, inputs: int, rank: int, like: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(like.new_empty(rank, inputs))
        self.up = nn.Parameter(like.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """[outputs, inputs]"""
        return weight + ALPHA_OF_RANK * (self.up @ self.down)


def add_low_rank(encoder: Encoder, rank: int, seed: int) -> None:
    """Give every linear of the layers an update, which alone is then trained."""
    encoder.requires_grad_(False)
    with torch.random.fork_rng([]):
        torch.manual_seed(draw_seed(seed, rank))
        for linear in _linears(encoder):
            update = LowRank(linear.out_features, linear.in_features, rank, linear.weight)
            parametrize.register_parametrization(linear, "weight", update)
            update.requires_grad_()


def merge_low_rank(encoder: Encoder) -> None:
    """Put the updates into the matrices; without any nothing changes."""
    for linear in _linears(encoder):
        if parametrize.is_parametrized(linear):
            parametrize.remove_parametrizations(linear, "weight")


def write_adapter(encoder: Encoder, folder: Path, base: str) -> None:
    """Write the updates alone, in the layout in which peft saves them.

    base  the model that they are for: a folder or a hub id
    """
    tensors, rank = {}, 0
    for published, ours in tensor_names(encoder.config).items():
        linear = encoder.get_submodule(ours.rpartition(".")[0])
        if ours.endswith(".weight") and parametrize.is_parametrized(linear, "weight"):
            update = _update(linear)
            rank = update.down.shape[0]
            name = f"base_model.model.{published.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"] = update.down.detach().cpu().contiguous()
            tensors[f"{name}.lora_B.weight"] = update.up.detach().cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank * ALPHA_OF_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        # A pattern, since a pooler has a linear of the name dense too.
        "target_modules": r".*layer\.\d+\..*(query|key|value|dense)",
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_FILE, config)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _update(linear: nn.Module) -> LowRank:
    update = linear.get_submodule("parametrizations.weight.0")
    assert isinstance(update, LowRank)
    return update


def _linears(encoder: Encoder) -> Iterator[nn.Linear]:
    yield from (module for module in encoder.layers.modules() if isinstance(module, nn.Linear))
