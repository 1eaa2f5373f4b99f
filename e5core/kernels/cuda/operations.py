"""An NVIDIA GPU in bfloat16 and float16: cuBLAS, flash attention over packed texts, Triton.

What is missing is left to torch's own operators: flash attention, which needs a GPU of compute
capability 8.0 or newer, to fused attention over groups of texts of equal length, the Triton kernels
to torch's GELU and LayerNorm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels import probe
from e5core.kernels.cuda import flash
from e5core.kernels.cuda.graphs import RecordedStack
from e5core.kernels.plain import InferenceKernels, Layer, Pooling, Stack, StaysHere
from e5core.kernels.sdpa import grouped_attention, segment_mean

LARGEST_ERROR = 64  # of any number when the operations are tried, in units of the dtype's eps


@dataclass(frozen=True)
class CudaLinear(StaysHere):
    """Linears that are multiplied together: weight [outputs, inputs], bias [outputs]."""

    weight: Tensor
    bias: Tensor


class CudaKernels(InferenceKernels):
    name = "cuda"
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(dtype)
        self.triton = _triton_kernels()

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return _fault(str(device), dtype)

    def prepare(self, *linears: nn.Linear) -> CudaLinear:
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
        if self.triton is None or word.dtype not in self.dtypes:
            return super().embed(input_ids, position_ids, word, position, token_type, norm)
        output: Tensor = self.triton.embed_norm(
            input_ids, position_ids, word, position, token_type, norm
        )
        return output

    def linear(self, x: Tensor, weights: CudaLinear) -> Tensor:
        return F.linear(x, weights.weight, weights.bias)

    def linear_gelu(self, x: Tensor, weights: CudaLinear) -> Tensor:
        if self.triton is None:
            return super().linear_gelu(x, weights)
        output: Tensor = self.triton.bias_gelu_(F.linear(x, weights.weight), weights.bias)
        return output

    def infer_linear_residual_norm(
        self, x: Tensor, weights: CudaLinear, residual: Tensor, norm: nn.LayerNorm
    ) -> Tensor:
        if self.triton is None:
            return self.layer_norm(residual + self.linear(x, weights), norm)
        product = F.linear(x, weights.weight)
        output: Tensor = self.triton.residual_norm_(product, weights.bias, residual, norm)
        return output

    def infer_attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        tile = None
        if self.triton is not None and _triton_attention().takes(qkv.shape[-1]):
            tile = _triton_attention().tile_for(max_seqlen)
        if tile is not None:
            context: Tensor = _triton_attention().attention(qkv, cu_seqlens, max_seqlen, tile)
            return context
        flashes = flash.takes(qkv.device, qkv.dtype, qkv.shape[-1])
        return (flash.attention if flashes else grouped_attention)(qkv, cu_seqlens, max_seqlen)

    def stack(self, layers: Sequence[Layer]) -> Stack | None:
        """Recorded graphs, unless attention reads the lengths: no graph can wait for the CPU."""
        device = layers[0].weights.qkv.weight.device
        if not flash.takes(device, self.dtype, layers[0].head_size):
            return None
        return RecordedStack(layers, self)

    def pooling(self, name: str, plain: Pooling, device: torch.device) -> Pooling:
        """The mean without a wait for the GPU: a text without tokens gives NaN.

        Normalisation follows later, once the windows of long texts are averaged.
        """
        if name != "mean":
            return plain
        return segment_mean if self.triton is None else self.triton.mean_pool


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
    largest_error = LARGEST_ERROR * torch.finfo(dtype).eps
    return probe.fault(CudaKernels(dtype), torch.device(device), largest_error)
