"""What trains fast, on a CPU and on a GPU, and PyTorch's fused attention for the rest."""

from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e5core.kernels import training, training_attention
from e5core.kernels.cuda import flash
from e5core.kernels.plain import Kernels, Pooling, Prepared, text_lengths


class SdpaKernels(Kernels):
    name = "sdpa"

    def linear(self, x: Tensor, weights: Prepared) -> Tensor:
        if training.multiplies(x):
            return training.linear(x, weights)
        if x.is_cuda and len(weights) > 1:  # weights are smaller than the products are
            weight = torch.cat([linear.weight for linear in weights])
            return F.linear(x, weight, torch.cat([linear.bias for linear in weights]))
        return super().linear(x, weights)

    def linear_gelu(self, x: Tensor, weights: Prepared) -> Tensor:
        if training.is_for(x):
            return training.gelu(self.linear(x, weights))
        return super().linear_gelu(x, weights)

    def linear_residual_norm(
        self, x: Tensor, weights: Prepared, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        if not training.is_for(x):
            return super().linear_residual_norm(x, weights, residual, norm, dropout)
        total = training.add_dropped(residual, self.linear(x, weights), dropout)
        return self.layer_norm(total, norm)

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        if training.is_for(qkv):
            return training_attention.attention(qkv, text_lengths(cu_seqlens, max_seqlen), dropout)
        if flash.takes(qkv.device, qkv.dtype, qkv.shape[-1]):
            return flash.attention(qkv, cu_seqlens, max_seqlen, dropout)
        return grouped_attention(qkv, cu_seqlens, max_seqlen, dropout)

    def fastest_training_dtype(self, device: torch.device) -> torch.dtype:
        fast = training.has_bfloat16() if device.type == "cpu" else _multiplies_bfloat16(device)
        return torch.bfloat16 if fast and self.dtype == torch.float32 else self.dtype

    def weights_stay(self, made: dict[Any, Any]) -> AbstractContextManager[None]:
        return training.made_once(made)

    def pooling(self, name: str, plain: Pooling, device: torch.device) -> Pooling:
        return segment_mean if name == "mean" and device.type == "cuda" else plain


def _multiplies_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= flash.CAPABILITY


def grouped_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float = 0.0
) -> Tensor:
    """Kernels.attention, with neighbouring texts of one length as one dense batch.

    No mask is needed. Batches come sorted by length (see plan_batches), which makes these groups
    large.
    """
    lengths = text_lengths(cu_seqlens, max_seqlen)
    groups = [(length, len(list(run))) for length, run in groupby(lengths)]
    outputs = []
    for (length, texts), group in zip(
        groups, qkv.split([length * texts for length, texts in groups]), strict=True
    ):
        # [3, texts, heads, length, head_size]
        query, key, value = group.unflatten(0, (texts, length)).permute(2, 0, 3, 1, 4)
        dense = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        outputs.append(dense.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def segment_mean(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """pooling.mean_pool in one launch for the whole batch instead of one for each text.

    It does not wait for the GPU, so a text without tokens gives NaN and no error.
    """
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    # "unsafe" leaves out the checks, which would wait.
    return torch.segment_reduce(
        hidden_states.to(dtype), "mean", offsets=cu_seqlens.long(), unsafe=True
    )
