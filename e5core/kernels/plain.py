"""Torch operators only: slow, obviously right, the specification of all other kernels."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainKernels:
    name = "plain"

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return F.linear(x, layer.weight, layer.bias)

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return F.gelu(self.linear(x, layer), approximate="none")

    def linear_residual(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, dropout: float
    ) -> Tensor:
        return residual + F.dropout(self.linear(x, layer), dropout)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        dropout: float,
    ) -> Tensor:
        """One text at a time, so that none can see another; softmax in float32 or wider."""
        offsets = text_offsets(cu_seqlens, max_seqlen)
        scale = 1 / math.sqrt(query.shape[-1])
        wide = torch.promote_types(query.dtype, torch.float32)
        outputs = []
        for start, stop in pairwise(offsets):
            q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
            scores = (q @ k.transpose(1, 2)).to(wide) * scale  # [heads, tokens, tokens]
            weights = F.dropout(scores.softmax(dim=-1).to(v.dtype), dropout)
            outputs.append((weights @ v).transpose(0, 1))  # [tokens, heads, head_size]
        return torch.cat(outputs)


def text_offsets(cu_seqlens: Tensor, max_seqlen: int) -> list[int]:
    """cu_seqlens as a list, held against max_seqlen."""
    offsets: list[int] = cu_seqlens.tolist()
    longest = max(stop - start for start, stop in pairwise(offsets))
    if longest > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen}, but a text has {longest} tokens")
    return offsets
