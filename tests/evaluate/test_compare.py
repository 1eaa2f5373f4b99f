"""Which differences get an interval: those of scores whose items are known."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb", reason="mteb is not installed")

from e5core.evaluate.compare import MAIN_SCORES, Comparison, compare


def compared(kind: str, main_score: str, entries: list[dict[str, Any]], folder: Path) -> Comparison:
    """Two entries of a result, of a task of one subset whose predictions nothing needs."""
    metadata = SimpleNamespace(name="Task", type=kind, main_score=main_score)
    task = SimpleNamespace(metadata=metadata, eval_splits=["test"], hf_subsets=["default"])
    results = [
        SimpleNamespace(scores={"test": [{"hf_subset": "default", **entry}]}) for entry in entries
    ]
    predictions = folder / "predictions.json"
    predictions.write_text("{}")
    (found,) = compare(task, results, [predictions] * 2)
    return found


@pytest.mark.parametrize("kind", [*MAIN_SCORES, "PairClassification"])
def test_no_interval_is_of_another_score(kind: str, tmp_path: Path) -> None:
    """A retrieval that is measured by its hit rate, say: nDCG's items would give a wrong one."""
    found = compared(kind, "another", [{"main_score": 0.5}, {"main_score": 0.7}], tmp_path)
    assert (found.first, found.second) == (0.5, 0.7)
    assert found.interval is found.resampled is None


@pytest.mark.parametrize("levels", [1, 2, None])
def test_a_clustering_has_levels_or_sets(levels: int | None, tmp_path: Path) -> None:
    """V-measures by level of the labels, or as a list in mteb's older kind of clustering."""
    random = np.random.default_rng(0)
    draws = random.uniform(size=(2, levels or 1, 10))
    entries = [
        {
            "main_score": float(of_model.mean()),
            "v_measures": of_model[0].tolist()
            if levels is None
            else {f"Level {i}": level.tolist() for i, level in enumerate(of_model)},
        }
        for of_model in draws
    ]
    found = compared("Clustering", "v_measure", entries, tmp_path)
    assert found.interval is not None
    assert found.resampled is not None
    assert found.interval.low < found.second - found.first < found.interval.high
    deviation = (draws[1] - draws[0]).std() / draws[0].size ** 0.5
    assert found.resampled.std() == pytest.approx(deviation, rel=0.1)
