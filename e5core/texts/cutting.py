"""Ids that are too many for a model: cut off, put into windows, or refused."""

from collections.abc import Sequence


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


def windows(ids: Sequence[int], max_length: int, prefix: Sequence[int] = ()) -> list[list[int]]:
    """Split a long text into sequences of at most `max_length` tokens.

    ids     `<s> pieces </s>`
    prefix  pieces of the prompt: where the text starts with them, every window does

    The windows do not overlap; together they hold each piece of the text once.
    Raises ValueError if the prefix leaves no room for text.
    """
    if len(ids) <= max_length:
        return [list(ids)]
    pieces = list(ids[1:-1])
    lead = list(prefix) if pieces[: len(prefix)] == list(prefix) else []
    room = max_length - 2 - len(lead)
    if room < 1:
        raise ValueError(
            f"the prefix has {len(lead)} tokens and leaves no room for text in windows of "
            f"{max_length}; shorten the task or raise max_length"
        )
    body = pieces[len(lead) :]
    return [
        [ids[0], *lead, *body[start : start + room], ids[-1]] for start in range(0, len(body), room)
    ]
