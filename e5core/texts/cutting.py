"""Ids that are too many for a model: cut off, put into windows, or refused."""

from collections.abc import Sequence

import numpy as np


def check_truncate(truncate: str) -> None:
    """ValueError unless it is one of the ways to treat a text that is too long."""
    if truncate not in ("end", "none", "window"):
        raise ValueError(f"truncate is {truncate!r}, expected 'end', 'none' or 'window'")


def describe_limit(max_length: int) -> str:
    """The end of a sentence about a text that has too many tokens."""
    return (
        f"the model takes {max_length} (prefix, <s> and </s> included); pass "
        'truncate="end" (--truncate end) or truncate="window" (--truncate window)'
    )


def cut(ids: Sequence[int], max_length: int) -> list[int]:
    """Keep `<s>`, the first `max_length - 2` pieces and `</s>`, as the published models do."""
    return list(ids) if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]


def cut_all(texts: Sequence[Sequence[int]], max_length: int) -> list[Sequence[int]]:
    """The ids of each text, cut if there are too many. Arrays stay arrays."""

    def fit(ids: Sequence[int]) -> Sequence[int]:
        if len(ids) <= max_length:
            return ids
        if isinstance(ids, np.ndarray):
            return np.append(ids[: max_length - 1], ids[-1])
        return cut(ids, max_length)

    return [fit(ids) for ids in texts]
