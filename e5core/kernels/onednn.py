"""oneDNN on the CPU: weights packed once, products with GELU and residual fused.

The operators are those that TorchInductor emits for a frozen model; they are private to
torch, so `unavailable` tries them before anything depends on them. A text's vector has the
same bits alone, in any batch and in any order: each row of a packed product is computed in
one way whatever the number of rows, and see cpu_attention.py.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.cpu_attention import attend
from e5core.kernels.plain import INFERENCE_ONLY, PlainKernels, text_lengths

# Rows that the packed layout is chosen for: a full batch. It is no slower for one query.
ROWS = 1024

# A reference path without vector instructions is hundreds of times slower than F.linear; a
# working one is never this much slower, on a busy machine either.
MAX_SLOWDOWN = 10


@dataclass(frozen=True)
class Packed:
    """The weights of layers that are called together, in oneDNN's layout."""

    weight: Tensor
    bias: Tensor


class OnednnKernels(PlainKernels):
    name = "onednn"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    trainable = False

    def __init__(self) -> None:
        self._packed: dict[nn.Linear, Packed] = {}
        self._scratch = torch.empty(0)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return probe(dtype)

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        bias = torch.cat([layer.bias.detach().to(dtype) for layer in layers])
        self._packed[layers[0]] = pack(self._gathered(layers, dtype), bias)
        for layer in layers:
            layer.to("meta")  # one copy in memory is enough

    def _gathered(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> Tensor:
        """The weights in one matrix of a dtype: one of them as it is, or a copy.

        All copies use the same memory. Freed between packed weights, each would leave a hole
        that the process keeps (2026-11: a third more memory for large).
        """
        weights = [layer.weight.detach() for layer in layers]
        if len(weights) == 1 and weights[0].dtype == dtype:
            return weights[0]
        rows, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        if self._scratch.numel() < rows * columns or self._scratch.dtype != dtype:
            self._scratch = torch.empty(rows * columns, dtype=dtype)
        gathered = self._scratch[: rows * columns].view(rows, columns)
        for weight, place in zip(
            weights, gathered.split([weight.shape[0] for weight in weights]), strict=True
        ):
            place.copy_(weight)
        return gathered

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        return product(x, self._packed[layers[0]], "none")

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return product(x, self._packed[layer], "gelu")

    def linear_residual_norm(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        return self.layer_norm(product(x, self._packed[layer], "add", residual), norm)

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        return attend(qkv, text_lengths(cu_seqlens, max_seqlen), self.attention_dtype(qkv.dtype))

    def attention_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The precision that attention of hidden states of a dtype may go down to."""
        return dtype


def pack(weight: Tensor, bias: Tensor) -> Packed:
    return Packed(torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), bias)


def product(x: Tensor, packed: Packed, then: str, residual: Tensor | None = None) -> Tensor:
    """x W^T + b, then "none", "gelu" (the exact one) or "add" of a residual"""
    if x.shape[0] == 1:
        # oneDNN has another routine for a single row, which adds in another order.
        doubled = None if residual is None else residual.expand(2, -1)
        return product(x.expand(2, -1), packed, then, doubled)[:1]
    linear = torch.ops.mkldnn._linear_pointwise
    output: Tensor
    if residual is None:
        output = linear(x, packed.weight, packed.bias, then, [], "none")
    else:
        output = linear.binary(x, residual, packed.weight, packed.bias, then)
    return output


@cache
def probe(dtype: torch.dtype) -> str | None:
    """Call the private operators on a small input: they must be there, right and not slow."""
    generator = torch.Generator().manual_seed(0)
    x, residual = torch.randn(2, 64, 128, generator=generator).to(dtype)
    layer, norm = nn.Linear(128, 128, dtype=dtype), nn.LayerNorm(128, dtype=dtype)
    ours = OnednnKernels()
    try:
        with torch.inference_mode():
            product = F.linear(x.double(), layer.weight.double(), layer.bias.double())
            summed = F.layer_norm(product + residual.double(), norm.normalized_shape)
            expected = torch.stack([product, F.gelu(product), summed])
            plain_seconds = fastest(lambda: F.linear(x, layer.weight, layer.bias))
            ours.take([layer], dtype)
            seconds = fastest(lambda: ours.linear(x, layer), MAX_SLOWDOWN * plain_seconds)
            found = torch.stack(
                [
                    ours.linear(x, layer),
                    ours.linear_gelu(x, layer),
                    ours.linear_residual_norm(x, layer, residual, norm, 0.0),
                ]
            )
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return f"oneDNN's packed products fail in {dtype}: {str(error).splitlines()[0]}"
    deviation = (found - expected).abs().max().item()
    if deviation > 32 * torch.finfo(dtype).eps:
        return f"oneDNN's packed products are wrong in {dtype}, by {deviation:.1g}"
    if seconds > MAX_SLOWDOWN * plain_seconds:
        return (
            f"oneDNN's packed products take {seconds / plain_seconds:.0f} times as long in {dtype}"
        )
    return None


def fastest(call: Callable[[], object], enough: float = 0.0) -> float:
    """Seconds of the fastest of a few calls, after one to warm up.

    enough  seconds at which there is no need to go on: on a busy machine threads wait for each
            other for milliseconds, in nearly all of a few calls
    """
    call()
    seconds: list[float] = []
    while len(seconds) < (50 if enough else 3) and min(seconds, default=math.inf) > enough:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
