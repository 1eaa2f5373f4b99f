"""Texts with a prefix to ids, slice by slice."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import cast

import numpy as np
import torch

from e5core.kernels.threads import thread_count
from e5core.texts.errors import TextError
from e5core.texts.slices import slices
from e5core.tokenizer import BOS, EOS, FAIRSEQ_OFFSET, SP_UNKNOWN, UNKNOWN, SentencePieceTokenizer

# Beside a GPU, which computes a slice while the next one is tokenized on several threads: the first
# ones are small, since nothing computes yet, and the others have a few forward passes. Tokenizing
# in a thread of Python's is slower: it holds up the one that calls the GPU (2026-11).
THREADS = 12
CHARACTERS = 64_000, 128_000, 256_000, 512_000, 1_024_000
FEWEST = 64  # texts for which SentencePiece starts threads

Ids = Sequence[Sequence[int]]


def tokenized(
    tokenizer: SentencePieceTokenizer,
    device: torch.device,
    texts: Iterable[str],
    prefix: str,
) -> Iterator[Ids]:
    """The ids of each text with the prefix in front, in slices of bounded size.

    device  that computes

    Raises TypeError or TextError naming the text at fault.
    """
    beside = device.type != "cpu"
    threads = min(THREADS, thread_count()) if beside else None
    first = 0
    for some in slices(texts, chain(CHARACTERS, repeat(CHARACTERS[-1])) if beside else None):
        yield _tokenize(tokenizer, some, prefix, first, threads)
        first += len(some)


def _tokenize(
    tokenizer: SentencePieceTokenizer,
    texts: Sequence[str],
    prefix: str,
    first: int,
    threads: int | None,
) -> Ids:
    """The ids of each text; errors count texts from `first`. Without threads one by one."""
    if threads is not None and len(texts) >= FEWEST:
        try:
            pieces = tokenizer.piece_numbers([prefix + text for text in texts], threads)
        except (ValueError, TypeError, RuntimeError):
            pass  # one by one, so that the error names the text
        else:
            return _to_arrays(pieces)
    ids = []
    for index, text in enumerate(texts, first):
        try:
            ids.append(_encode(tokenizer, prefix, text))
        except ValueError as error:
            raise TextError(f"{{}}: {error}", index) from None
    return ids


def _to_arrays(pieces: Sequence[Sequence[int]]) -> Ids:
    """The ids of each text, `<s>` and `</s>` included, as arrays of numpy's.

    They take a third of the time of lists: all texts are numbered anew at once.
    """
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces)) + 2
    stops = lengths.cumsum()
    starts = stops - lengths
    ids, inner = np.empty(stops[-1], np.int64), np.ones(stops[-1], np.bool_)
    for places, special in ((starts, BOS), (stops - 1, EOS)):
        ids[places], inner[places] = special, False
    found = np.fromiter(chain.from_iterable(pieces), np.int64, len(ids) - 2 * len(pieces))
    ids[inner] = np.where(found == SP_UNKNOWN, UNKNOWN, found + FAIRSEQ_OFFSET)
    arrays = [ids[start:stop] for start, stop in zip(starts, stops, strict=True)]
    return cast(Ids, arrays)  # which are sequences of integers in all but name


def _encode(tokenizer: SentencePieceTokenizer, prefix: str, text: str) -> list[int]:
    try:
        return tokenizer.encode(prefix + text)
    except ValueError:
        tokenizer.encode(text)  # its error counts the characters that the caller gave
        raise
