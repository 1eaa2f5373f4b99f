"""Packed batches: the tokens of all texts one after another, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from e5core.config import EncoderConfig
from e5core.texts.errors import TextError


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
        queued = torch.device(device).type == "cuda" and not self.input_ids.is_cuda

        def moved(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if queued else tensor).to(device, non_blocking=queued)

        return PackedBatch(
            moved(self.input_ids),
            moved(self.position_ids),
            moved(self.cu_seqlens),
            self.max_seqlen,
        )


def pack(texts: Sequence[Sequence[int]], config: EncoderConfig) -> PackedBatch:
    """Lay the token ids of several texts one after another.

    texts  the ids of each text, `<s>` and `</s>` included

    Raises ValueError if there is no text, and TextError if one has no tokens, has more than
    `config.max_length`, or has an id outside the vocabulary.
    """
    if not texts:
        raise ValueError("there is no text to pack")
    for index, ids in enumerate(texts):
        if not 0 < len(ids) <= config.max_length:
            raise TextError(
                f"{{}} has {len(ids)} tokens, the model takes 1 to {config.max_length}; "
                "cut it first",
                index,
            )
        if min(ids) < 0 or max(ids) >= config.vocab_size:
            culprit = next(i for i in ids if not 0 <= i < config.vocab_size)
            raise TextError(
                f"{{}} has the id {culprit}, the vocabulary has rows 0 to "
                f"{config.vocab_size - 1}; tokenize with the tokenizer of this model",
                index,
            )
    lengths = [len(ids) for ids in texts]
    first = config.first_position
    return PackedBatch(
        input_ids=torch.tensor([i for ids in texts for i in ids], dtype=torch.int64),
        position_ids=torch.tensor(
            [p for length in lengths for p in range(first, first + length)], dtype=torch.int64
        ),
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
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
