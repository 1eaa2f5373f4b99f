"""The rows of `e5core check`: what was measured, and the bound that it holds or breaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from e5core.parity.tolerances import FLOAT64_ERROR_FACTOR, FLOAT64_ERROR_STANDARD_ERRORS

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    bound: str
    measured: str
    ok: bool


def table(cases: Sequence[Case]) -> str:
    rows = [("case", "bound", "measured", "verdict")]
    rows += [(case.name, case.bound, case.measured, "ok" if case.ok else "FAIL") for case in cases]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def at_most(name: str, bound: float, measured: float, note: str = "") -> Case:
    """A case that holds if `measured` is at most the bound; NaN breaks any bound."""
    return Case(name, f"≤ {bound:.2g}", f"{measured:.2g}{note}", measured <= bound)


def at_least(name: str, bound: float, measured: float) -> Case:
    return Case(name, f"≥ {bound:.10g}", f"{measured:.10g}", measured >= bound)


def worst(vectors: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The largest difference of two numbers in the same place."""
    a, b = np.asarray(vectors), np.asarray(reference)
    if a.shape != b.shape:
        raise ValueError(f"cannot compare an array of shape {a.shape} with one of {b.shape}")
    return float(np.abs(a - b).max())


def error_case(
    kernels: str,
    ours: Numbers,
    theirs: Numbers,
    truth: Numbers,
    factors: Mapping[str, float] = FLOAT64_ERROR_FACTOR,
) -> Case:
    """e5core's distance from the exact result is no larger than transformers'.

    ours, theirs, truth  [texts, numbers], float64 in the last
    factors              by the kernels, how far ours may be in multiples of theirs
    """
    our_errors, their_errors = (np.abs(v - truth).mean(axis=1) for v in (ours, theirs))
    chance = (our_errors - their_errors).std() / np.sqrt(len(truth))
    bound = factors[kernels] * their_errors.mean() + FLOAT64_ERROR_STANDARD_ERRORS * chance
    note = f" (transformers {their_errors.mean():.2g})"
    name = f"mean error against float64, kernels {kernels}"
    return at_most(name, float(bound), float(our_errors.mean()), note)
