"""scripts/benchmark neighbours on a tiny model, and what it makes of its figures."""

import json
import math

import neighbours
import pytest
import workloads
from contestants import WorkerError
from neighbours import Figures
from support.models import ROOT


def figures(mixed, queries, in_turn=(1.0,), at_once=(1.0,)):
    return Figures(
        dict(zip(("idle", "busy"), mixed, strict=True)),
        dict(zip(("idle", "busy"), queries, strict=True)),
        list(in_turn),
        list(at_once),
    )


def test_what_is_kept_is_the_median_of_the_rounds():
    found = figures(([1.0, 1.0, 2.0], [2.0, 4.0, 2.5]), ([0.1], [0.1]))
    assert found.kept == 0.5
    steps = [i / 1000 for i in range(101)]
    found = figures(([1.0], [1.0]), (steps, [3 * s for s in steps]), [2.0, 3.0], [1.0, 3.0])
    assert found.p95("idle") == pytest.approx(0.095)
    assert found.slower == pytest.approx(3)
    assert found.together == 1.5


def test_bars_say_what_was_held_and_what_was_missed():
    same = ([1.0, 1.0], [1.0, 1.0])
    found = {
        "e5core float32": figures(([1.0], [1.5]), same),
        "e5core int8": figures(([1.0], [2.0]), ([1.0, 1.0], [4.0, 4.0]), [1.0], [2.0]),
        "native/avx2 float32": figures(([1.0], [1.25]), same),  # e5core too, by another name
        "onnxruntime float32": figures(([1.0], [1.6]), same),
    }
    assert neighbours.bars(found) == [
        "held    e5core float32 keeps of mixed: 0.67, wanted 0.62",
        "held    e5core float32 keeps more than every other: 0.67, wanted 0.62",
        "held    e5core float32, p95 of a query: 1.00, wanted 3.00",
        "held    e5core float32, callers at once: 1.00, wanted 1.00",
        "missed  e5core int8 keeps of mixed: 0.50, wanted 0.62",
        "missed  e5core int8 keeps more than every other: 0.50, wanted 0.62",
        "missed  e5core int8, p95 of a query: 4.00, wanted 3.00",
        "missed  e5core int8, callers at once: 0.50, wanted 1.00",
        "held    native/avx2 float32 keeps of mixed: 0.80, wanted 0.62",
        "held    native/avx2 float32 keeps more than every other: 0.80, wanted 0.62",
        "held    native/avx2 float32, p95 of a query: 1.00, wanted 3.00",
        "held    native/avx2 float32, callers at once: 1.00, wanted 1.00",
    ]


def test_a_run_measures_every_state_in_every_round(make_tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts" / "benchmark"))
    monkeypatch.setattr(workloads, "LIMIT", 64)
    monkeypatch.setattr(workloads, "LONGEST", 60)
    there, real = [], neighbours.neighbour
    monkeypatch.setattr(neighbours, "BUSY", "input()")
    monkeypatch.setattr(neighbours, "neighbour", lambda busy: there.append(busy) or real(busy))
    file = tmp_path / "figures.json"
    options = ("--engines", "e5core", "--precisions", "float32", "--texts", "3", "--rounds", "2")
    arguments = ["--model", str(make_tiny("xlm-roberta")), *options, "--json", str(file)]
    assert neighbours.main([*arguments, "--threads", "1"]) == 0
    assert there == [False, True] * 3  # the first round warms up
    found = json.loads(file.read_text())["e5core float32"]
    for name, count in (("mixed", 2), ("queries", 6)):
        assert {state: len(seconds) for state, seconds in found[name].items()} == {
            "idle": count, "busy": count,
        }  # fmt: skip
    assert len(found["in_turn"]) == len(found["at_once"]) == 2
    assert all(seconds > 0 for seconds in [*found["in_turn"], *found["at_once"]])
    assert "e5core float32" in capsys.readouterr().out


class Single:
    label = "openvino float32"

    def ask(self, *_):
        raise WorkerError("RuntimeError: Infer Request is busy")


def test_a_library_for_one_caller_has_no_figure_for_several(capsys):
    assert math.isnan(neighbours.seconds_at_once(Single(), ["a"], 4))
    assert "openvino float32 has no several callers" in capsys.readouterr().err


def test_bad_input_is_one_line(capsys):
    assert neighbours.main(["--rounds", "0"]) == 2
    assert "--rounds is 0, expected 1 or more" in capsys.readouterr().err
