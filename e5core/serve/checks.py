"""Texts that no model is asked to compute: too many, too long, or empty."""

from collections.abc import Sequence

from e5core.serve.errors import RefusedError, bad
from e5core.serve.limits import Limits
from e5core.texts.containers import is_blank

MOST_NAMED = 10  # texts that an error lists
# Characters of a request for tokens, or ids of one for texts: each makes an object of the answer.
MOST_DESCRIBED = 65_536


def refuse_blank(texts: Sequence[str], field: str) -> None:
    """RefusedError (400) names the texts of which nothing can be seen: their vectors mean nothing.

    field  what errors call the texts
    """
    blank = [f"{field}[{index}]" for index, text in enumerate(texts) if is_blank(text)]
    if not blank:
        return
    more = f" and {len(blank) - MOST_NAMED} more" * (len(blank) > MOST_NAMED)
    what = "is empty" if len(blank) == 1 else "are empty"
    raise bad(
        f"{', '.join(blank[:MOST_NAMED])}{more} {what}; a text needs something that can be seen",
        field,
        "empty_text",
    )


def check_texts(texts: Sequence[str], field: str, limits: Limits) -> None:
    """RefusedError (400, 413) if there are none, too many, or one that is too long."""
    if not texts:
        raise bad(f"{field} is empty, expected one text or more", field, "empty")
    if len(texts) > limits.max_texts:
        raise bad(
            f"{field} has {len(texts):,} texts, this server takes {limits.max_texts:,} a "
            "request; send several requests",
            field,
            "too_many_texts",
        )
    for index, text in enumerate(texts):
        if len(text) > limits.max_characters:
            raise RefusedError(
                413,
                f"{field}[{index}] has {len(text):,} characters, this server takes "
                f"{limits.max_characters:,}; send its passages",
                code="text_too_long",
                param=field,
            )


def check_described(number: int, field: str, what: str) -> None:
    """RefusedError (413) if the answer would have too many objects.

    what  is counted, in the plural
    """
    if number > MOST_DESCRIBED:
        raise RefusedError(
            413,
            f"{field} has {number:,} {what}, this server takes {MOST_DESCRIBED:,} of them a "
            "request; send several requests",
            code="too_long",
            param=field,
        )
