"""Texts with a prefix to ids, slice by slice."""

from collections.abc import Iterable, Iterator, Sequence

import torch

from e5core.texts.errors import TextError
from e5core.texts.slices import prefetch, slices
from e5core.tokenizer import SentencePieceTokenizer

# While a GPU computes, threads of SentencePiece's tokenize slices of so many characters, about
# three forward passes, if there are so many texts.
FEWEST_AHEAD, THREADS, CHARACTERS_AHEAD = 256, 4, 400_000

Ids = list[list[int]]


def tokenized(
    tokenizer: SentencePieceTokenizer,
    device: torch.device,
    texts: Iterable[str],
    prefix: str,
    total: int | None = None,
) -> Iterator[Ids]:
    """The ids of each text with the prefix in front, in slices of bounded size.

    device  that computes. Beside a GPU threads tokenize the next slice while the caller works on
            one; on a CPU both would want the same cores, and tokenizing is 0.3% of the work
    total   the number of texts, if it is known

    Raises TypeError or TextError naming the text at fault.
    """
    ahead = device.type != "cpu" and (total is None or total >= FEWEST_AHEAD)

    def found() -> Iterator[Ids]:
        first = 0
        for some in slices(texts, CHARACTERS_AHEAD if ahead else None):
            yield _tokenize(tokenizer, some, prefix, first, THREADS if ahead else 1)
            first += len(some)

    return prefetch(found()) if ahead else found()


def _tokenize(
    tokenizer: SentencePieceTokenizer, texts: Sequence[str], prefix: str, first: int, threads: int
) -> Ids:
    """The ids of each text; errors count texts from `first`."""
    if threads > 1:
        try:
            return tokenizer.encode_all([prefix + text for text in texts], threads)
        except (ValueError, TypeError, RuntimeError):
            pass  # one by one, so that the error names the text
    ids = []
    for index, text in enumerate(texts, first):
        try:
            ids.append(_encode(tokenizer, prefix, text))
        except ValueError as error:
            raise TextError(f"{{}}: {error}", index) from None
    return ids


def _encode(tokenizer: SentencePieceTokenizer, prefix: str, text: str) -> list[int]:
    try:
        return tokenizer.encode(prefix + text)
    except ValueError:
        tokenizer.encode(text)  # its error counts the characters that the caller gave
        raise
