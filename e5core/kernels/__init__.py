"""The operations that an encoder is made of, behind one small interface.

`plain` is the specification: torch operators only, obviously right. Every other back-end is
one file with the same operations, tested against it.
"""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from e5core.kernels.cuda.operations import CudaKernels
from e5core.kernels.native import NativeInt8Kernels, NativeKernels
from e5core.kernels.onednn import OnednnKernels
from e5core.kernels.onednn_int8 import Int8Kernels
from e5core.kernels.plain import PlainKernels
from e5core.kernels.sdpa import SdpaKernels

if TYPE_CHECKING:
    from e5core.encoder import EncoderLayer


class Kernels(Protocol):
    """What Encoder and its parts call. `layer` and `norm` are the modules that hold the weights.

    Axes: x and residual are [tokens, features], qkv is [tokens, 3, heads, head_size] with
    query, key and value side by side, cu_seqlens is [texts + 1] int32 (see PackedBatch).
    `dropout` is a probability, 0.0 outside training. Nothing is computed in place.

    name       what `select` knows it by
    devices    the types of device it is made for
    dtypes     the precisions it is made for; torch.int8 stands for weights and activations in
               int8 with float32 between the layers
    trainable  whether gradients flow; if not, the object serves one encoder, whose weights it
               takes over
    optional   whether "auto" passes over them in silence where they do not run, because nothing
               is wrong then: the CPU is another, or no compiler was there
    """

    name: str
    devices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    trainable: bool
    optional: bool

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why they do not run here on a device and in a dtype they are made for, as a sentence;
        None if they do."""

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        """Before the first forward: layers that `linear` will get together, or one alone.

        Leaves them in `dtype`, or keeps the weights in a layout of its own; then the modules
        hold none afterwards.
        """

    def embed(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        norm: nn.LayerNorm,
    ) -> Tensor:
        """layer_norm(word[input_ids] + token_type[0] + position[position_ids])

        ids are [tokens] int64, tables [rows, hidden_size]; computed and returned in norm's dtype
        """

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        """x W^T + b of all layers, side by side"""

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """GELU(x W^T + b), the exact GELU with erf"""

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """(x - mean) / sqrt(variance + eps) · weight + bias over the last axis"""

    def linear_residual_norm(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        """layer_norm(residual + dropout(x W^T + b))"""

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        """softmax(query key^T / sqrt(head_size)) value within each text

        returns [tokens, heads, head_size]. Raises ValueError if a text is longer than max_seqlen.
        """

    def layers(
        self, x: Tensor, layers: Sequence["EncoderLayer"], cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        """x [tokens, hidden_size] through layers that the kernels have taken, one after another

        Kernels that do it in one step of their own do not call the modules, nor their hooks.
        """


# In the order in which "auto" prefers them.
BACKENDS: dict[str, type[Kernels]] = {
    "cuda": CudaKernels,
    "native": NativeKernels,
    "native-int8": NativeInt8Kernels,
    "int8": Int8Kernels,
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
        if reason := why_not(BACKENDS[name], device, dtype):
            raise ValueError(f"kernels {name!r} cannot be used: {reason}")
        return BACKENDS[name]()
    reasons: list[str] = []
    for backend in BACKENDS.values():
        if not made_for(backend, device, dtype) or (training and not backend.trainable):
            continue
        reason = backend.unavailable(device, dtype)
        if reason is None:
            if reasons:
                _say_once(f"e5core runs on its {backend.name} kernels: {'; '.join(reasons)}")
            return backend()
        if not backend.optional:
            reasons.append(f"{backend.name} cannot be used: {reason}")
    raise ValueError(
        f"no kernels run in {_word(dtype)} on {device}{': ' if reasons else ''}{'; '.join(reasons)}"
    )


def why_not(backend: type[Kernels], device: torch.device, dtype: torch.dtype) -> str | None:
    """Why kernels do not run on a device in a dtype, as a sentence; None if they do."""
    if made_for(backend, device, dtype):
        return backend.unavailable(device, dtype)
    return (
        f"they are for {' and '.join(map(_word, backend.dtypes))} on {'/'.join(backend.devices)}, "
        f"not for {_word(dtype)} on {device}"
    )


def made_for(backend: type[Kernels], device: torch.device, dtype: torch.dtype) -> bool:
    return device.type in backend.devices and dtype in backend.dtypes


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
