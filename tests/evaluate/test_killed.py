"""A run that is killed at ten random moments ends in the bytes of one that was not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.evaluation import write_data
from support.models import ROOT

pytest.importorskip("mteb", reason="mteb is not installed")

# Evaluates in forked copies of itself, since starting mteb takes seconds. Each copy is killed at
# the step that a seeded generator chose; a step is a call that changes or opens a file, and a
# write is cut in half by it. The eleventh copy is left to finish, and so is one with a folder of
# its own. Prints the texts that the first eleven have embedded, and the last.
KILLED = """
import mmap, os, random, signal, struct, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from e5core import E5
from e5core.cli import main
from e5core.evaluate import encoder, own, run  # once, for all copies
import sentence_transformers  # mteb imports it when it first evaluates
from mteb.abstasks import AbsTaskClassification

data, model, killed, whole = map(Path, sys.argv[1:5])
encoder.BLOCK = 3
AbsTaskClassification.n_experiments = 2
os.fsync = lambda number: None  # a killed process leaves the system's memory as it is
embedded = mmap.mmap(-1, 8)
count = lambda: struct.unpack("q", embedded[:])[0]
original = E5.embed

def counted(self, texts, **options):
    result = original(self, texts, **options)
    embedded[:] = struct.pack("q", count() + len(texts))
    return result

E5.embed = counted

def killed_at(step):
    left = [step]

    def wrap(name):
        original = getattr(os, name)

        def call(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                if name == "write":
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(os, name, call)

    for name in ("write", "ftruncate", "replace", "mkdir", "open"):
        wrap(name)

def evaluate(output, step=None):
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if step:
            killed_at(step)
        os._exit(main(["evaluate", "Tatoeba", "NusaX-senti", "STSBenchmarkMultilingualSTS",
                       "--data", str(data), "--model", str(model), "--output", str(output),
                       "--kernels", "plain"]))
    return os.waitpid(child, 0)[1]

moments = random.Random(0)
for _ in range(10):
    # What is left of a run has more steps than these.
    assert os.WIFSIGNALED(evaluate(killed, moments.randint(2, 25)))
assert evaluate(killed) == 0
first = count()
assert evaluate(whole) == 0
print(first, count() - first)
"""


def test_ten_kills(make_tiny: Callable[..., Path], tmp_path: Path) -> None:
    """It takes longer than others: eleven copies load a model, and mteb is started once."""
    data, model = write_data(tmp_path / "data"), make_tiny()
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, (data, model, killed, whole))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    embedded, needed = map(int, run.stdout.split())
    assert needed < embedded <= needed + 10 * 3  # each kill costs a block of three texts at most
    contents = [
        {
            file.relative_to(output): file.read_bytes()
            for file in (output / "results").rglob("*.json")
        }
        for output in (killed, whole)
    ]
    assert len(contents[1]) == 5  # three tasks, and the model's metadata with either prefix
    assert contents[0] == contents[1]
