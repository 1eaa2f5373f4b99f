"""oneDNN on the CPU: weights prepared once, products with GELU and residual fused.

The operators are those that TorchInductor emits for a frozen model; they are private to
torch, so `unavailable` tries them before anything depends on them. A text's vector has the
same bits alone, in any batch and in any order: each row of a product is computed in one way
whatever the number of rows, and see cpu_attention.py.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from e5core.kernels import onednn_int8, probe
from e5core.kernels.cpu_attention import attend
from e5core.kernels.onednn_int8 import Int8Linear
from e5core.kernels.plain import (
    InferenceKernels,
    Layer,
    Pause,
    Prepared,
    StaysHere,
    go_on,
    text_lengths,
)
from e5core.kernels.row_counts import fill_rows, own_rows, row_count

# Rows that the layout is chosen for: a full batch. It is no slower for one query.
ROWS = 1024

# How far any number may be from float64 when the operators are tried.
LARGEST_ERROR = {
    torch.float32: 32 * torch.finfo(torch.float32).eps,
    torch.bfloat16: 32 * torch.finfo(torch.bfloat16).eps,
    torch.int8: 0.1,
}


@dataclass(frozen=True)
class FloatLinear(StaysHere):
    """The weights of linears that are multiplied together, in oneDNN's layout."""

    weight: Tensor
    bias: Tensor

    def product(self, x: Tensor, then: str = "none", residual: Tensor | None = None) -> Tensor:
        """x W^T + b, then "none", "gelu" (the exact one) or "add" of a residual"""
        # oneDNN has another routine for a single row, which adds in another order.
        rows = max(2, row_count(x.shape[0]))
        linear = torch.ops.mkldnn._linear_pointwise
        output: Tensor
        if residual is None:
            output = linear(fill_rows(x, rows), self.weight, self.bias, then, [], "none")
        else:
            filled = fill_rows(x, rows), fill_rows(residual, rows)
            output = linear.binary(*filled, self.weight, self.bias, then)
        return own_rows(output, x)


class OnednnKernels(InferenceKernels):
    name = "onednn"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.int8)

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self._scratch = torch.empty(0)

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return _fault(dtype)

    def prepare(self, *linears: nn.Linear) -> Prepared:
        if self.dtype == torch.int8:
            return onednn_int8.prepare(linears, ROWS)
        bias = torch.cat([linear.bias.detach().to(self.dtype) for linear in linears])
        weight = torch.ops.mkldnn._reorder_linear_weight(self._gathered(linears), ROWS)
        return FloatLinear(weight, bias)

    def _gathered(self, linears: tuple[nn.Linear, ...]) -> Tensor:
        """The weights in one matrix of a dtype: one of them as it is, or a copy.

        All copies use the same memory. Freed between prepared weights, each would leave a hole
        that the process keeps (2026-11: a third more memory for large).
        """
        weights = [linear.weight.detach() for linear in linears]
        if len(weights) == 1 and weights[0].dtype == self.dtype:
            return weights[0]
        rows, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
        if self._scratch.numel() < rows * columns:
            self._scratch = torch.empty(rows * columns, dtype=self.dtype)
        gathered = self._scratch[: rows * columns].view(rows, columns)
        for weight, place in zip(
            weights, gathered.split([weight.shape[0] for weight in weights]), strict=True
        ):
            place.copy_(weight)
        return gathered

    def linear(self, x: Tensor, weights: "FloatLinear | Int8Linear") -> Tensor:
        return weights.product(x)

    def linear_gelu(self, x: Tensor, weights: "FloatLinear | Int8Linear") -> Tensor:
        return weights.product(x, "gelu")

    def infer_linear_residual_norm(
        self,
        x: Tensor,
        weights: "FloatLinear | Int8Linear",
        residual: Tensor,
        norm: nn.LayerNorm,
    ) -> Tensor:
        return self.layer_norm(weights.product(x, "add", residual), norm)

    def infer_attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        # In int8 attention is in bfloat16 where the CPU has it: its rounding is small beside
        # that of int8.
        in_bfloat16 = self.dtype == torch.int8 and _fault(torch.bfloat16) is None
        lengths = text_lengths(cu_seqlens, max_seqlen)
        return attend(qkv, lengths, torch.bfloat16 if in_bfloat16 else qkv.dtype)

    def stack(self, layers: Sequence[Layer]) -> "FilledStack":
        return FilledStack(layers, self)


class FilledStack:
    """All layers on hidden states that are filled up once, so that no product has to copy them."""

    def __init__(self, layers: Sequence[Layer], kernels: OnednnKernels) -> None:
        self._layers = layers
        self._kernels = kernels

    def __call__(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, pause: Pause = go_on
    ) -> Tensor:
        """The last hidden states [tokens, hidden_size] of the first ones."""
        filled = fill_rows(x, row_count(x.shape[0]))
        for layer in self._layers:
            filled = layer(filled, cu_seqlens, max_seqlen, self._kernels)
            pause()
        return own_rows(filled, x)


def has_amx() -> bool:
    """Whether the CPU and the system offer AMX, Intel's products of tiles, to this process."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


@cache
def _fault(dtype: torch.dtype) -> str | None:
    kernels = OnednnKernels(dtype)
    reason = _lacking(dtype)
    return reason or probe.fault(kernels, torch.device("cpu"), LARGEST_ERROR[dtype])


def _lacking(dtype: torch.dtype) -> str | None:
    """What this machine lacks for products in a dtype that are no plain loops, as a sentence.

    oneDNN computes everything everywhere, but without the instructions below in loops that take
    hundreds of times as long. To time them would be to ask how busy the machine is. Source:
    "CPU Dispatcher Control" and "Data Types" in the developer guide of oneDNN 3.12.
    """
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    if platform.machine() in ("x86_64", "AMD64"):
        if not torch.cpu._is_avx2_supported():
            return "this CPU has no AVX2"
    elif dtype == torch.int8:
        return f"oneDNN multiplies int8 fast on x86 alone, and this CPU is {platform.machine()}"
    elif not getattr(torch.backends.mkldnn, "is_acl_available", lambda: False)():
        return "this torch was built without the Arm Compute Library"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no fast products in bfloat16"
    return None
