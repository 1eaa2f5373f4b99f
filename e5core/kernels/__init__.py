"""The operations that an encoder is made of, behind one small interface.

`plain` is the specification: torch operators only, obviously right. Every other back-end is
one file with the same operations, tested against it.
"""

from typing import Protocol

from torch import Tensor, nn

from e5core.kernels.plain import PlainKernels
from e5core.kernels.sdpa import SdpaKernels


class Kernels(Protocol):
    """What EncoderLayer calls. `layer` and `norm` are the modules that hold the weights.

    Axes: x and residual are [tokens, features], query, key and value are
    [tokens, heads, head_size], cu_seqlens is [texts + 1] int32 (see PackedBatch). `dropout`
    is a probability, 0.0 outside training. Nothing is computed in place.
    """

    name: str

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """x W^T + b"""

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """GELU(x W^T + b), the exact GELU with erf"""

    def linear_residual(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, dropout: float
    ) -> Tensor:
        """residual + dropout(x W^T + b)"""

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """(x - mean) / sqrt(variance + eps) · weight + bias over the last axis"""

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dropout: float,
    ) -> Tensor:
        """softmax(query key^T / sqrt(head_size)) value within each text, shaped like query

        Raises ValueError if a text is longer than max_seqlen.
        """


# In the order in which "auto" prefers them. Both run on every device and dtype of torch.
BACKENDS: dict[str, type[Kernels]] = {"sdpa": SdpaKernels, "plain": PlainKernels}


def select(name: str = "auto") -> Kernels:
    """The kernels of that name; "auto" takes the fastest that runs here.

    Raises ValueError naming the choices.
    """
    if name == "auto":
        name = next(iter(BACKENDS))
    if name not in BACKENDS:
        raise ValueError(f"kernels is {name!r}, expected 'auto' or one of {sorted(BACKENDS)}")
    return BACKENDS[name]()
