"""Pairs of a query and a passage: checked, cut to fit, laid out as a cross-encoder reads them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from e5core.texts.containers import one, several
from e5core.texts.errors import PairError
from e5core.tokenizer import BOS, EOS

PAIR_SPECIALS = 4  # tokens of a pair beside the pieces of its two texts

# Pairs are tokenized, sorted by length and scored in slices that end after this many tokens, so
# that memory does not grow with the input.
SLICE_TOKENS = 250_000


def join_pair(query: Sequence[int], passage: Sequence[int]) -> list[int]:
    """The ids of a cross-encoder's input: `<s> query </s></s> passage </s>`, from pieces."""
    return [BOS, *query, EOS, EOS, *passage, EOS]


def cut_longest_first(query: int, passage: int, room: int) -> tuple[int, int]:
    """How many pieces of a query and of a passage are kept, so that both fit into `room`.

    The longer one is cut down to the other, then both alike; a piece that is left over goes to
    the longer one. This is the strategy "longest_first" of Hugging Face's tokenizers
    (tokenizers/src/utils/truncation.rs).
    """
    if query + passage <= room:
        return query, passage
    shorter = min(query, passage)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return (longer, shorter) if query > passage else (shorter, longer)


def check_truncate_pair(truncate: str) -> None:
    """Raise ValueError unless this is a way to treat pairs that are too long."""
    if truncate not in ("passage", "longest", "none"):
        raise ValueError(f"truncate is {truncate!r}, expected 'passage', 'longest' or 'none'")


def fit_pair(
    query: Sequence[int], passage: Sequence[int], max_length: int, truncate: str, index: int
) -> list[int]:
    """The ids of a pair, cut to `max_length` tokens.

    query, passage  the pieces of each, without special tokens
    truncate        see Reranker.compute
    index           the place of the pair among all, for errors

    Raises PairError for a pair that is not to be cut, or whose query leaves no room.
    """
    room, found = max_length - PAIR_SPECIALS, len(query) + len(passage)
    if found <= room:
        return join_pair(query, passage)
    takes = f"the model takes {max_length}"
    if truncate == "none":
        raise PairError(
            f"{{}} has {found + PAIR_SPECIALS} tokens, {takes} (four special ones included); pass "
            'truncate="passage" (--truncate passage) or truncate="longest" (--truncate longest)',
            index,
        )
    if truncate == "longest":
        first, second = cut_longest_first(len(query), len(passage), room)
        return join_pair(query[:first], passage[:second])
    # Where FlagEmbedding's rule would cut the query, and with it silently change the question.
    most = min(max_length * 3 // 4, room)  # the latter is less under 16 tokens
    if len(query) > most:
        raise PairError(
            f"{{}} has a query of {len(query)} tokens, {takes} and leaves {most} to the query; "
            'shorten it, or pass truncate="longest" (--truncate longest)',
            index,
        )
    return join_pair(query, passage[: room - len(query)])


def pair_with(query: str, passages: Iterable[str]) -> Iterable[tuple[str, str]]:
    """A query with each of its passages; TypeError for what is no query or no passages."""
    query, passages = one(query, "query"), several(passages, "passages")
    if isinstance(passages, str):
        raise TypeError("passages is one str, expected several; pass [passage]")
    if isinstance(passages, Sequence):  # its length is known, which a progress bar shows
        return [(query, passage) for passage in passages]
    return ((query, passage) for passage in passages)


def check_pair(pair: Any, index: int) -> tuple[str, str]:
    """A pair of str; TypeError names what is none."""
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise TypeError(f"pair {index} is {pair!r:.80}, expected (query, passage)")
    for name, text in zip(("query", "passage"), pair, strict=True):
        if not isinstance(text, str):
            raise TypeError(
                f"{name} {index} is {text!r:.80} of type {type(text).__name__}, expected str"
            )
    return pair[0], pair[1]


def pair_slices(
    pairs: Iterable[tuple[str, str]],
    encode_pieces: Callable[[str], list[int]],
    max_length: int,
    truncate: str,
) -> Iterator[tuple[list[list[int]], list[int]]]:
    """Slices of all pairs: the ids that fit of each pair, and the tokens it had before any cut.

    encode_pieces         from a text to its pieces
    max_length, truncate  as in `fit_pair`

    Raises TypeError or PairError naming the pair at fault.
    """
    sequences: list[list[int]] = []
    counts: list[int] = []
    known, query_pieces = None, []  # a query is tokenized once for all its passages
    tokens = 0
    for index, pair in enumerate(pairs):
        query, passage = check_pair(pair, index)
        try:
            if query != known:
                known, query_pieces = query, encode_pieces(query)
            passage_pieces = encode_pieces(passage)
        except ValueError as error:
            raise PairError(f"{{}}: {error}", index) from None
        counts.append(len(query_pieces) + len(passage_pieces) + PAIR_SPECIALS)
        sequences.append(fit_pair(query_pieces, passage_pieces, max_length, truncate, index))
        tokens += len(sequences[-1])
        if tokens >= SLICE_TOKENS:
            yield sequences, counts
            sequences, counts, tokens = [], [], 0
    if sequences:
        yield sequences, counts
