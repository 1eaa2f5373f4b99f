"""Whether what e5core set out to reach was reached: a line for each aim, and an exit status."""

import operator
from collections.abc import Sequence

HELD, MISSED = "held", "missed"


def verdict(
    what: str, found: float, wanted: float, at_most: bool = False, above: bool = False
) -> str:
    """A line that begins with "held" or "missed"; NaN holds nothing.

    at_most, above  what is found is to be that, in place of at least what is wanted
    """
    compare = operator.le if at_most else operator.gt if above else operator.ge
    return (
        f"{HELD if compare(found, wanted) else MISSED:7} {what}: {found:.2f}, wanted {wanted:.2f}"
    )


def print_verdicts(lines: Sequence[str]) -> int:
    """The exit status: 1 if an aim was missed."""
    print("\n" + "\n".join(lines))
    return int(any(line.startswith(MISSED) for line in lines))
