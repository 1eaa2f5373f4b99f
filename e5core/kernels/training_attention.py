"""Attention with its gradient, to train on a CPU.

It is in C++ where that was compiled and takes the dtype (native/training.py). What is here does it
by torch's operators elsewhere: texts of nearly one length are one dense batch.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from e5core.kernels.native import training as native
from e5core.kernels.training import INTEGERS, draw_keeps, draw_seed, scale_of

# Texts are padded to multiples of this inside attention: torch's softmax takes rows in vectors of
# 16 float32 and what is left over number by number (see cpu_attention.py).
VECTOR = 16

# Scores that are computed at a time, in numbers.
MAX_SCORES = 1 << 21


class DenseTexts(NamedTuple):
    """Neighbouring texts that are one dense batch, padded to one length.

    Dense tensors of n matrices a head are [n, texts · heads, length, head_size].
    """

    lengths: tuple[int, ...]
    heads: int
    length: int

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


class Weighing(NamedTuple):
    """How scores of dense texts become weights: softmax(scores · factor), then dropout."""

    texts: DenseTexts
    factor: float
    probability: float
    seed: int


def attention(qkv: Tensor, lengths: Sequence[int], probability: float) -> Tensor:
    """Kernels.attention with its gradient.

    qkv      [tokens, 3, heads, head_size]
    lengths  tokens of each text, in order
    returns  [tokens, heads, head_size]
    """
    args = qkv, tuple(lengths), probability
    found: Tensor
    if native.steps(qkv.dtype) is None:
        found = _Attention.apply(*args)  # type: ignore[no-untyped-call]
    else:
        seed = draw_seed() if probability else 0
        found = native.Attention.apply(*args, seed)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    """softmax(query key^T / sqrt(head_size)) value, with dropout between the two products."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, lengths: tuple[int, ...], probability: float) -> Tensor:
        heads, size = qkv.shape[2:]
        factor = size**-0.5
        ctx.groups, ctx.probability = _groups(lengths, heads), probability
        ctx.seeds = [draw_seed() if probability else 0 for _ in ctx.groups]
        output, saved = qkv.new_empty(len(qkv), heads, size), list[Tensor]()
        for texts, place, seed in zip(ctx.groups, _places_of(ctx.groups), ctx.seeds, strict=True):
            query, key, value = dense = _spread(qkv[place], texts)
            scores = _product(query, key.transpose(1, 2))
            weights, kept = _weigh(scores, Weighing(texts, factor, probability, seed))
            _gather(_product(kept, value)[None], texts, output[place, None])
            saved += dense, weights
        ctx.save_for_backward(*saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        saved = ctx.saved_tensors
        heads, size = gradient.shape[1:]
        factor = size**-0.5
        result = gradient.new_empty(len(gradient), 3, heads, size)
        for texts, place, seed, dense, weights in zip(
            ctx.groups, _places_of(ctx.groups), ctx.seeds, saved[::2], saved[1::2], strict=True
        ):
            query, key, value = dense
            (outer,) = _spread(gradient[place, None], texts)
            inner, kept = _weigh_gradient(
                weights,
                _product(outer, value.transpose(1, 2)),
                Weighing(texts, factor, ctx.probability, seed),
            )
            parts = query.new_empty(3, *query.shape)
            torch.bmm(inner, key, out=parts[0])
            torch.bmm(inner.transpose(1, 2), query, out=parts[1])
            torch.bmm(kept.transpose(1, 2), outer, out=parts[2])
            _gather(parts, texts, result[place])
        return result, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b of matrices in their own dtype: with out= autocast casts nothing."""
    return torch.bmm(a, b, out=a.new_empty(*a.shape[:2], b.shape[2]))


def _spread(x: Tensor, texts: DenseTexts) -> Tensor:
    """[tokens, n, heads, head_size] to dense, with zeros behind each text"""
    _, n, heads, size = x.shape
    padded = torch.cat([x, x.new_zeros(1, n, heads, size)])
    padded = padded.index_select(0, _places(texts).spread)
    dense = padded.view(len(texts.lengths), texts.length, n, heads, size).permute(2, 0, 3, 1, 4)
    return dense.reshape(n, -1, texts.length, size)


def _gather(dense: Tensor, texts: DenseTexts, x: Tensor) -> None:
    """The other way."""
    n, _, length, size = dense.shape
    padded = dense.view(n, len(texts.lengths), -1, length, size).permute(1, 3, 0, 2, 4)
    torch.index_select(padded.flatten(0, 1), 0, _places(texts).rows, out=x)


def _weigh(scores: Tensor, how: Weighing) -> tuple[Tensor, Tensor]:
    """The weights with their mask, and what dropout keeps of them

    scores  [texts · heads, length, length]

    Weights are never negative, so with dropout their signs hold the mask: those that it keeps are
    negative.
    """
    scores = torch.add(_places(how.texts).mask.to(scores.dtype), scores, alpha=how.factor)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.to(wide).softmax(-1).to(scores.dtype)
    if not how.probability:
        return weights, weights
    weights = _signed(weights, draw_keeps(weights.shape, how.probability, how.seed))
    return weights, weights.clamp(max=0).mul_(-scale_of(how.probability))


def _weigh_gradient(weights: Tensor, gradient: Tensor, how: Weighing) -> tuple[Tensor, Tensor]:
    """The gradient of the scores, and what dropout kept, from what `_weigh` gave

    gradient  of what dropout kept, which is overwritten
    """
    kept = weights
    if how.probability:
        kept = weights.clamp(max=0).mul_(-scale_of(how.probability))
    inner = gradient.mul_(kept)
    inner.sub_(weights.abs() * inner.sum(-1, keepdim=True))
    return inner.mul_(how.factor), kept


def _signed(weights: Tensor, keeps: Tensor) -> Tensor:
    """Weights, negative where they are kept."""
    integer = INTEGERS[weights.element_size()]
    signs = keeps.to(integer).bitwise_and_(torch.iinfo(integer).min)
    return weights.view(integer).bitwise_or_(signs).view(weights.dtype)


class _Places(NamedTuple):
    """Where the tokens of dense texts are.

    spread  [texts · length]  the token of each place; one past the last behind each text
    rows    [tokens]  the place of each token
    mask    [texts · heads, 1, length]  0, and −inf behind each text
    """

    spread: Tensor
    rows: Tensor
    mask: Tensor


@lru_cache(maxsize=256)  # every layer goes through all groups of a chunk
def _places(texts: DenseTexts) -> _Places:
    inside = torch.arange(texts.length) < torch.tensor(texts.lengths)[:, None]  # [texts, length]
    mask = torch.zeros(inside.shape).masked_fill_(~inside, -torch.inf)
    rows = inside.flatten().nonzero().flatten()
    spread = torch.full((inside.numel(),), len(rows))
    spread[rows] = torch.arange(len(rows))
    return _Places(spread, rows, mask.repeat_interleave(texts.heads, 0)[:, None])


def _places_of(groups: Sequence[DenseTexts]) -> Iterator[slice]:
    """The tokens of each group."""
    start = 0
    for texts in groups:
        yield slice(start, start + texts.tokens)
        start += texts.tokens


@lru_cache(maxsize=8)
def _groups(lengths: tuple[int, ...], heads: int) -> tuple[DenseTexts, ...]:
    """Neighbouring texts that are one dense batch, for all texts."""
    found = []
    for length, run in groupby(lengths, key=lambda count: -(-count // VECTOR) * VECTOR):
        members = list(run)
        most = max(1, MAX_SCORES // (heads * length * length))
        for start in range(0, len(members), most):
            found.append(DenseTexts(tuple(members[start : start + most]), heads, length))
    return tuple(found)
