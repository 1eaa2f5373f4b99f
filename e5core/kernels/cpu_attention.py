"""Attention on the CPU: short texts many at a time, long ones one by one, by what is fastest.

How a text is computed depends on nothing but its length, so the bits of the result do not
depend on the batch it is in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from e5core.kernels.row_counts import row_count

# torch's softmax takes a row in vectors of 16 float32 or 32 bfloat16 and what is left over one
# number at a time: rows of 14 take 8 times longer than rows of 16, of 63 in bfloat16 3 times
# longer than of 64 (torch 2.13, Zen 4, 2026-11). So texts are padded to these multiples inside
# attention, where padding costs least.
VECTOR = {torch.float32: 16, torch.bfloat16: 32}

# The ways to compute attention for each dtype. An entry names the longest text that it takes, a
# function in FUNCTIONS, and the dtype of the scores. Short texts are faster in float32, longer ones
# in bfloat16. Texts beyond the last entry take PyTorch's fused attention. (On Zen 4, with e5-small
# and large, all entries are 1.1 to 2 times faster than fused attention.)
WAYS = {
    torch.float32: ((64, "grouped", torch.float32),),
    torch.bfloat16: (
        (48, "grouped", torch.float32),
        (128, "grouped", torch.bfloat16),
        (512, "alone", torch.bfloat16),
    ),
}

# Numbers held at once as scores of grouped texts: 4 MB in bfloat16, which fit the cache.
MAX_SCORES = 1 << 21


def attend(qkv: Tensor, lengths: Sequence[int], dtype: torch.dtype) -> Tensor:
    """softmax(query key^T / sqrt(head_size)) value within each text

    qkv      [rows, 3, heads, head_size]  query, key and value side by side; rows behind those of
             the texts get zeros
    lengths  tokens of each text, in order
    dtype    a key of WAYS: qkv's own, or one that it may be rounded to for this
    returns  [rows, heads, head_size] in qkv's dtype
    """
    rows, _, heads, head_size = qkv.shape
    output = qkv.new_empty(rows, heads, head_size)
    start = 0
    for group in plan(tuple(lengths), heads, dtype):
        stop = start + group.tokens
        FUNCTIONS[group.way](qkv, start, group, output[start:stop])
        start = stop
    if start < rows:
        output[start:] = 0
    return output


@dataclass(frozen=True)
class Group:
    """Neighbouring texts that attention takes as one dense batch.

    way     a name in FUNCTIONS
    length  tokens of each text, padded ones included
    rows    [tokens] where the tokens go among texts · length; None if all texts are equal
    mask    [texts · heads, 1, length] 0 and -inf, in the dtype to compute in
    """

    way: str
    texts: int
    tokens: int
    length: int
    rows: Tensor | None = None
    mask: Tensor | None = None


def attend_grouped(qkv: Tensor, start: int, group: Group, output: Tensor) -> None:
    """Short texts, padded to one length, with all their scores in memory at once."""
    assert group.mask is not None
    texts, length, (_, heads, head_size) = group.texts, group.length, qkv.shape[1:]
    if group.tokens < qkv.shape[0]:
        qkv = qkv[start : start + group.tokens]
    dense = qkv.new_zeros(3, texts, heads, length, head_size, dtype=group.mask.dtype)
    if group.rows is None:
        equal = qkv.view(texts, -1, 3, heads, head_size)
        dense[:, :, :, : equal.shape[1]] = equal.permute(2, 0, 3, 1, 4)
    else:
        padded = qkv.new_zeros(texts * length, 3, heads, head_size)
        padded.index_copy_(0, group.rows, qkv)
        dense.copy_(padded.view(texts, length, 3, heads, head_size).permute(2, 0, 3, 1, 4))
    # [texts · heads, length, head_size] each
    query, key, value = dense.view(3, texts * heads, length, head_size).unbind()
    context = _softmax_attention(query, key, value, group.mask)
    context = context.view(texts, heads, length, head_size).transpose(1, 2)
    if group.rows is None:
        equal_output = output.view(texts, -1, heads, head_size)
        equal_output.copy_(context[:, : equal_output.shape[1]])
    else:
        output.copy_(context.reshape(texts * length, heads, head_size)[group.rows])


def attend_alone(qkv: Tensor, start: int, group: Group, output: Tensor) -> None:
    """One long text, read and written in place.

    The keys and values that pad it are those of the texts behind it: their weight is exactly 0.
    Were one of them not finite, both texts would be, and E5 raises for either.
    """
    assert group.mask is not None
    window = qkv[start : start + group.length]
    if window.shape[0] < group.length:
        window = F.pad(window, (0, 0, 0, 0, 0, 0, 0, group.length - window.shape[0]))
    # [heads, length, head_size] each
    query, key, value = window.to(group.mask.dtype).permute(1, 2, 0, 3).unbind()
    rows = min(row_count(group.tokens), group.length)
    whole = rows == group.tokens and output.dtype == group.mask.dtype
    place = output.transpose(0, 1) if whole else None
    context = _softmax_attention(query[:, :rows], key, value, group.mask, place)
    if place is None:
        output.copy_(context[:, : group.tokens].transpose(0, 1))


def attend_fused(qkv: Tensor, start: int, group: Group, output: Tensor) -> None:
    """Texts of one length through PyTorch's fused attention."""
    equal = qkv[start : start + group.tokens].unflatten(0, (group.texts, -1))
    query, key, value = equal.permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(query, key, value)
    output.unflatten(0, (group.texts, -1)).copy_(context.transpose(1, 2))


FUNCTIONS = {"grouped": attend_grouped, "alone": attend_alone, "fused": attend_fused}


def _softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, output: Tensor | None = None
) -> Tensor:
    """softmax(query key^T / sqrt(head_size) + mask) value on [batch, length, head_size]"""
    scale = query.shape[-1] ** -0.5
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale)
    torch.softmax(scores, -1, out=scores)  # megabytes of fresh memory cost as much as the exp
    return torch.bmm(scores, value) if output is None else torch.bmm(scores, value, out=output)


@lru_cache(maxsize=64)
def plan(lengths: tuple[int, ...], heads: int, dtype: torch.dtype) -> tuple[Group, ...]:
    """Groups of a batch, in order; the same for each of its layers."""
    return tuple(_groups(lengths, heads, dtype))


def _groups(lengths: tuple[int, ...], heads: int, dtype: torch.dtype) -> Iterator[Group]:
    for (way, length, wide), run in groupby(lengths, key=partial(_way, dtype=dtype)):
        members = list(run)
        if way == "fused":
            yield Group(way, len(members), sum(members), length)
            continue
        most = 1 if way == "alone" else max(1, MAX_SCORES // (heads * length * length))
        start = 0
        while start < len(members):
            count = min(most, len(members) - start)
            if wide == torch.bfloat16:  # by oneDNN: see row_counts.py
                count = 1 << (count.bit_length() - 1)
            part = torch.tensor(members[start : start + count])
            start += count
            inside = torch.arange(length) < part[:, None]  # [texts, length]
            mask = torch.zeros(inside.shape, dtype=wide).masked_fill_(~inside, -torch.inf)
            mask = mask.repeat_interleave(heads, 0)[:, None]
            equal = bool((part == part[0]).all())
            rows = None if equal else inside.flatten().nonzero().flatten()
            yield Group(way, len(part), int(part.sum()), length, rows, mask)


def _way(length: int, dtype: torch.dtype) -> tuple[str, int, torch.dtype]:
    """The way to compute a text's attention, its length with padding, and the scores' dtype.

    All three depend on the text's length alone, and so do the bits of the result.
    """
    for longest, way, wide in WAYS[dtype]:
        if length <= longest:
            vector = VECTOR[wide]
            return way, -(-length // vector) * vector, wide
    return "fused", length, dtype
