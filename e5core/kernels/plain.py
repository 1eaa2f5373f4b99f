"""Torch operators only: slow, obviously right, the specification of all other kernels."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from e5core.encoder import EncoderLayer

INFERENCE_ONLY = "dropout is not 0, but the {} kernels only infer; call eval() first"


class PlainKernels:
    name = "plain"
    devices: tuple[str, ...] = ("cpu", "cuda", "mps", "xpu")
    dtypes: tuple[torch.dtype, ...] = (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
    )
    trainable = True
    optional = False

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def take(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        for layer in layers:
            layer.to(dtype)

    def embed(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        word: Tensor,
        position: Tensor,
        token_type: Tensor,
        norm: nn.LayerNorm,
    ) -> Tensor:
        dtype = norm.weight.dtype
        # Single texts are always of type 0. The order of the sum is transformers' own.
        x = F.embedding(input_ids, word).to(dtype) + token_type[0].to(dtype)
        return self.layer_norm(x + F.embedding(position_ids, position).to(dtype), norm)

    def linear(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        products = [F.linear(x, layer.weight, layer.bias) for layer in layers]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def linear_gelu(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return F.gelu(self.linear(x, layer), approximate="none")

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def linear_residual_norm(
        self, x: Tensor, layer: nn.Linear, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        return self.layer_norm(residual + F.dropout(self.linear(x, layer), dropout), norm)

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        """One text at a time, so that none can see another; softmax in float32 or wider."""
        scale = 1 / math.sqrt(qkv.shape[-1])
        wide = torch.promote_types(qkv.dtype, torch.float32)
        outputs = []
        for text in qkv.split(text_lengths(cu_seqlens, max_seqlen)):
            query, key, value = text.permute(1, 2, 0, 3)  # [heads, tokens, head_size] each
            scores = (query @ key.transpose(1, 2)).to(wide) * scale  # [heads, tokens, tokens]
            weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
            outputs.append((weights @ value).transpose(0, 1))  # [tokens, heads, head_size]
        return torch.cat(outputs)

    def layers(
        self, x: Tensor, layers: Sequence["EncoderLayer"], cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        for layer in layers:
            x = layer(x, cu_seqlens, max_seqlen, self)
        return x


def text_lengths(cu_seqlens: Tensor, max_seqlen: int) -> list[int]:
    """The tokens of each text, held against max_seqlen."""
    lengths = [stop - start for start, stop in pairwise(cu_seqlens.tolist())]
    if max(lengths) > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen}, but a text has {max(lengths)} tokens")
    return lengths
