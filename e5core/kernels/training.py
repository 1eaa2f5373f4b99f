"""What training on a CPU spends its time on: products, dropout and attention, with their gradients.

Everything here is a function of the published weights as the modules hold them, so an encoder that
is trained with it can be saved at any moment. `sdpa` uses it where gradients flow.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Texts are padded to multiples of this inside attention: torch's softmax takes rows in vectors of
# 16 float32 and what is left over number by number (see cpu_attention.py).
VECTOR = 16

# Scores that are computed at a time, in numbers.
MAX_SCORES = 1 << 21


def is_for(x: Tensor) -> bool:
    """Whether these functions are to be used for hidden states: gradients flow on a CPU."""
    return torch.is_grad_enabled() and x.device.type == "cpu"


def multiplies(x: Tensor) -> bool:
    """Whether oneDNN multiplies such states faster than the library that torch takes."""
    return (
        is_for(x)
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and _onednn_is_right()
    )


def linear(x: Tensor, linears: Sequence[nn.Linear]) -> Tensor:
    """Kernels.linear, forward and backward through oneDNN: [tokens, features] in float32."""
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
    weight, bias = (_joined(parts) for parts in (weights, biases))
    product: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _Product(torch.autograd.Function):
    """x W^T + b with gradients of all three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.t()) if needs_x else None,
            _multiply(gradient.t(), x.t()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias [rows of a, rows of b]"""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


@cache
def _onednn_is_right() -> bool:
    """Whether the operator, which is private to torch, is there and multiplies as it should."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 48, generator=generator) for n in (33, 24))
    bias = torch.randn(24, generator=generator)
    try:
        found = [(_multiply(a, b, bias), a @ b.t() + bias), (_multiply(a.t(), a.t()), a.t() @ a)]
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return all(torch.allclose(one, other, atol=1e-4) for one, other in found)


def dropout(x: Tensor, probability: float) -> Tensor:
    """F.dropout, whose mask takes a tenth of the time to draw; torch's generator decides it.

    The probability is rounded to a multiple of 1/65536.
    """
    if not probability:
        return x
    return x * keep_mask(x.shape, probability).to(x.dtype).mul_(1 / (1 - _rounded(probability)))


def keep_mask(shape: Sequence[int], probability: float) -> Tensor:
    """What dropout keeps, as bool. torch draws on one thread, at 5 ns a number (torch 2.13)."""
    count = int(np.prod(shape))
    seed = int(torch.randint(1 << 62, ()))  # from torch's generator, which the caller has seeded
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    drawn = torch.from_numpy(words.view(np.uint16).view(np.int16)[:count])
    # int16 counts from -32768.
    return (drawn >= round(probability * 65536) - 32768).view(*shape)


def _rounded(probability: float) -> float:
    return round(probability * 65536) / 65536


def attention(qkv: Tensor, lengths: Sequence[int], probability: float) -> Tensor:
    """Kernels.attention with its gradient; texts of nearly one length are one dense batch.

    qkv      [tokens, 3, heads, head_size]
    lengths  tokens of each text, in order
    returns  [tokens, heads, head_size]
    """
    found: Tensor = _Attention.apply(qkv, tuple(lengths), probability)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    """softmax(query key^T / sqrt(head_size)) value, with dropout between the two products."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, lengths: tuple[int, ...], probability: float) -> Tensor:
        heads, size = qkv.shape[2:]
        wide = torch.promote_types(qkv.dtype, torch.float32)
        kept, outputs = [], []
        for (tokens, texts, length), rows, mask in _groups(lengths, heads):
            part = qkv[tokens : tokens + len(rows)]
            query, key, value = _spread(part, rows, texts, length).view(3, -1, length, size)
            # Of long texts the scores are most of the memory that is read: few passes over them.
            scores = torch.baddbmm(mask.to(qkv.dtype), query, key.transpose(1, 2), alpha=size**-0.5)
            weights = scores.to(wide).softmax(-1).to(qkv.dtype)
            keep = keep_mask(weights.shape, probability) if probability else None
            context = (
                weights @ value if keep is None else _kept(weights * keep @ value, probability)
            )
            outputs.append(_gather(context.view(1, texts, heads, length, size), rows)[:, 0])
            kept += [weights] if keep is None else [weights, keep]
        ctx.save_for_backward(qkv, *kept)
        ctx.lengths, ctx.probability = lengths, probability
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        qkv, *kept = ctx.saved_tensors
        heads, size = qkv.shape[2:]
        result, tensors = torch.empty_like(qkv), iter(kept)
        for (tokens, texts, length), rows, _ in _groups(ctx.lengths, heads):
            own = slice(tokens, tokens + len(rows))
            query, key, value = _spread(qkv[own], rows, texts, length).view(3, -1, length, size)
            (outer,) = _spread(gradient[own, None], rows, texts, length).view(1, -1, length, size)
            weights = next(tensors)
            keep = next(tensors) if ctx.probability else None
            outer = _kept(outer, ctx.probability)
            inner = outer @ value.transpose(1, 2)
            inner = inner if keep is None else inner.mul_(keep)
            # The gradient of softmax; its scale is taken from the queries and keys.
            inner.sub_((inner * weights).sum(-1, keepdim=True)).mul_(weights)
            query, key = query * size**-0.5, key * size**-0.5
            dropped = weights if keep is None else weights * keep
            of_value = dropped.transpose(1, 2) @ outer
            parts = torch.stack([inner @ key, inner.transpose(1, 2) @ query, of_value])
            result[own] = _gather(parts.view(3, texts, heads, length, size), rows)
        return result, None, None


def _kept(x: Tensor, probability: float) -> Tensor:
    """What is left of x after dropout, scaled so that its mean stays."""
    return x if not probability else x * (1 / (1 - _rounded(probability)))


def _spread(part: Tensor, rows: Tensor, texts: int, length: int) -> Tensor:
    """[tokens, n, heads, size] to [n, texts, heads, length, size] with zeros behind each text."""
    _, n, heads, size = part.shape
    padded = part.new_zeros(texts * length, n, heads, size).index_copy_(0, rows, part)
    return padded.view(texts, length, n, heads, size).permute(2, 0, 3, 1, 4).contiguous()


def _gather(dense: Tensor, rows: Tensor) -> Tensor:
    """The other way: [n, texts, heads, length, size] to [tokens, n, heads, size]."""
    n, texts, heads, length, size = dense.shape
    return dense.permute(1, 3, 0, 2, 4).reshape(texts * length, n, heads, size)[rows]


@lru_cache(maxsize=8)
def _groups(
    lengths: tuple[int, ...], heads: int
) -> tuple[tuple[tuple[int, int, int], Tensor, Tensor], ...]:
    """Neighbouring texts that are one dense batch: (first token, texts, length), rows, mask.

    rows  [tokens] where the tokens go among texts · length
    mask  [texts · heads, 1, length] 0, and −inf behind each text
    """
    found, first = [], 0
    for length, run in groupby(lengths, key=lambda count: -(-count // VECTOR) * VECTOR):
        members = list(run)
        most = max(1, MAX_SCORES // (heads * length * length))
        for start in range(0, len(members), most):
            part = torch.tensor(members[start : start + most])
            inside = torch.arange(length) < part[:, None]  # [texts, length]
            mask = torch.zeros(inside.shape).masked_fill_(~inside, -torch.inf)
            mask = mask.repeat_interleave(heads, 0)[:, None]
            place = (first, len(part), length)
            found.append((place, inside.flatten().nonzero().flatten(), mask))
            first += int(part.sum())
    return tuple(found)
