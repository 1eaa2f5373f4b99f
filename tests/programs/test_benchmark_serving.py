"""scripts/benchmark serve on a tiny model: scenarios of each kind, with every answer checked."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

import serving
from loader import Loader, Outcome, Shot, percentile, poisson


def test_scenarios(
    make_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ENDLESS", 200)
    monkeypatch.setattr(serving, "BULK", 8)
    monkeypatch.setattr(serving, "text_of_length", lambda tokenizer, tokens, *_, **__: "a " * 9)
    file = tmp_path / "figures.json"
    names = ["overhead", "one", "c", "d", "e", "g"]
    arguments = ["--model", str(make_tiny(dialect="xlm-roberta")), "--seconds", "0.2"]
    assert serving.main([*arguments, "--only", *names, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    titles = ["one query", "c queries, bulk", "d", "d tokens", "e 2 C", "g"]
    assert {"overhead, 64 connections", *titles} <= set(figures)
    for title, values in figures.items():
        assert values.get("wrong", 0) == 0, title
        if title != "g":
            assert values.get("other", 0) == 0, title
    assert all(figures[title]["requests"] > 0 for title in titles if title != "d tokens")
    tokens = figures["d tokens"]
    assert tokens["computed"] >= tokens["delivered"] > 0


def test_latency_counts_from_the_time_that_was_planned() -> None:
    times = list(poisson(100, 10, seed=0))
    assert times == list(poisson(100, 10, seed=0))
    assert 800 < len(times) < 1200
    assert times == sorted(times)
    assert Outcome(Shot(b"", 1, 1), due=1.0, done=3.0).latency == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert np.isnan(percentile([], 0.5))
    assert Loader(0).seconds == 0.0


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(["--seconds", "0"]) == 2
    assert "--seconds is 0.0, expected more than 0" in capsys.readouterr().err
