"""Attention within each text of a packed batch, in Triton.

The tiles of FlashAttention 2 are 128 queries by 128 keys, most of which lie outside a short text.
Here they are as small as the texts of a batch are, by its longest one.
Source of the running softmax: Dao 2022, arXiv:2205.14135.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from e5core.kernels.plain import Kernels

LOG2_E = math.log2(math.e)
HEAD_SIZES = 16, 32, 64, 128  # powers of two, as Triton's blocks are
LARGEST_ERROR = 32  # of numbers of the size of 1 when tiles are tried, in units of the dtype's eps


@triton.jit
def _attend(
    query, place, inside, largest, total, sums, scale, width, cut: tl.constexpr
):  # fmt: skip
    """The running maximum, sum of weights and weighted sum, after some more keys and values.

    place   of the keys, with the values `width` numbers behind
    inside  which of them are the text's, if it is `cut`
    """
    if cut:
        key = tl.load(place, mask=inside[:, None], other=0.0)
        value = tl.load(place + width, mask=inside[:, None], other=0.0)
    else:
        key, value = tl.load(place), tl.load(place + width)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # of float32 in tests
    if cut:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    highest = tl.maximum(largest, tl.max(scores, axis=1))
    weights = tl.exp2(scores - highest[:, None])
    shrink = tl.exp2(largest - highest)
    total = total * shrink + tl.sum(weights, axis=1)
    sums *= shrink[:, None]
    sums = tl.dot(weights.to(value.dtype), value, sums, input_precision="ieee")
    return highest, total, sums


@triton.jit(do_not_specialize=["blocks"])
def _attention(
    qkv, cu_seqlens, out, blocks, heads, scale, head_size: tl.constexpr, rows: tl.constexpr,
    keys: tl.constexpr,
):  # fmt: skip
    # Blocks of one text and head stand side by side: they read the same keys and values.
    program = tl.program_id(0)
    head, text = program // blocks % heads, program // blocks // heads
    start = tl.load(cu_seqlens + text)
    length = tl.load(cu_seqlens + text + 1) - start
    first = program % blocks * rows
    if first < length:
        row, column, key = first + tl.arange(0, rows), tl.arange(0, head_size), tl.arange(0, keys)
        width = heads * head_size  # of the queries of a token, and the keys, and the values
        queries = qkv + start.to(tl.int64) * 3 * width + head * head_size + column[None, :]
        inside = (row < length)[:, None]
        query = tl.load(queries + row[:, None] * 3 * width, mask=inside, other=0.0)
        largest = tl.full((rows,), float("-inf"), tl.float32)
        total = tl.zeros((rows,), tl.float32)
        sums = tl.zeros((rows, head_size), tl.float32)
        place = queries + width + key[:, None] * 3 * width
        whole = length // keys * keys
        for begin in range(0, whole, keys):
            largest, total, sums = _attend(
                query, place + begin * 3 * width, key, largest, total, sums, scale, width, False
            )
        if whole < length:
            largest, total, sums = _attend(
                query, place + whole * 3 * width, whole + key < length, largest, total, sums,
                scale, width, True,
            )  # fmt: skip
        results = out + (start.to(tl.int64) * heads + head) * head_size
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


@cache
def takes(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether every tile can take heads of that size there, and is right.

    It can be too large for the shared memory of a GPU.
    """
    if head_size not in HEAD_SIZES:
        return False
    generator = torch.Generator().manual_seed(0)
    for tile in (*(tile for _, tile in TILES), LARGEST):
        lengths = torch.tensor([0, 1, tile.rows + 3])
        bounds = lengths.cumsum(0).int().to(device)
        longest = int(lengths.max())
        qkv = torch.randn(1 + longest, 3, 1, head_size, generator=generator).to(device, dtype)
        try:
            found = attention(qkv, bounds, longest, tile)
        except torch.OutOfMemoryError:
            raise  # which says nothing about the tile
        except Exception:  # whatever a compiler or a driver raises
            return False
        error = (found - Kernels().attention(qkv.double(), bounds, longest, 0.0)).abs().max()
        if not error <= LARGEST_ERROR * torch.finfo(dtype).eps:
            return False
    return True


def attention(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, tile: Tile | None = None) -> Tensor:
    """Kernels.attention; a text may have no tokens.

    max_seqlen is taken at its word: to check it would wait for the GPU.
    """
    tile = tile or tile_for(max_seqlen)
    qkv = qkv.contiguous()
    tokens, _, heads, head_size = qkv.shape
    out = torch.empty(tokens, heads, head_size, dtype=qkv.dtype, device=qkv.device)
    blocks = triton.cdiv(max_seqlen, tile.rows)
    with torch.cuda.device_of(qkv):
        _attention[(blocks * heads * (len(cu_seqlens) - 1),)](
            qkv, cu_seqlens, out, blocks, heads, LOG2_E / math.sqrt(head_size),
            head_size=head_size, rows=tile.rows, keys=tile.keys, num_warps=tile.warps,
            num_stages=tile.stages,
        )  # fmt: skip
    return out
