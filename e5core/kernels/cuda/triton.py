"""The element-wise steps of the encoder on a GPU, each one pass over its memory, in Triton.

A GPU does them as fast as it reads and writes, so what counts is how often the hidden states
travel: bias and GELU, or bias, residual and LayerNorm, go once instead of three times, and in the
place of the product that they follow, which nobody else reads. Sums and statistics are in float32
whatever the dtype. With TRITON_INTERPRET=1, set before this file is imported, they run on CPU
tensors, which is how they are tested everywhere.
"""

# Triton compiles the bodies of its kernels; their arguments have no types of Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

GELU_ROWS, GELU_COLUMNS = 4, 512  # tokens and features that a program of _bias_gelu takes
POOL_ROWS, POOL_COLUMNS = 32, 128  # tokens and features that a program of _mean_pool adds at once


@triton.jit
def _bias_gelu(x, bias, tokens, features, rows: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = (row < tokens)[:, None] & (column < features)[None, :]
    place = row[:, None] * features + column[None, :]
    shift = tl.load(bias + column, mask=column < features).to(tl.float32)
    value = tl.load(x + place, mask=inside).to(tl.float32) + shift[None, :]
    gelu = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))  # 1 / sqrt(2)
    tl.store(x + place, gelu.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _normalized(row, inside, weight, bias, column, features, eps):
    """LayerNorm of one row, arXiv:1607.06450, in two steps: the variance is that of x - mean."""
    mean = tl.sum(tl.where(inside, row, 0.0), axis=0) / features
    centred = tl.where(inside, row - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / features
    scale = tl.load(weight + column, mask=inside).to(tl.float32)
    shift = tl.load(bias + column, mask=inside).to(tl.float32)
    return centred / tl.sqrt(variance + eps) * scale + shift


@triton.jit
def _residual_norm(
    x, x_bias, residual, weight, bias, features, eps, block: tl.constexpr
):  # fmt: skip
    column = tl.arange(0, block)
    inside = column < features
    place = tl.program_id(0).to(tl.int64) * features + column
    row = tl.load(x + place, mask=inside).to(tl.float32)
    row += tl.load(x_bias + column, mask=inside).to(tl.float32)
    row += tl.load(residual + place, mask=inside).to(tl.float32)
    row = _normalized(row, inside, weight, bias, column, features, eps)
    tl.store(x + place, row.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _embed_norm(
    input_ids, position_ids, word, position, token_type, weight, bias, out, features, eps,
    block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < features
    word_place = tl.load(input_ids + token) * features + column
    position_place = tl.load(position_ids + token) * features + column
    row = tl.load(word + word_place, mask=inside).to(tl.float32)
    row += tl.load(token_type + column, mask=inside).to(tl.float32)
    row += tl.load(position + position_place, mask=inside).to(tl.float32)
    row = _normalized(row, inside, weight, bias, column, features, eps)
    tl.store(out + token * features + column, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _mean_pool(states, cu_seqlens, out, features, rows: tl.constexpr, block: tl.constexpr):
    text = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < features
    start = tl.load(cu_seqlens + text)
    stop = tl.load(cu_seqlens + text + 1)
    total = tl.zeros((block,), tl.float32)
    for first in range(start, stop, rows):
        token = (first + tl.arange(0, rows)).to(tl.int64)
        place = token[:, None] * features + column[None, :]
        here = (token < stop)[:, None] & inside[None, :]
        total += tl.sum(tl.load(states + place, mask=here, other=0.0).to(tl.float32), axis=0)
    tl.store(out + text * features + column, total / (stop - start), mask=inside)


def bias_gelu_(x: Tensor, bias: Tensor) -> Tensor:
    """GELU(x + bias) with erf, in the place of x; x [tokens, features], bias [features]."""
    tokens, features = x.shape
    grid = (triton.cdiv(tokens, GELU_ROWS), triton.cdiv(features, GELU_COLUMNS))
    with torch.cuda.device_of(x):
        _bias_gelu[grid](x, bias, tokens, features, rows=GELU_ROWS, block=GELU_COLUMNS)
    return x


def residual_norm_(x: Tensor, x_bias: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm(x + x_bias + residual), in the place of x.

    x and residual are [tokens, features], x_bias is [features].
    """
    features = x.shape[-1]
    with torch.cuda.device_of(x):
        _residual_norm[(x.shape[0],)](
            x, x_bias, residual.contiguous(), norm.weight, norm.bias, features, norm.eps,
            block=triton.next_power_of_2(features),
        )  # fmt: skip
    return x


def embed_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm: nn.LayerNorm,
) -> Tensor:
    """LayerNorm(word[input_ids] + token_type[0] + position[position_ids]) in word's dtype.

    input_ids and position_ids are [tokens] int64, the tables [rows, features].
    """
    features = word.shape[-1]
    out = torch.empty(input_ids.shape[0], features, dtype=word.dtype, device=word.device)
    with torch.cuda.device_of(word):
        _embed_norm[(input_ids.shape[0],)](
            input_ids, position_ids, word, position, token_type, norm.weight, norm.bias, out,
            features, norm.eps, block=triton.next_power_of_2(features),
        )  # fmt: skip
    return out


def mean_pool(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The average of each text's rows, [texts, features] float32; NaN for a text without any.

    hidden_states is [tokens, features], cu_seqlens [texts + 1] int32.
    """
    hidden_states, cu_seqlens = hidden_states.contiguous(), cu_seqlens.contiguous()
    texts, features = cu_seqlens.shape[0] - 1, hidden_states.shape[1]
    out = torch.empty(texts, features, dtype=torch.float32, device=hidden_states.device)
    grid = (texts, triton.cdiv(features, POOL_COLUMNS))
    with torch.cuda.device_of(hidden_states):
        _mean_pool[grid](
            hidden_states, cu_seqlens, out, features, rows=POOL_ROWS, block=POOL_COLUMNS
        )
    return out
