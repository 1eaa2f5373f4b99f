"""An NVIDIA GPU in bfloat16 and float16: cuBLAS, flash attention over packed texts, Triton.

What the installed torch lacks is left to torch's own operators: variable-length attention
(torch 2.10 and newer, compute capability 8.0 and newer) to fused attention over groups of texts
of equal length, the Triton kernels to torch's GELU and LayerNorm.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels.plain import INFERENCE_ONLY, PlainKernels
from e5core.kernels.sdpa import SdpaKernels

FLASH_CAPABILITY = (8, 0)  # Ampere: FlashAttention 2 needs it
FLASH_HEAD_SIZE = (8, 256)  # its multiple and its limit


class CudaKernels(SdpaKernels):
    name = "cuda"
    devices: tuple[str, ...] = ("cuda",)
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    trainable = False

    def __init__(self) -> None:
        self._fused: dict[nn.Linear, tuple[Tensor, Tensor]] = {}
        self.triton = _triton_kernels()
        self.varlen = _varlen_attention()

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return _probe(str(device), dtype)

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        super().take(layers, dtype)
        if len(layers) == 1:
            return
        weight = torch.cat([layer.weight.detach() for layer in layers])
        bias = torch.cat([layer.bias.detach() for layer in layers])
        self._fused[layers[0]] = weight, bias
        for layer in layers:
            layer.to("meta")

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

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        if layers[0] in self._fused:
            return F.linear(x, *self._fused[layers[0]])
        return super().linear(x, *layers)

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        if self.triton is None:
            return super().linear_gelu(x, layer)
        output: Tensor = self.triton.bias_gelu(F.linear(x, layer.weight), layer.bias)
        return output

    def linear_residual_norm(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        if dropout:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        if self.triton is None:
            return super().linear_residual_norm(x, layer, residual, norm, dropout)
        product = F.linear(x, layer.weight)
        output: Tensor = self.triton.residual_norm(product, layer.bias, residual, norm)
        return output

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        """With flash attention max_seqlen is taken at its word: to check it would wait for the
        GPU once a layer."""
        if dropout:
            raise ValueError(INFERENCE_ONLY.format(self.name))
        if self.varlen is None or not _flash_takes(qkv):
            return super().attention(qkv, cu_seqlens, max_seqlen, dropout)
        query, key, value = qkv.unbind(1)
        output: Tensor = self.varlen(
            query, key, value, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
        )
        return output


def mean_pool(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """pooling.mean_pool on a GPU, without a wait for it: a text without tokens gives NaN.

    Before normalisation, which follows once the windows of long texts are averaged.
    """
    triton = _triton_kernels()
    if triton is None:  # unsafe: without checks that would wait
        offsets = cu_seqlens.long()
        return torch.segment_reduce(hidden_states.float(), "mean", offsets=offsets, unsafe=True)
    output: Tensor = triton.mean_pool(hidden_states, cu_seqlens)
    return output


def _flash_takes(qkv: Tensor) -> bool:
    multiple, limit = FLASH_HEAD_SIZE
    head_size = qkv.shape[-1]
    capable = qkv.is_cuda and torch.cuda.get_device_capability(qkv.device) >= FLASH_CAPABILITY
    return capable and head_size % multiple == 0 and head_size <= limit


@cache
def _triton_kernels() -> ModuleType | None:
    try:
        from e5core.kernels.cuda import triton as triton_kernels
    except ImportError:  # torch brings triton on Linux; elsewhere it may be missing
        return None
    return triton_kernels


@cache
def _varlen_attention() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@cache
def _probe(device: str, dtype: torch.dtype) -> str | None:
    """Call every operation on a small input: all must be there and right."""
    generator = torch.Generator().manual_seed(0)
    heads, head_size, lengths = 2, 32, [5, 16, 1]
    layer, norm = nn.Linear(64, 64), nn.LayerNorm(64)
    fused = [nn.Linear(64, 64) for _ in range(3)]
    x = torch.randn(sum(lengths), 64, generator=generator)
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).int()

    def outputs(kernels: PlainKernels, x: Tensor) -> Tensor:
        qkv = kernels.linear(x, *fused).view(-1, 3, heads, head_size)
        context = kernels.attention(qkv, cu_seqlens, max(lengths), 0.0).flatten(1)
        inner = kernels.linear_gelu(context, layer)
        return kernels.linear_residual_norm(inner, layer, x, norm, 0.0)

    try:
        with torch.inference_mode():
            modules = nn.ModuleList([layer, norm, *fused]).to(device, dtype)
            x = x.to(device, dtype)
            found = outputs(CudaKernels(), x).double()
            modules.double()
            expected = outputs(PlainKernels(), x.double())
            pooled = mean_pool(x, cu_seqlens).double()
            means = [text.double().mean(dim=0) for text in x.split(lengths)]
            found, expected = torch.cat([found, pooled]), torch.cat([expected, torch.stack(means)])
            deviation = (found - expected).abs().max().item()
    except Exception as error:  # whatever a compiler or a driver raises
        return f"they fail in {dtype}: {str(error).strip().splitlines()[0]}"
    if not deviation <= 64 * torch.finfo(dtype).eps:
        return f"they are wrong in {dtype}, by {deviation:.1g}"
    return None
