"""What training on a CPU spends its time on: products, dropout and attention, with their gradients.

Everything here is a function of the published weights as the modules hold them, so an encoder that
is trained with it can be saved at any moment. `sdpa` uses it where gradients flow.
"""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Texts are padded to multiples of this inside attention: torch's softmax takes rows in vectors of
# 16 float32 and what is left over number by number (see cpu_attention.py).
VECTOR = 16

# Scores that are computed at a time, in numbers.
MAX_SCORES = 1 << 21

# A probability is a multiple of 1 / CHANCES: dropout draws 15 bits a number.
CHANCES = 1 << 15

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a float


def is_for(x: Tensor) -> bool:
    """Whether these functions are to be used for hidden states: gradients flow on a CPU."""
    return torch.is_grad_enabled() and x.device.type == "cpu"


def multiplies(x: Tensor) -> bool:
    """Whether `linear` is faster for such states than torch: under autocast, and by oneDNN."""
    casts = torch.is_autocast_enabled("cpu")
    return is_for(x) and (casts or (x.dtype == torch.float32 and _onednn_is_right()))


@cache
def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, and torch can tell."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private to torch
    return any(getattr(torch.cpu, name, bool)() for name in names)


def linear(x: Tensor, linears: Sequence[nn.Linear]) -> Tensor:
    """Kernels.linear with its gradient: [tokens, features] in float32, or in autocast's dtype.

    States are cast once for all linears, which are one product, and once again for none of the
    products of the backward pass.
    """
    weights, biases = zip(*((linear.weight, linear.bias) for linear in linears), strict=True)
    weight, bias = (_joined(parts) for parts in (weights, biases))
    casts = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if casts else x.dtype
    product: Tensor = _Product.apply(x, weight, bias, dtype)  # type: ignore[no-untyped-call]
    return product


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _Product(torch.autograd.Function):
    """x W^T + b, multiplied in some dtype, with gradients of all three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.wide = x.dtype, weight.dtype
        x, weight, bias = (tensor.to(dtype) for tensor in (x, weight, bias))
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous()
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        of_x, of_weight = ctx.wide
        return (
            _multiply(gradient, weight.t()).to(of_x) if needs_x else None,
            _multiply(gradient.t(), x.t()).to(of_weight) if needs_weight else None,
            gradient.sum(0).to(of_weight) if needs_bias else None,
            None,
        )


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias [rows of a, rows of b]"""
    if a.dtype != torch.float32:  # torch itself takes oneDNN for these
        return a @ b.t() if bias is None else torch.nn.functional.linear(a, b, bias)
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


def add_dropped(residual: Tensor, x: Tensor, probability: float) -> Tensor:
    """residual + dropout(x), with masks that take a tenth of the time of torch's to draw."""
    if not probability:
        return residual + x
    total: Tensor = _AddDropped.apply(residual, x, probability)  # type: ignore[no-untyped-call]
    return total


class _AddDropped(torch.autograd.Function):
    """Numbers are dropped by their bits: torch's operators on bool are slow (torch 2.13)."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, probability: float) -> Tensor:
        keeps = draw_keeps(x.shape, probability)
        ctx.save_for_backward(keeps.to(torch.int8))
        ctx.scale, ctx.dtype = _scale(probability), x.dtype
        return torch.add(residual, _kept(x, keeps), alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (keeps,) = ctx.saved_tensors
        return gradient, _kept((gradient * ctx.scale).to(ctx.dtype), keeps), None


def _kept(x: Tensor, keeps: Tensor) -> Tensor:
    """x where the bits of `keeps` are set, and zeros elsewhere."""
    integer = INTEGERS[x.element_size()]
    return x.contiguous().view(integer).bitwise_and(keeps.to(integer)).view(x.dtype)


def draw_keeps(shape: Sequence[int], probability: float) -> Tensor:
    """What dropout keeps: int16, all bits set where it does and none elsewhere.

    torch's generator decides it. Its own masks are drawn on one thread at 5 ns a number, these at
    0.5 (torch 2.13, 2026-11).
    """
    count = math.prod(shape)
    seed = int(torch.randint(1 << 62, ()))  # from torch's generator, which the caller has seeded
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[:count]
    # From -CHANCES / 2 to CHANCES / 2; taken from the threshold, the sign tells.
    drawn >>= 1
    np.subtract(round(probability * CHANCES) - 1 - CHANCES // 2, drawn, out=drawn)
    drawn >>= 15
    return torch.from_numpy(drawn).view(*shape)


def _scale(probability: float) -> float:
    """What is kept is multiplied by it, so that the mean stays."""
    return 1 / (1 - round(probability * CHANCES) / CHANCES)


def attention(qkv: Tensor, lengths: Sequence[int], probability: float) -> Tensor:
    """Kernels.attention with its gradient; texts of nearly one length are one dense batch.

    qkv      [tokens, 3, heads, head_size]
    lengths  tokens of each text, in order
    returns  [tokens, heads, head_size]
    """
    found: Tensor = _Attention.apply(qkv, tuple(lengths), probability)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    """softmax(query key^T / sqrt(head_size)) value, with dropout between the two products.

    Weights are never negative, so with dropout their signs hold the mask: weights that it keeps
    are negative, and so is what they are multiplied by.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, lengths: tuple[int, ...], probability: float) -> Tensor:
        heads, size = qkv.shape[2:]
        wide = torch.promote_types(qkv.dtype, torch.float32)
        kept, outputs = [], []
        for group in _groups(lengths, heads):
            query, key, value = _spread(qkv, group)
            # Of long texts the scores are most of the memory that is read: few passes over them.
            scores = torch.baddbmm(
                group.mask.to(qkv.dtype), query, key.transpose(1, 2), alpha=size**-0.5
            )
            weights = scores.to(wide).softmax(-1).to(qkv.dtype)
            if probability:
                weights = _signed(weights, draw_keeps(weights.shape, probability))
                context = weights.clamp(max=0) @ value * -_scale(probability)
            else:
                context = weights @ value
            outputs.append(_gather(context[None], group))
            kept.append(weights)
        ctx.save_for_backward(qkv, *kept)
        ctx.lengths, ctx.probability = lengths, probability
        return torch.cat(outputs)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        qkv, *kept = ctx.saved_tensors
        heads, size = qkv.shape[2:]
        results = []
        for group, weights in zip(_groups(ctx.lengths, heads), kept, strict=True):
            query, key, value = _spread(qkv, group)
            (outer,) = _spread(gradient[:, None], group)
            dropped = weights
            if ctx.probability:
                dropped, weights = weights.clamp(max=0), weights.abs()
                outer *= -_scale(ctx.probability)
            # The gradient of softmax; its scale is taken from the queries and keys.
            inner = (outer @ value.transpose(1, 2)).mul_(dropped)
            inner.sub_(weights * inner.sum(-1, keepdim=True))
            parts = query.new_empty(3, *query.shape)
            torch.bmm(inner, key * size**-0.5, out=parts[0])
            torch.bmm(inner.transpose(1, 2), query * size**-0.5, out=parts[1])
            torch.bmm(dropped.transpose(1, 2), outer, out=parts[2])
            results.append(_gather(parts, group))
        return torch.cat(results), None, None


def _signed(weights: Tensor, keeps: Tensor) -> Tensor:
    """Weights, negative where they are kept."""
    integer = INTEGERS[weights.element_size()]
    signs = keeps.to(integer).bitwise_and_(torch.iinfo(integer).min)
    return weights.view(integer).bitwise_or_(signs).view(weights.dtype)


class _Group(NamedTuple):
    """Neighbouring texts that are one dense batch, padded to one length.

    tokens  where its first token is
    spread  [texts · length]  the token of each place, counted from there; one past the last behind
            each text
    rows    [tokens of the group]  the place of each token
    mask    [texts · heads, 1, length]  0, and −inf behind each text
    """

    tokens: int
    texts: int
    length: int
    spread: Tensor
    rows: Tensor
    mask: Tensor


def _spread(x: Tensor, group: _Group) -> Tensor:
    """[tokens, n, heads, size] to [n, texts · heads, length, size] with zeros behind each text."""
    _, n, heads, size = x.shape
    part = x[group.tokens : group.tokens + len(group.rows)]
    padded = torch.cat([part, part.new_zeros(1, n, heads, size)]).index_select(0, group.spread)
    dense = padded.view(group.texts, group.length, n, heads, size).permute(2, 0, 3, 1, 4)
    return dense.reshape(n, -1, group.length, size)


def _gather(dense: Tensor, group: _Group) -> Tensor:
    """The other way: [n, texts · heads, length, size] to [tokens, n, heads, size]."""
    n, _, length, size = dense.shape
    padded = dense.view(n, group.texts, -1, length, size).permute(1, 3, 0, 2, 4)
    return padded.flatten(0, 1).index_select(0, group.rows)


@lru_cache(maxsize=8)
def _groups(lengths: tuple[int, ...], heads: int) -> tuple[_Group, ...]:
    """Neighbouring texts that are one dense batch, for all texts."""
    found, first = [], 0
    for length, run in groupby(lengths, key=lambda count: -(-count // VECTOR) * VECTOR):
        members = list(run)
        most = max(1, MAX_SCORES // (heads * length * length))
        for start in range(0, len(members), most):
            part = torch.tensor(members[start : start + most])
            inside = torch.arange(length) < part[:, None]  # [texts, length]
            mask = torch.zeros(inside.shape).masked_fill_(~inside, -torch.inf)
            mask = mask.repeat_interleave(heads, 0)[:, None]
            rows = inside.flatten().nonzero().flatten()
            spread = torch.full((inside.numel(),), len(rows))
            spread[rows] = torch.arange(len(rows))
            found.append(_Group(first, len(part), length, spread, rows, mask))
            first += len(rows)
    return tuple(found)
