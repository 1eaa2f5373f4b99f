"""Chunks of a batch: what is encoded at a time, as full as can be and of few sizes."""

from bisect import bisect_right
from collections.abc import Sequence

# For each number of tokens that it meets, oneDNN keeps primitives: 9 MB for the products of a layer
# and their gradients, by which a run grew to 2.8 GB (torch 2.13, e5-small, 2026-11). So a chunk has
# short texts behind its own, up to one of so many numbers in each doubling. No text sees another,
# and no gradient comes from their rows.
PER_DOUBLING, FILLER_LENGTH = 4, 16


def plan_chunks(lengths: Sequence[int], chunk_tokens: int) -> list[list[int]]:
    """Group texts into chunks of at most `chunk_tokens` tokens.

    lengths  tokens of each text
    returns  indices into `lengths`, in each chunk from the longest text to the shortest, which lets
             attention take texts of one length together

    The longest text that is left begins a chunk, and the longest that fit into the rest of it
    follow, so that all chunks but the last are nearly full. A text longer than `chunk_tokens` is a
    chunk by itself.
    """
    left: dict[int, list[int]] = {}
    for index in reversed(range(len(lengths))):
        left.setdefault(lengths[index], []).append(index)
    sizes = sorted(left)
    chunks = []
    while sizes:
        chunk, room, place = list[int](), chunk_tokens, len(sizes) - 1
        while place >= 0:
            size = sizes[place]
            chunk.append(left[size].pop())
            room -= size
            if not left[size]:
                del sizes[place]
            place = bisect_right(sizes, room) - 1
        chunks.append(chunk)
    return chunks


def filler(chunk: Sequence[Sequence[int]]) -> list[list[int]]:
    """Texts that bring a chunk to one of few numbers of tokens."""
    tokens = sum(map(len, chunk))
    step = max(1, (1 << (tokens - 1).bit_length()) // (2 * PER_DOUBLING))
    missing = -tokens % step
    length = min(FILLER_LENGTH, max(map(len, chunk)))
    starts = range(0, missing, length)
    return [[chunk[0][0]] * min(length, missing - start) for start in starts]
