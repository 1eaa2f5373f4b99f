"""scripts/benchmark search on a few vectors."""

import json

import pytest
import searching


def test_every_contestant_is_measured_in_every_round(tmp_path, capsys):
    file = tmp_path / "figures.json"
    sizes = ("--vectors", "3000", "--size", "16", "--queries", "1", "5", "--rounds", "2")
    assert searching.main([*sizes, "--threads", "1", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert set(figures) == {"1", "5"}
    for seconds in figures.values():
        assert {"e5core", "numpy"} <= set(seconds)
        assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in seconds.values())
    assert "3,000 vectors of 16, top 10" in capsys.readouterr().out


def test_bars_say_what_was_held_and_what_was_missed():
    figures = {
        1: {"e5core": [2.0], "numpy": [1.0], "faiss": [4.0]},
        256: {"e5core": [1.0, 1.0, 1.0], "numpy": [4.0, 9.0, 2.0]},
    }
    assert searching.bars(figures) == [
        "missed  Index : numpy, 1 queries: 0.50, wanted 0.80",
        "held    Index : numpy, 256 queries: 2.00, wanted 1.00",
    ]


@pytest.mark.parametrize("name", ["vectors", "rounds", "top-k"])
def test_bad_input_is_one_line(name, capsys):
    assert searching.main([f"--{name}", "0"]) == 2
    assert f"--{name} is 0, expected 1 or more" in capsys.readouterr().err
