"""The step Dense of sentence-transformers: a linear layer on pooled vectors.

Source: sentence_transformers/base/modules/dense.py of sentence-transformers 6.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from e5core.checkpoint.contents import Contents
from e5core.checkpoint.headers import WEIGHTS_FILE, CheckpointError
from e5core.config import CONFIG_FILE
from e5core.formats.safetensors import open_tensors
from e5core.pooling import POOLINGS, l2_normalize

# The keys are class names of torch, as the step's config has them behind the last dot.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
    "Sigmoid": torch.sigmoid,
    "SiLU": torch.nn.functional.silu,
}
_KEYS = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
_VECTORS = ("module_input_name", "module_output_name")  # which must be the pooled vectors


@dataclass(frozen=True)
class Dense:
    """A step Dense, as its config describes it.

    folder      where its config and its weights lie
    normalized  whether a step Normalize stands before it
    """

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str
    residual: bool
    normalized: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors by their names in the file."""
        size = (self.out_features, self.in_features)
        shapes: dict[str, tuple[int, ...]] = {"linear.weight": size}
        if self.bias:
            shapes["linear.bias"] = size[:1]
        if self.residual and self.in_features != self.out_features:
            shapes["residual.weight"] = size
        return shapes

    def __str__(self) -> str:
        return f"Dense({self.in_features} to {self.out_features}, {self.activation})"

    def load(self) -> dict[str, Tensor]:
        """Its tensors in float32 or wider, by their names in the file.

        Raises FileNotFoundError if there is no safetensors file, CheckpointError if it does not
        hold what the config says, or a value that is no number.
        """
        file = self.folder / WEIGHTS_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{self.folder} has no {WEIGHTS_FILE}, and pickles such as pytorch_model.bin are "
                "never loaded; save the model anew with sentence-transformers 5 or later"
            )
        with open_tensors(file) as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != self.shapes:
            raise CheckpointError(f"{file} holds {found}, its config.json says {self.shapes}")
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise CheckpointError(
                    f"{file}: {name} is {tensor.dtype} or holds a NaN or an infinity; expected "
                    "finite floats"
                )
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            tensors[name] = tensor.to(dtype, copy=True)  # or the file would stay mapped
        return tensors


def read_dense(step: Contents, normalized: bool) -> Dense:
    """The step Dense of a folder; ValueError for what is not implemented."""
    path, config = step.folder / CONFIG_FILE, step.objects.get(CONFIG_FILE)
    if config is None:
        raise ValueError(
            f"modules.json has the step 'Dense', but there is no {path}; download the whole model "
            "again"
        )
    activation = str(config.get("activation_function", "Tanh"))
    known = activation.startswith("torch.nn.") or "." not in activation
    if not known or activation.rsplit(".", 1)[-1] not in ACTIVATIONS:
        raise ValueError(
            f"{path}: activation_function is {activation!r}, expected one of torch.nn's "
            f"{', '.join(ACTIVATIONS)}"
        )
    for key in _VECTORS:
        if config.get(key) not in (None, "sentence_embedding"):
            raise ValueError(f"{path}: {key} is {config[key]!r}, expected 'sentence_embedding'")
    if unknown := {key for key, value in config.items() if value} - _KEYS - {*_VECTORS}:
        raise ValueError(f"{path} asks for {', '.join(sorted(unknown))}, which e5core does not do")

    def size(key: str) -> int:
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise ValueError(f"{path}: {key} is {value!r}, expected a whole number from 1 on")
        return value

    return Dense(
        step.folder,
        size("in_features"),
        size("out_features"),
        config.get("bias", True) is True,
        activation.rsplit(".", 1)[-1],
        config.get("use_residual", False) is True,
        normalized,
    )


class DensePooling:
    """A pooling and the steps Dense behind it, as the pipeline's reduction.

    size  the numbers of a vector
    """

    def __init__(self, pooling: str, steps: Sequence[Dense], device: torch.device) -> None:
        self.name, self.steps = pooling, list(steps)
        self.size = self.steps[-1].out_features
        self._tensors = [
            {name: tensor.to(device) for name, tensor in step.load().items()} for step in steps
        ]

    def __str__(self) -> str:
        return " + ".join([self.name, *map(str, self.steps)])

    def __call__(self, hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
        """From token states [tokens, hidden_size] to rows [sequences, size]."""
        rows = POOLINGS[self.name](hidden_states, cu_seqlens)
        for step, tensors in zip(self.steps, self._tensors, strict=True):
            # A row at a time: products of other heights may add in another order, and a text's
            # vector must not depend on the texts beside it.
            rows = torch.stack([apply_dense(step, tensors, row) for row in rows])
        return rows


def apply_dense(step: Dense, tensors: dict[str, Tensor], row: Tensor) -> Tensor:
    """One step on a row [in_features]: [out_features], in its dtype."""
    cast = {name: tensor.to(row.dtype) for name, tensor in tensors.items()}
    if step.normalized:
        row = l2_normalize(row)
    out = torch.nn.functional.linear(row, cast["linear.weight"], cast.get("linear.bias"))
    out = ACTIVATIONS[step.activation](out)
    if not step.residual:
        return out
    matrix = cast.get("residual.weight")
    return out + (row if matrix is None else torch.nn.functional.linear(row, matrix))
