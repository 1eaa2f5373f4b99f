"""Paired differences and their intervals, held against scikit-learn, SciPy and the theory."""

import numpy as np
import pytest

from e5core.evaluate.metrics import (
    bitext_f1,
    interval_of,
    ranks,
    resampled_means,
    resampled_spearman,
)


@pytest.mark.parametrize("seed", range(3))
def test_the_f1_of_sentences_adds_up_to_that_of_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    predicted = np.random.default_rng(seed).integers(30, size=30)
    predicted[::2] = np.arange(30)[::2]
    expected = metrics.f1_score(np.arange(30), predicted, average="weighted", zero_division=0)
    assert bitext_f1(predicted).mean() == pytest.approx(expected, abs=1e-12)


def test_ranks_share_the_mean_among_equals() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_the_interval_of_a_mean_is_that_of_the_theory() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.5, size=400)
    found = interval_of(float(differences.mean()), resampled_means(differences))
    half = 1.96 * differences.std() / 20
    assert found.low == pytest.approx(differences.mean() - half, abs=0.006)
    assert found.high == pytest.approx(differences.mean() + half, abs=0.006)
    assert np.array_equal(resampled_means(differences), resampled_means(differences))
    assert not np.array_equal(resampled_means(differences, seed=1), resampled_means(differences))


def test_correlations_are_resampled_in_pairs() -> None:
    random = np.random.default_rng(0)
    grades = random.integers(6, size=300).astype(float)
    good, noisy = grades + random.normal(0, 1, 300), grades + random.normal(0, 3, 300)
    same = resampled_spearman(grades, [good, good.copy()], 50)
    assert np.array_equal(same[:, 0], same[:, 1])  # both models have the same draws
    drawn = resampled_spearman(grades, [good, noisy], 300)
    differences = drawn[:, 1] - drawn[:, 0]
    interval = interval_of(float(differences.mean()), differences)
    assert interval.high < 0
    stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
    expected = stats.spearmanr(grades, noisy).statistic
    assert drawn[:, 1].mean() == pytest.approx(expected, abs=0.01)


def test_draws_that_order_nothing_are_left_out(recwarn: pytest.WarningsRecorder) -> None:
    """Of three items, every ninth draw has one of them alone."""
    drawn = resampled_spearman([1.0, 2.0, 3.0], [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], 300)
    missing = np.isnan(drawn).mean()
    assert 0.05 < missing < 0.2
    interval = interval_of(-2.0, drawn[:, 1] - drawn[:, 0])
    assert (interval.low, interval.high) == (-2.0, -2.0)
    assert np.isnan(interval_of(0.0, np.full(5, np.nan))[1:]).all()
    assert not recwarn.list
