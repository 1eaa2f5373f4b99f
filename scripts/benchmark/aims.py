"""Whether what e5core set out to reach was reached: a line for each aim, and an exit status."""

from collections.abc import Sequence

HELD, MISSED = "held", "missed"


def verdict(what: str, found: float, wanted: float, at_most: bool = False) -> str:
    """A line that begins with "held" or "missed"; NaN holds nothing."""
    holds = found <= wanted if at_most else found >= wanted
    return f"{HELD if holds else MISSED:7} {what}: {found:.2f}, wanted {wanted:.2f}"


def print_verdicts(lines: Sequence[str]) -> int:
    """The exit status: 1 if an aim was missed."""
    print("\n" + "\n".join(lines))
    return int(any(line.startswith(MISSED) for line in lines))
