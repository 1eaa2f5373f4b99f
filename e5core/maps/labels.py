"""On which side of its point a label stands, so that few lie on each other."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FONT_SIZE = 12
# Of a letter of Helvetica and Arial on average, in font sizes; one of Chinese is as wide as high.
_LETTER, _WIDE_LETTER = 0.53, 1.0
_WIDE_FROM = "\u1100"
# Half the width of a point, and the gap between it and its label, in pixels.
_POINT, _GAP = 5.0, 2.0


class Side(NamedTuple):
    """Where a label stands beside its point, in Vega's words; dx and dy are in pixels."""

    align: str
    baseline: str
    dx: float
    dy: float


_FAR, _NEAR = _POINT + _GAP, 0.7 * _POINT
SIDES = (
    Side("left", "middle", _FAR, 0),
    Side("right", "middle", -_FAR, 0),
    Side("center", "bottom", 0, -_FAR),
    Side("center", "top", 0, _FAR),
    Side("left", "bottom", _NEAR, -_NEAR),
    Side("left", "top", _NEAR, _NEAR),
    Side("right", "bottom", -_NEAR, -_NEAR),
    Side("right", "top", -_NEAR, _NEAR),
)
_FROM_LEFT = {"left": 0.0, "center": 0.5, "right": 1.0}
_FROM_TOP = {"top": 0.0, "middle": 0.5, "bottom": 1.0}


def choose_sides(places: npt.ArrayLike, labels: Sequence[str]) -> list[int]:
    """For each label the place in SIDES where it covers least of points and of labels before it.

    places  [n, 2] in pixels, from the top left
    """
    points = np.asarray(places, dtype=np.float64).reshape(-1, 2)
    taken = np.concatenate([points - _POINT, points + _POINT], axis=1)
    standing = np.empty((0, 4))
    chosen = []
    for point, label in zip(points, labels, strict=True):
        boxes = _boxes(point, label)
        covered = [_common(box, taken) + _common(box, standing) for box in boxes]
        best = int(np.argmin(covered))
        chosen.append(best)
        if label:
            standing = np.concatenate([standing, boxes[best : best + 1]])
    return chosen


def _boxes(point: Floats, label: str) -> Floats:
    """What a label covers on each side [sides, 4]: left, top, right and bottom."""
    letters = sum(_WIDE_LETTER if letter >= _WIDE_FROM else _LETTER for letter in label)
    width, height = letters * FONT_SIZE, float(FONT_SIZE)
    lefts = [point[0] + side.dx - _FROM_LEFT[side.align] * width for side in SIDES]
    tops = [point[1] + side.dy - _FROM_TOP[side.baseline] * height for side in SIDES]
    return np.array(
        [[x, y, x + width, y + height] for x, y in zip(lefts, tops, strict=True)], dtype=np.float64
    )


def _common(box: Floats, others: Floats) -> float:
    """The area that a box [4] has in common with others [n, 4]."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return float(np.maximum(high - low, 0).prod(axis=1).sum())
