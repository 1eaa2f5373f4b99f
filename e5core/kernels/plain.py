"""The operations of the encoder in torch: slow, obviously right, and what all kernels derive from.

Axes are fixed: x and residual are [tokens, features], qkv is [tokens, 3, heads, head_size] with
query, key and value side by side, cu_seqlens is [texts + 1] int32 (see PackedBatch). `dropout` is
a probability, 0.0 outside training. Nothing is computed in place.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The result of `prepare`: every back-end has a type of its own for it.
Prepared = Any

# What a forward pass calls after each layer, and waits for.
Pause = Callable[[], object]


def go_on() -> None:
    """No pause."""


# All layers in one call: x [tokens, hidden_size], cu_seqlens, max_seqlen → x of the last layer.
# Kernels that can wait between layers do so, if there is a pause.
Stack = Callable[[Tensor, Tensor, int, Pause], Tensor]

# Token states [tokens, hidden_size] and cu_seqlens → a row for each text.
Pooling = Callable[[Tensor, Tensor], Tensor]


class LayerWeights(NamedTuple):
    """The weights of one encoder layer, as the kernels have prepared them."""

    qkv: Prepared
    attention_output: Prepared
    attention_norm: nn.LayerNorm
    intermediate: Prepared
    output: Prepared
    output_norm: nn.LayerNorm


class Layer(Protocol):
    """An encoder layer as kernels see it: it has weights and can be called."""

    weights: LayerWeights
    head_size: int

    def __call__(
        self, x: Tensor, cu_seqlens: Tensor, max_seqlen: int, kernels: "Kernels"
    ) -> Tensor: ...


class Kernels:
    """The specification of every operation, and its implementation with torch's operators alone.

    Other back-ends override operations; all of them are held to these by one suite.

    name       what `select` knows them by
    devices    the types of device they are made for
    dtypes     the precisions they are made for; torch.int8 stands for weights and activations in
               int8 with float32 between the layers, torch.float8_e4m3fn with bfloat16 between them
    trainable  whether gradients flow; if not, the kernels take over the weights they prepare
    optional   whether "auto" passes over them in silence where they do not run, because nothing
               is wrong then: the CPU is another, or no compiler was there

    dtype         the precision that weights are prepared in, one of `dtypes`
    instructions  the instruction set they were compiled for, "" for what is not e5core's own C++
    """

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

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.instructions = ""

    @property
    def label(self) -> str:
        """The name by which `select` gives the same kernels on another machine."""
        return f"{self.name}/{self.instructions}" if self.instructions else self.name

    @property
    def hidden_dtype(self) -> torch.dtype:
        """The dtype of the hidden states between the layers."""
        between = {torch.int8: torch.float32, torch.float8_e4m3fn: torch.bfloat16}
        return between.get(self.dtype, self.dtype)

    def for_scores(self) -> "Kernels":
        """These kernels, before they prepare anything, for the score that one token's state gives.

        Rounding does not average out in it as it does in the mean of many tokens.
        """
        return self

    @classmethod
    def unavailable(cls, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why the kernels do not run on a device in a dtype that they are made for, as a sentence.

        returns  None if they run
        """
        return None

    @classmethod
    def missing(cls) -> str | None:
        """What this installation lacks of them and another could have, as a sentence."""
        return None

    def prepare(self, *linears: nn.Linear) -> Prepared:
        """The weights that operations take in place of linears that are multiplied together.

        Here these are the linears themselves, converted to `dtype`. Kernels that are not trainable
        return weights in a layout of their own, and the caller drops those of the linears.
        """
        for linear in linears:
            linear.to(self.dtype)
        return linears

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

        ids are [tokens] int64, tables [rows, hidden_size]; computed in norm's dtype and returned in
        it, or in hidden_dtype
        """
        dtype = norm.weight.dtype
        # Single texts are always of type 0. The order of the sum is transformers' own.
        x = F.embedding(input_ids, word).to(dtype) + token_type[0].to(dtype)
        return self.layer_norm(x + F.embedding(position_ids, position).to(dtype), norm)

    def linear(self, x: Tensor, weights: Prepared) -> Tensor:
        """x W^T + b of all the linears that were prepared together, side by side"""
        products = [F.linear(x, linear.weight, linear.bias) for linear in weights]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def linear_gelu(self, x: Tensor, weights: Prepared) -> Tensor:
        """GELU(x W^T + b), the exact GELU with erf"""
        return F.gelu(self.linear(x, weights), approximate="none")

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """(x - mean) / sqrt(variance + eps) · weight + bias over the last axis"""
        return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def linear_residual_norm(
        self, x: Tensor, weights: Prepared, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        """layer_norm(residual + dropout(x W^T + b))"""
        return self.layer_norm(residual + F.dropout(self.linear(x, weights), dropout), norm)

    def feed_forward(
        self, x: Tensor, inner: Prepared, outer: Prepared, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        """layer_norm(x + dropout(GELU(x W^T + b) V^T + c)), from the inner and the outer weights"""
        return self.linear_residual_norm(self.linear_gelu(x, inner), outer, x, norm, dropout)

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        """softmax(query key^T / sqrt(head_size)) value within each text

        returns [tokens, heads, head_size]. Raises ValueError if a text is longer than max_seqlen,
        except on a GPU, which would have to be waited for.

        Here each text is computed alone, so that none can see another, with the softmax in
        float32 or wider.
        """
        scale = 1 / math.sqrt(qkv.shape[-1])
        wide = torch.promote_types(qkv.dtype, torch.float32)
        outputs = []
        for text in qkv.split(text_lengths(cu_seqlens, max_seqlen)):
            query, key, value = text.permute(1, 2, 0, 3)  # [heads, tokens, head_size] each
            scores = (query @ key.transpose(1, 2)).to(wide) * scale  # [heads, tokens, tokens]
            weights = F.dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
            outputs.append((weights @ value).transpose(0, 1))  # [tokens, heads, head_size]
        return torch.cat(outputs)

    def fastest_training_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype that autocast is to take for training there, if nobody has chosen one.

        It is that of the weights where no other is faster, or not known to be.
        """
        return self.dtype

    def weights_stay(self, made: dict[Any, Any]) -> AbstractContextManager[None]:
        """A block in which no weight changes. Blocks with the same dictionary see the same weights.

        Kernels may keep in it what they make of weights, such as casts.
        """
        return nullcontext()

    def stack(self, layers: Sequence[Layer]) -> Stack | None:
        """All these layers in one call, for kernels that gain by it; None for all others.

        Whoever calls it calls no modules, nor their hooks.
        """
        return None

    def pooling(self, name: str, plain: Pooling, device: torch.device) -> Pooling:
        """What computes fastest there what `plain` does: pooling.POOLINGS[name]."""
        return plain


class StaysHere:
    """What is of use in one process alone: kernels that only infer, and weights in their layout."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: prepared weights and the kernels that hold them cannot be "
            "copied or pickled; load the model anew"
        )


class InferenceKernels(StaysHere, Kernels):
    """Kernels that only infer. The check that nobody asks them for dropout stands here, once."""

    trainable = False

    def linear_residual_norm(
        self, x: Tensor, weights: Prepared, residual: Tensor, norm: nn.LayerNorm, dropout: float
    ) -> Tensor:
        self._refuse(dropout)
        return self.infer_linear_residual_norm(x, weights, residual, norm)

    def attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, dropout: float) -> Tensor:
        self._refuse(dropout)
        return self.infer_attention(qkv, cu_seqlens, max_seqlen)

    def infer_linear_residual_norm(
        self, x: Tensor, weights: Prepared, residual: Tensor, norm: nn.LayerNorm
    ) -> Tensor:
        """linear_residual_norm without dropout"""
        raise NotImplementedError

    def infer_attention(self, qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """attention without dropout"""
        raise NotImplementedError

    def _refuse(self, dropout: float) -> None:
        if dropout:
            raise ValueError(f"dropout is not 0, but {only_infer(self)}")


def only_infer(kernels: Kernels) -> str:
    """The sentence of the error for training on kernels that are not made for it."""
    return f"the {kernels.name} kernels only infer; call eval() first"


def text_lengths(cu_seqlens: Tensor, max_seqlen: int) -> list[int]:
    """The tokens of each text, held against max_seqlen."""
    lengths = [stop - start for start, stop in pairwise(cu_seqlens.tolist())]
    if max(lengths) > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen}, but a text has {max(lengths)} tokens")
    return lengths
