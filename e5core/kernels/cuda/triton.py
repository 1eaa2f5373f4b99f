"""The element-wise steps of the encoder on a GPU, each one pass over its memory, in Triton.

A GPU does them as fast as it reads and writes, so what counts is how often the hidden states
travel: bias and GELU, or bias, residual and LayerNorm, go once instead of three times, and in the
place of the product that they follow, which nobody else reads. Sums and statistics are in float32
whatever the dtype. With TRITON_INTERPRET=1, set before this file is imported, they run on CPU
tensors, which is how they are tested everywhere.
"""

# Triton compiles a kernel anew for numbers that are 1 or multiples of 16, and for pointers that are
# aligned, unless it is told not to: the number of tokens is different in each batch.
# It compiles the bodies of its kernels; their arguments have no types of Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from e5core.kernels.cuda.float8 import FLOAT8, LARGEST, SMALLEST_ROW, Rows

GELU_ROWS, GELU_COLUMNS = 4, 512  # tokens and features that a program of _bias_gelu takes
# Rows that a program takes at once, of up to so many features: three quarters of the time of one.
# Of 1,024 features two rows take longer than one (H200, 2026-11).
NORM_ROWS, NORM_FEATURES = 4, 512
POOL_ROWS, POOL_COLUMNS = 32, 128  # tokens and features that a program of _mean_pool adds at once


@triton.jit
def _gelu(x):
    """The GELU with erf in the form of native/src/math.h, which says where it comes from.

    With tl.erf, whose branches are computed both, a pass takes 1.6 times what its memory does.
    """
    size = tl.abs(x)
    u = 1.0 / (1.0 + 0.35 * size)
    p = -0.029146048882 * u + 0.143972270818
    p = p * u - 0.255715428199
    p = p * u + 0.159175487771
    p = p * u - 0.023110738253
    p = p * u + 0.105508381205
    p = p * u + 0.119832773572
    p = p * u + 0.139861882444
    p = p * u + 0.139621403577
    tail = tl.exp2(size * size * -0.7213475204444817) * u * p  # log2(e) / 2
    return x * tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit(do_not_specialize=["tokens"])
def _bias_gelu(x, bias, tokens, features, rows: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = (row < tokens)[:, None] & (column < features)[None, :]
    place = row[:, None] * features + column[None, :]
    shift = tl.load(bias + column, mask=column < features).to(tl.float32)
    value = tl.load(x + place, mask=inside).to(tl.float32) + shift[None, :]
    tl.store(x + place, _gelu(value).to(x.dtype.element_ty), mask=inside)


@triton.jit
def _normalized(x, inside, weight, bias, column, features, eps):
    """LayerNorm of some rows, arXiv:1607.06450, in two steps: the variance is that of x - mean."""
    mean = tl.sum(tl.where(inside, x, 0.0), axis=1) / features
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / features
    scale = tl.load(weight + column, mask=column < features).to(tl.float32)
    shift = tl.load(bias + column, mask=column < features).to(tl.float32)
    return centred / tl.sqrt(variance + eps)[:, None] * scale[None, :] + shift[None, :]


@triton.jit(do_not_specialize=["tokens"])
def _residual_norm(
    x, x_bias, residual, weight, bias, tokens, features, eps, rows: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.arange(0, block)
    inside = (token < tokens)[:, None] & (column < features)[None, :]
    place = token[:, None] * features + column[None, :]
    total = tl.load(x + place, mask=inside).to(tl.float32)
    total += tl.load(x_bias + column, mask=column < features).to(tl.float32)[None, :]
    total += tl.load(residual + place, mask=inside).to(tl.float32)
    total = _normalized(total, inside, weight, bias, column, features, eps)
    tl.store(x + place, total.to(x.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=["tokens"], do_not_specialize_on_alignment=["input_ids", "position_ids"]
)
def _embed_norm(
    input_ids, position_ids, word, position, token_type, weight, bias, out, tokens, features, eps,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.arange(0, block)
    inside = (token < tokens)[:, None] & (column < features)[None, :]
    ids = tl.load(input_ids + token, mask=token < tokens, other=0)
    places = tl.load(position_ids + token, mask=token < tokens, other=0)
    total = tl.load(word + ids[:, None] * features + column[None, :], mask=inside).to(tl.float32)
    total += tl.load(token_type + column, mask=column < features).to(tl.float32)[None, :]
    where = places[:, None] * features + column[None, :]
    total += tl.load(position + where, mask=inside).to(tl.float32)
    total = _normalized(total, inside, weight, bias, column, features, eps)
    place = token[:, None] * features + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _float8_rows(
    x, bias, values, scales, tokens, features, largest, smallest, gelu: tl.constexpr,
    rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    column = tl.arange(0, block)
    inside = (token < tokens)[:, None] & (column < features)[None, :]
    place = token[:, None] * features + column[None, :]
    row = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if gelu:
        shift = tl.load(bias + column, mask=column < features, other=0.0).to(tl.float32)
        row = tl.where(inside, _gelu(row + shift[None, :]), 0.0)
    scale = tl.maximum(tl.max(tl.abs(row), axis=1), smallest) / largest
    row *= (1.0 / scale)[:, None]  # a division for each number would take longer than memory does
    tl.store(values + place, row.to(values.dtype.element_ty), mask=inside)
    tl.store(scales + token, scale, mask=token < tokens)


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


def float8_rows(x: Tensor, gelu_bias: Tensor | None = None) -> Rows:
    """float8.to_rows of x [tokens, features], or of GELU(x + gelu_bias)."""
    tokens, features = x.shape
    values = torch.empty(tokens, features, dtype=FLOAT8, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    grid, tile = _rows(tokens, features)
    with torch.cuda.device_of(x):
        _float8_rows[grid](
            x.contiguous(), x if gelu_bias is None else gelu_bias, values, scales, tokens, features,
            LARGEST, SMALLEST_ROW, gelu=gelu_bias is not None, **tile,
        )  # fmt: skip
    return Rows(values, scales)


def residual_norm_(x: Tensor, x_bias: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm(x + x_bias + residual), in the place of x.

    x and residual are [tokens, features], x_bias is [features].
    """
    tokens, features = x.shape
    grid, tile = _rows(tokens, features)
    with torch.cuda.device_of(x):
        _residual_norm[grid](
            x, x_bias, residual.contiguous(), norm.weight, norm.bias, tokens, features, norm.eps,
            **tile,
        )  # fmt: skip
    return x


def _rows(tokens: int, features: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid for programs that take whole rows, and how many a program takes."""
    block = triton.next_power_of_2(features)
    rows = NORM_ROWS if block <= NORM_FEATURES else 1
    return (triton.cdiv(tokens, rows),), {"rows": rows, "block": block}


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
    tokens, features = len(input_ids), word.shape[-1]
    out = torch.empty(tokens, features, dtype=word.dtype, device=word.device)
    grid, tile = _rows(tokens, features)
    with torch.cuda.device_of(word):
        _embed_norm[grid](
            input_ids, position_ids, word, position, token_type, norm.weight, norm.bias, out,
            tokens, features, norm.eps, **tile,
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
