"""An NVIDIA GPU in bfloat16, float16 and float8: cuBLAS, and kernels in Triton over packed texts.

Without Triton torch does the same: FlashAttention 2 where the GPU has it, else fused attention over
groups of texts of equal length, and its own GELU and LayerNorm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels import probe
from e5core.kernels.cuda import flash, float8
from e5core.kernels.cuda.float8 import FLOAT8, Float8Linear
from e5core.kernels.cuda.graphs import RecordedStack
from e5core.kernels.plain import InferenceKernels, Layer, Pooling, Prepared, Stack, StaysHere
from e5core.kernels.sdpa import grouped_attention, segment_mean

Attention = Callable[[Tensor, Tensor, int], Tensor]

# Of any number when the operations are tried, in units of the eps of the hidden states' dtype.
LARGEST_ERROR = 64


@dataclass(frozen=True)
class CudaLinear(StaysHere):
    """Linears that are multiplied together: weight [outputs, inputs], bias [outputs]."""

    weight: Tensor
    bias: Tensor

    def product(self, x: Tensor, biased: bool = True) -> Tensor:
        """x W^T, + b if it is to be biased"""
        return F.linear(x, self.weight, self.bias if biased else None)


class CudaKernels(InferenceKernels):
    name = "cuda"
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, FLOAT8)

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(dtype)
        self.triton = _triton_kernels()

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return _fault(str(device), dtype)

    def prepare(self, *linears: nn.Linear) -> CudaLinear | Float8Linear:
        if self.dtype == FLOAT8:
            incoming = float8.to_rows if self.triton is None else self.triton.float8_rows
            return float8.prepare(linears, self.hidden_dtype, incoming)
        weights = [linear.weight.detach().to(self.dtype) for linear in linears]
        biases = [linear.bias.detach().to(self.dtype) for linear in linears]
        if len(linears) == 1:
            return CudaLinear(weights[0], biases[0])
        return CudaLinear(torch.cat(weights), torch.cat(biases))

    def embed(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        norm: nn.LayerNorm,
    ) -> Tensor:
        if self.triton is None or word.dtype != self.hidden_dtype:
            return super().embed(input_ids, position_ids, word, position, token_type, norm)
        output: Tensor = self.triton.embed_norm(
            input_ids, position_ids, word, position, token_type, norm
        )
        return output

    def linear(self, x: Tensor, weights: CudaLinear | Float8Linear) -> Tensor:
        return weights.product(x)

    def linear_gelu(self, x: Tensor, weights: CudaLinear | Float8Linear) -> Tensor:
        if self.triton is None:
            return super().linear_gelu(x, weights)
        output: Tensor = self.triton.bias_gelu_(weights.product(x, biased=False), weights.bias)
        return output

    def infer_linear_residual_norm(
        self,
        x: Tensor,
        weights: CudaLinear | Float8Linear,
        residual: Tensor,
        norm: nn.LayerNorm,
    ) -> Tensor:
        if self.triton is None:
            return self.layer_norm(residual + self.linear(x, weights), norm)
        product = weights.product(x, biased=False)
        output: Tensor = self.triton.residual_norm_(product, weights.bias, residual, norm)
        return output

    def feed_forward(
        self, x: Tensor, inner: Prepared, outer: Prepared, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        if self.triton is None or self.dtype != FLOAT8:
            return super().feed_forward(x, inner, outer, norm, dropout)
        self._refuse(dropout)
        rows = self.triton.float8_rows(inner.product(x, biased=False), inner.bias)
        product = outer.product_of_rows(rows, biased=False)
        output: Tensor = self.triton.residual_norm_(product, outer.bias, x, norm)
        return output

    def infer_attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        attend = self._attention(qkv.device, qkv.shape[-1]) or grouped_attention
        return attend(qkv, cu_seqlens, max_seqlen)

    def _attention(self, device: torch.device, head_size: int) -> Attention | None:
        """The fastest attention that does not read the lengths, which waits for the GPU."""
        kind = device, self.hidden_dtype, head_size
        if self.triton is not None and _triton_attention().takes(*kind):
            ours: Attention = _triton_attention().attention
            return ours
        return flash.attention if flash.takes(*kind) else None

    def stack(self, layers: Sequence[Layer]) -> Stack | None:
        device = layers[0].weights.qkv.weight.device
        if device.type != "cuda" or self._attention(device, layers[0].head_size) is None:
            return None  # a graph cannot wait
        return RecordedStack(layers, self)

    def pooling(self, name: str, plain: Pooling, device: torch.device) -> Pooling:
        """Without a wait for the GPU: the mean of a text without tokens is NaN, and not refused.

        Normalisation follows later, once the windows of long texts are averaged.
        """
        if name == "cls":
            return _first_states
        if name != "mean":
            return plain
        return segment_mean if self.triton is None else self.triton.mean_pool


def _first_states(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    return hidden_states[cu_seqlens[:-1].long()].float()


@cache
def _triton_kernels() -> ModuleType | None:
    try:
        from e5core.kernels.cuda import triton
    except ImportError:  # torch brings triton on Linux; elsewhere it may be missing
        return None
    return triton


@cache
def _triton_attention() -> ModuleType:
    from e5core.kernels.cuda import attention

    return attention


@cache
def _fault(device: str, dtype: torch.dtype) -> str | None:
    kernels = CudaKernels(dtype)
    largest_error = LARGEST_ERROR * torch.finfo(kernels.hidden_dtype).eps
    return probe.fault(kernels, torch.device(device), largest_error)
