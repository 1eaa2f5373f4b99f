"""Two models on the same items: paired differences, and how sure they are. Needs no torch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A difference of two scores, and where it lies by the bootstrap."""

    difference: float
    low: float
    high: float


def interval_of(difference: float, resampled: Floats, confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of a difference whose resampled values [resamples] are given.

    Values that are NaN, of draws in which nothing is ordered, are left out; NaN if all of them are.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return Interval(difference, math.nan, math.nan)
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(difference, float(low), float(high))


def resampled_means(
    differences: npt.ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Means [resamples] of differences [items], the items drawn anew each time with replacement."""
    values = np.asarray(differences, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = values[random.integers(len(values), size=len(values))].mean()
    return means


def resampled_spearman(
    grades: npt.ArrayLike,
    scores: Sequence[npt.ArrayLike],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Floats:
    """Spearman's correlation [resamples, models] of each model's scores [items] with the grades.

    Each resample draws the same items for all models, so that their differences are paired. Of few
    items, some draws have equal grades or equal scores alone: their correlation is NaN.
    """
    grades = np.asarray(grades, dtype=np.float64)
    models = [np.asarray(one, dtype=np.float64) for one in scores]
    random = np.random.default_rng(seed)
    found = np.empty((resamples, len(models)))
    for i in range(resamples):
        drawn = random.integers(len(grades), size=len(grades))
        of_grades = ranks(grades[drawn])
        for model, values in enumerate(models):
            with np.errstate(invalid="ignore", divide="ignore"):
                found[i, model] = np.corrcoef(of_grades, ranks(values[drawn]))[0, 1]
    return found


def ranks(values: Floats) -> Floats:
    """The ranks [items] of values from 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Floats = last - (counts - 1) / 2
    return middle[inverse.reshape(-1)]


def bitext_f1(predicted: npt.ArrayLike) -> Floats:
    """What each sentence [sentences] contributes to mteb's weighted F1 of a bitext task.

    predicted  [sentences] int64, the sentence that each one's nearest neighbour translates

    Every sentence is a class of its own with one example. Its recall is 1 if it was found, and its
    precision is then 1 in so many sentences as were led to it, so F1 is 2 / (1 + that number).
    """
    places = np.asarray(predicted, dtype=np.int64)
    led = np.bincount(places, minlength=len(places))[: len(places)]
    found = places == np.arange(len(places))
    scores: Floats = np.where(found, 2 / (1 + led), 0.0)
    return scores
