"""Two processes have the gradients of one, to rounding in float64, and train one model."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.models import ROOT
from support.training import make_rows, write_rows

from e5core.train import train

# What each process runs: the gradients of a batch into a file of its own.
GRADIENTS = """
import json, sys
from pathlib import Path
import torch
from support.training import gradients, read_rows, tiny_task
from e5core.train.ranks import joined

folder, data, out, settings = sys.argv[1:]
settings = json.loads(settings)
examples = settings.pop("examples")
with joined(torch.device("cpu")) as ranks:
    task = tiny_task(Path(folder), **settings)
    rows = read_rows(task, Path(data))
    batch = rows.batch(range(examples), 0, 0, 2)
    terms = task.terms(batch, rows, (0, 0), ranks)
    loss = sum(terms.values())
    loss.backward()
    found = gradients(task)
    total = loss.detach()
    ranks.sum([*found.values(), total])
    torch.save({"loss": total, **found}, f"{out}.{ranks.rank}")
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


@pytest.mark.parametrize(
    "settings",
    [
        {"examples": 8, "chunk_tokens": 40},
        # One chunk: a process has all texts and the other none.
        {"examples": 1, "chunk_tokens": 10**6},
        {"examples": 9, "chunk_tokens": 70, "dropout": 0.1, "teacher_weight": 1.0,
         "matryoshka": [8, 16], "symmetric": True},
        {"examples": 5, "chunk_tokens": 40, "reranker": True, "r_drop": 0.5, "dropout": 0.1},
    ],
    ids=["contrastive", "one example", "everything", "reranker"],
)  # fmt: skip
def test_two_processes_have_the_gradients_of_one(folder, pairs, tmp_path, settings):
    for size in (1, 2):
        arguments = ["-c", GRADIENTS, str(folder), str(pairs), str(tmp_path / f"of-{size}")]
        run_ranks(size, [*arguments, json.dumps(settings)])
    one, *two = (torch.load(tmp_path / name) for name in ("of-1.0", "of-2.0", "of-2.1"))
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    assert one["loss"] > 0
    for found in two:
        for name, tensor in one.items():
            assert (found[name] - tensor).abs().max() <= 1e-12 * largest, name


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
