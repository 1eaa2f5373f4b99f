"""`scripts/benchmark tune`: the constants of the C++ are found, set, compiled and timed."""

import json
import shutil

import pytest
import tuning
from support.models import INSTRUCTION_SETS, ROOT

from e5core.kernels.native import build


@pytest.mark.parametrize("parameter", tuning.PARAMETERS)
def test_a_constant_is_found_and_set(tmp_path, parameter):
    """And nothing else changes."""
    shutil.copytree(build.FOLDER / "src", tmp_path / "src")
    file = tuning.PARAMETERS[parameter].file
    before = (tmp_path / "src" / file).read_text().splitlines()
    present = tuning.present_value(parameter)
    assert present in tuning.PARAMETERS[parameter].candidates
    tuning.set_value(parameter, 4321, tmp_path / "src")
    assert tuning.present_value(parameter, tmp_path / "src") == 4321
    after = (tmp_path / "src" / file).read_text().splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 1
    assert f"constexpr int {parameter} = 4321" in changed[0][1]
    (tmp_path / "src" / file).write_text("nothing")
    with pytest.raises(ValueError, match=f"has no line 'constexpr int {parameter} = …'"):
        tuning.present_value(parameter, tmp_path / "src")


@pytest.mark.exhaustive(sample=0)  # it compiles two libraries
def test_a_run(make_tiny, tmp_path, monkeypatch, capsys):
    if "native/avx2" not in INSTRUCTION_SETS or shutil.which("g++") is None:
        pytest.skip("there is no AVX2, or no compiler")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "scripts" / "benchmark"))
    monkeypatch.setitem(tuning.PARAMETERS, "AHEAD", tuning.Parameter("blocks.h", (4096,)))
    file = tmp_path / "figures.json"
    options = ("--parameters", "AHEAD", "--workloads", "short", "--texts", "3", "--rounds", "2")
    options += ("--precisions", "float32", "--threads", "1", "--json", str(file))
    code = tuning.main(["--model", str(make_tiny()), "--instructions", "avx2", *options])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "AHEAD, native/avx2, float32" in out
    present = tuning.present_value("AHEAD")
    rows = json.loads(file.read_text())
    assert [row["value"] for row in rows] == [present, 4096]
    assert rows[0]["ratios"] == [1.0, 1.0]
    assert all(ratio > 0 for ratio in rows[1]["ratios"])
    assert len(rows[1]["ratios"]) == 2


def test_bad_input_is_one_line(capsys):
    if not INSTRUCTION_SETS:
        pytest.skip("no instruction set of e5core runs here")
    assert tuning.main(["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "tune: --rounds is 0, expected 1 or more\n"
