"""Two processes have the gradients of one, to rounding in float64, and train one model."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import torch
from safetensors.torch import load_file
from support.models import ROOT
from support.training import batch_gradients, largest_difference, make_rows, write_rows

from e5core.train import train
from e5core.train.ranks import ALONE

# Examples of the batch, and the settings.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "contrastive": (8, {"chunk_tokens": 40}),
    # One chunk and one query: a process has both, and the other one nothing.
    "one example": (1, {"chunk_tokens": 10**6}),
    "everything": (
        9,
        {
            "chunk_tokens": 70,
            "dropout": 0.1,
            "teacher_weight": 1.0,
            "matryoshka": [8, 16],
            "symmetric": True,
        },
    ),
    "reranker": (5, {"chunk_tokens": 40, "reranker": True, "r_drop": 0.5, "dropout": 0.1}),
}

# What each process runs: the gradients of a batch of every case into a file of its own.
GRADIENTS = """
import json, sys
import torch
from support.training import batch_gradients
from e5core.train.ranks import joined

folder, data, out, cases = sys.argv[1:]
with joined(torch.device("cpu")) as ranks:
    found = {
        name: batch_gradients(folder, data, ranks, examples, settings)
        for name, (examples, settings) in json.loads(cases).items()
    }
    torch.save(found, f"{out}.{ranks.rank}")
"""


def run_ranks(size: int, arguments: list[str]) -> None:
    """Run Python in so many processes, as torchrun starts them."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    children = []
    port = str(free_port())
    for rank in map(str, range(size)):
        environment = os.environ | {
            "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank,
            "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        command = [sys.executable, *arguments]
        children.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    said = [child.communicate(timeout=240)[1] for child in children]
    assert [child.returncode for child in children] == [0] * size, said


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_processes_have_the_gradients_of_one(folder, pairs, tmp_path):
    arguments = ["-c", GRADIENTS, str(folder), str(pairs), str(tmp_path / "of"), json.dumps(CASES)]
    run_ranks(2, arguments)
    two = [torch.load(tmp_path / f"of.{rank}") for rank in (0, 1)]
    for case, (examples, settings) in CASES.items():
        one = batch_gradients(folder, pairs, ALONE, examples, settings)
        assert one["loss"] > 0
        for found in two:
            assert largest_difference(found[case], one) < 1e-12, case


def test_a_run_of_two_processes_is_that_of_one(folder, pairs, tmp_path):
    """To rounding in float64, dropout included; the file is written once."""
    held = write_rows(tmp_path / "held.jsonl", make_rows(5, seed=7))
    flags = [
        "--steps", "5", "--batch-size", "4", "--dtype", "float64", "--chunk-tokens", "60",
        "--evaluate", str(held), "--token-table", "rows", "--save-every", "2",
    ]  # fmt: skip
    arguments = ["-m", "e5core", "train", "--model", str(folder), "--data", str(pairs), *flags]
    run_ranks(2, [*arguments, "--output", str(tmp_path / "two")])
    train(
        folder, pairs, tmp_path / "one", steps=5, batch_size=4, precision="float64",
        chunk_tokens=60, evaluate=held, token_table="rows", save_every=2,
    )  # fmt: skip
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    start = load_file(folder / "model.safetensors")
    assert not torch.allclose(one["encoder.layer.0.output.dense.weight"].float(),
                              start["encoder.layer.0.output.dense.weight"], atol=1e-5)  # fmt: skip
    for name, tensor in one.items():
        assert (two[name] - tensor).abs().max() < 1e-9, name
    logs = [
        (tmp_path / name / "training.jsonl").read_text().splitlines() for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1])
