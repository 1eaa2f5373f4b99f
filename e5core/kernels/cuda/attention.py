"""Attention within each text of a packed batch, in Triton.

The tiles of FlashAttention 2 are 128 queries by 128 keys, most of which lie outside a short text.
Here they are as small as the texts of a batch are, by its longest one.
Source of the running softmax: Dao 2022, arXiv:2205.14135.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)
HEAD_SIZES = 16, 32, 64, 128  # powers of two, as Triton's blocks are


@triton.jit
def _take(
    query, place, there, largest, total, sums, scale, width, cut: tl.constexpr
):  # fmt: skip
    """The running maximum, sum of weights and weighted sum, after some more keys and values."""
    if cut:
        key = tl.load(place, mask=there[:, None], other=0.0)
        value = tl.load(place + width, mask=there[:, None], other=0.0)
    else:
        key, value = tl.load(place), tl.load(place + width)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # of float32 in tests
    if cut:
        scores = tl.where(there[None, :], scores, float("-inf"))
    highest = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - highest[:, None])
    shrink = tl.exp2(largest - highest)
    total = total * shrink + tl.sum(weights, axis=1)
    sums *= shrink[:, None]
    sums = tl.dot(weights.to(value.dtype), value, sums, input_precision="ieee")
    return highest, total, sums


@triton.jit
def _attention(
    qkv, cu_seqlens, out, heads, scale, size: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr
):  # fmt: skip
    text, head = tl.program_id(2), tl.program_id(1)
    start = tl.load(cu_seqlens + text)
    length = tl.load(cu_seqlens + text + 1) - start
    first = tl.program_id(0) * rows
    if first < length:
        row, column, other = first + tl.arange(0, rows), tl.arange(0, size), tl.arange(0, keys)
        width = heads * size  # numbers of the query of a token, of all heads
        queries = qkv + start.to(tl.int64) * 3 * width + head * size + column[None, :]
        inside = (row < length)[:, None]
        query = tl.load(queries + row[:, None] * 3 * width, mask=inside, other=0.0)
        largest = tl.full((rows,), float("-inf"), tl.float32)
        total = tl.zeros((rows,), tl.float32)
        sums = tl.zeros((rows, size), tl.float32)
        place = queries + width + other[:, None] * 3 * width
        whole = length // keys * keys
        for begin in range(0, whole, keys):
            largest, total, sums = _take(
                query, place + begin * 3 * width, other, largest, total, sums, scale, width, False
            )
        if whole < length:
            largest, total, sums = _take(
                query, place + whole * 3 * width, whole + other < length, largest, total, sums,
                scale, width, True,
            )  # fmt: skip
        results = out + (start.to(tl.int64) * heads + head) * size
        results += row[:, None] * width + column[None, :]
        tl.store(results, (sums / total[:, None]).to(out.dtype.element_ty), mask=inside)


class Tile(NamedTuple):
    """What a program takes at once, and Triton's settings for it."""

    rows: int
    keys: int
    warps: int
    stages: int


# The fastest of twelve tiles for batches whose longest text has so many tokens, with heads of 32
# and of 64 features. Of the time of FlashAttention 2 they take .1 for texts of 16 tokens, .6 for
# texts of 20 to 512, .7 for 512 and .8 for 8,192 (H200, torch 2.11, Triton 3.6, 2026-11).
TILES = ((16, Tile(16, 16, 1, 2)), (32, Tile(32, 32, 1, 2)), (200, Tile(64, 32, 4, 3)))
LARGEST = Tile(64, 64, 4, 3)


def tile_for(max_seqlen: int) -> Tile:
    return next((tile for longest, tile in TILES if max_seqlen <= longest), LARGEST)


def takes(head_size: int) -> bool:
    """Whether a tile can have the features of a head."""
    return head_size in HEAD_SIZES


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, tile: Tile | None = None) -> Tensor:
    """Kernels.attention; a text may have no tokens.

    max_seqlen is taken at its word: to check it would wait for the GPU.
    """
    tile = tile or tile_for(max_seqlen)
    qkv = qkv.contiguous()
    tokens, _, heads, size = qkv.shape
    out = torch.empty(tokens, heads, size, dtype=qkv.dtype, device=qkv.device)
    grid = (triton.cdiv(max_seqlen, tile.rows), heads, cu_seqlens.shape[0] - 1)
    with torch.cuda.device_of(qkv):
        _attention[grid](
            qkv, cu_seqlens, out, heads, LOG2_E / math.sqrt(size), size=size, rows=tile.rows,
            keys=tile.keys, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out
