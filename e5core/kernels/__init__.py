"""The operations that an encoder is made of, behind one small interface.

`plain` is the specification: torch operators only, obviously right. Every other back-end is
one file with the same operations, tested against it.
"""

import warnings
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn

from e5core.kernels.onednn import OnednnKernels
from e5core.kernels.plain import PlainKernels
from e5core.kernels.sdpa import SdpaKernels


class Kernels(Protocol):
    """What EncoderLayer calls. `layer` and `norm` are the modules that hold the weights.

    Axes: x and residual are [tokens, features], qkv is [tokens, 3, heads, head_size] with
    query, key and value side by side, cu_seqlens is [texts + 1] int32 (see PackedBatch).
    `dropout` is a probability, 0.0 outside training. Nothing is computed in place.

    name       what `select` knows it by
    devices    the types of device it is made for
    trainable  whether gradients flow; if not, the object serves one encoder, whose weights it
               takes over
    """

    name: str
    devices: tuple[str, ...]
    trainable: bool

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why these kernels cannot run there, as a sentence; None if they can."""

    def take(self, *layers: nn.Linear) -> None:
        """Before the first forward: layers that `linear` will get together, or one alone.

        A back-end with a layout of its own keeps the weights in it; the modules hold none
        afterwards.
        """

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        """x W^T + b of all layers, side by side"""

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """GELU(x W^T + b), the exact GELU with erf"""

    def linear_residual(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, dropout: float
    ) -> Tensor:
        """residual + dropout(x W^T + b)"""

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """(x - mean) / sqrt(variance + eps) · weight + bias over the last axis"""

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        """softmax(query key^T / sqrt(head_size)) value within each text

        returns [tokens, heads, head_size]. Raises ValueError if a text is longer than max_seqlen.
        """


# In the order in which "auto" prefers them.
BACKENDS: dict[str, type[Kernels]] = {
    "onednn": OnednnKernels,
    "sdpa": SdpaKernels,
    "plain": PlainKernels,
}


def select(
    name: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    training: bool = False,
) -> Kernels:
    """The kernels of that name; "auto" takes the fastest that runs there.

    training  whether gradients are wanted

    Raises ValueError naming the choices, or why the kernels of that name cannot run.
    """
    device = torch.device(device)
    if name != "auto":
        if name not in BACKENDS:
            raise ValueError(f"kernels is {name!r}, expected 'auto' or one of {sorted(BACKENDS)}")
        if reason := BACKENDS[name].unavailable(device, dtype):
            raise ValueError(f"kernels {name!r} cannot be used: {reason}")
        return BACKENDS[name]()
    reasons: list[str] = []
    for backend in BACKENDS.values():
        if device.type not in backend.devices or (training and not backend.trainable):
            continue
        reason = backend.unavailable(device, dtype)
        if reason is None:
            if reasons:
                _say_once(f"e5core runs on its {backend.name} kernels: {'; '.join(reasons)}")
            return backend()
        reasons.append(f"{backend.name} cannot be used: {reason}")
    raise ValueError(f"no kernels run in {dtype} on {device}: {'; '.join(reasons)}")


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
