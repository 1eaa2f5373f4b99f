"""scripts/ray_train.py on a local Ray: two processes train the model of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.models import ROOT

from e5core.train import train


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "ray_train.py", "--workers", "2", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_two_processes_of_ray_train_as_one(folder: Path, pairs: Path, tmp_path: Path) -> None:
    """Starting Ray and its processes takes most of the time."""
    pytest.importorskip("ray.train.torch", reason="ray is not installed")
    settings = {"steps": 2, "batch_size": 5, "chunk_tokens": 60, "precision": "float64"}
    train(folder, pairs, tmp_path / "one", **settings, dropout=0.0)
    flags = ["--steps", 2, "--batch-size", 5, "--chunk-tokens", 60, "--dtype", "float64"]
    there = ["--model", folder, "--data", pairs, "--output", tmp_path / "two"]
    done = run(*there, *flags, "--dropout", 0)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "two" / "training.json").read_text())
    assert record["made_from"]["ranks"] == 2
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        assert (two[name] - tensor).abs().max() < 1e-9, name


@pytest.mark.exhaustive
def test_a_failing_worker_is_one_line(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.train.torch", reason="ray is not installed")
    (tmp_path / "bad.jsonl").write_text('{"query": "a", "pos": [""]}\n')
    done = run("--model", folder, "--data", tmp_path / "bad.jsonl", "--output", tmp_path / "out")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ray_train.py: a worker failed: ")
    assert "bad.jsonl, line 1: pos holds an empty text" in last
