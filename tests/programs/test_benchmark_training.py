"""scripts/benchmark/training.py on a tiny model, beside sentence-transformers."""

import json

import aims
import pytest
import training
import workloads
from support.models import ROOT, write_tiny_model


def test_a_run(tmp_path, capsys, monkeypatch):
    """Real processes, one step each, and both sizes of the memory's comparison."""
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts" / "benchmark"))
    for name, value in (("LIMIT", 64), ("SHORTEST", 20), ("LONGEST", 50)):
        monkeypatch.setattr(workloads, name, value)
    monkeypatch.setattr(training, "FEW_AND_MANY", (2, 4))
    folder = write_tiny_model(tmp_path / "model", "bert")
    file = tmp_path / "figures.json"
    options = ("--pairs", "4", "--threads", "1", "--memory", "--json", str(file))
    code = training.main(["--model", str(folder), *options])
    out, err = capsys.readouterr()
    assert code == 0, err
    figures = json.loads(file.read_text())
    assert list(figures) == ["e5core", "sentence-transformers"]
    assert all(value > 0 for found in figures.values() for value in found.values())
    for what in ("share of the ceiling", "tokens/s : theirs", "memory of 4 pairs : of 2"):
        assert what in out


def test_a_verdict_holds_the_figure_against_the_aim():
    assert aims.verdict("x", 5.1, 5.0).startswith("held")
    assert aims.verdict("x", 4.9, 5.0).startswith("missed")
    assert aims.verdict("x", 1.2, 1.1, at_most=True).startswith("missed")
    assert aims.verdict("x", 1.0, 1.1, at_most=True).startswith("held")
    assert aims.verdict("x", 1.1, 1.1).startswith("held")
    assert aims.verdict("x", 1.1, 1.1, above=True).startswith("missed")
    assert aims.verdict("x", 1.2, 1.1, above=True).startswith("held")
    assert aims.verdict("x", float("nan"), 1.1).startswith("missed")
