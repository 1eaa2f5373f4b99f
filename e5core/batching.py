"""Packed batches: the tokens of all texts one after another, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from e5core.config import EncoderConfig
from e5core.kernels.cuda.copies import copy_all
from e5core.texts.errors import TextError
from e5core.texts.ids import flatten


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of several texts, end to end.

    input_ids     [tokens] int64     the ids of text 0, then of text 1, …
    position_ids  [tokens] int64     rows of the position table, counted anew in each text
    cu_seqlens    [texts + 1] int32  where each text starts; the last entry is the token count
    max_seqlen    int                tokens of the longest text
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on a device. A GPU queues the copy, and the CPU does not wait for it."""
        parts = copy_all([self.input_ids, self.position_ids, self.cu_seqlens], device)
        return PackedBatch(parts[0], parts[1], parts[2], self.max_seqlen)


def pack(texts: Sequence[Sequence[int]], config: EncoderConfig) -> PackedBatch:
    """Lay the token ids of several texts one after another.

    texts  the ids of each text, `<s>` and `</s>` included, in lists or arrays

    Raises ValueError if there is no text, and TextError if one has no tokens, has more than
    `config.max_length`, or has an id outside the vocabulary.
    """
    if not texts:
        raise ValueError("there is no text to pack")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if not 0 < lengths.min() <= lengths.max() <= config.max_length:
        index = int(np.argmax((lengths < 1) | (lengths > config.max_length)))
        raise TextError(
            f"{{}} has {lengths[index]} tokens, the model takes 1 to {config.max_length}; "
            "cut it first",
            index,
        )
    input_ids = flatten(texts, lengths, config.vocab_size)
    ends = lengths.cumsum()
    starts = ends - lengths
    position_ids = np.arange(ends[-1]) - np.repeat(starts - config.first_position, lengths)
    return PackedBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(np.append(starts, ends[-1]).astype(np.int32)),
        int(lengths.max()),
    )


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group texts, longest first, into batches of at most `max_tokens` tokens.

    lengths  tokens of each text
    returns  indices into `lengths`; texts of one length stand side by side, which lets
             attention take them together

    A text longer than `max_tokens` gets a batch of its own: it cannot be split.
    """
    batches: list[list[int]] = []
    tokens = max_tokens
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens += lengths[index]
        if tokens > max_tokens:
            batches.append([])
            tokens = lengths[index]
        batches[-1].append(index)
    return batches
