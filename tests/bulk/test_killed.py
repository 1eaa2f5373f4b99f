"""Nothing lost, nothing doubled, the same bytes however often a job is killed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import ROOT

# Embeds in forked copies of itself. A step is a call that changes the disk; at the last one that
# a copy may take it is killed, in the middle of it if it writes. Prints what was found broken,
# or the number of copies.
KILLED = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from support.conversions import content
from e5core import E5
from e5core.bulk import partial_folder
from support.bulk import embed

mode, model, texts, output = sys.argv[1], *map(Path, sys.argv[2:5])
texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:25]))
options = {"id_column": "id", "shard_rows": 10}
E5.from_pretrained(model)  # what it tries once, the copies need not
os.fsync = lambda number: None  # a killed process leaves the system's memory as it is
STEPS = [(os, "write"), (os, "fsync"), (os, "ftruncate"), (os, "mkdir"), (os, "rmdir"),
         (Path, "replace"), (Path, "unlink")]

def killed_after(steps):
    left = [steps]

    def wrapped(module, name):
        original = getattr(module, name)

        def call(*arguments, **keywords):
            left[0] -= 1
            if not left[0]:
                if name == "write":
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        setattr(module, name, call)

    for step in STEPS:
        wrapped(*step)

def forked(prepare=lambda: None):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prepare()
        embed(model, texts, output, **options)
        code = 0
    finally:
        os._exit(code)

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def clear():
    shutil.rmtree(output.parent)
    output.parent.mkdir()

def only_empty_folder_left():  # shards that are complete are not made again
    journal = partial_folder(output) / "journal.json"
    return output.suffix == ".parquet" and output.is_dir() and not journal.exists()

start = time.monotonic()
assert ended(forked()) == 0
seconds = time.monotonic() - start
expected = content(output.parent)
runs = 0

if mode == "steps":  # each step in turn, then to the end
    code = None
    while code != 0:
        clear()
        runs += 1
        code = ended(forked(lambda: killed_after(runs)))
        assert code in (0, -signal.SIGKILL), code
        if not only_empty_folder_left():
            assert ended(forked()) == 0, f"after step {runs} the work does not go on"
        assert content(output.parent) == expected, f"after step {runs} other bytes"
elif mode == "often":  # every run is killed a few steps on, until one has nothing left to do
    clear()
    code = None
    while code != 0 and not only_empty_folder_left():
        runs += 1
        code = ended(forked(lambda: killed_after(20 + runs % 5)))
        assert code in (0, -signal.SIGKILL), code
    assert content(output.parent) == expected
else:  # at random moments
    chance = random.Random(int(mode))
    for _ in range(int(sys.argv[5])):
        clear()
        code = None
        while code != 0 and not only_empty_folder_left():
            runs += 1
            child = forked()
            time.sleep(chance.uniform(0.2, 1.2) * seconds)
            if not os.waitpid(child, os.WNOHANG)[0]:
                os.kill(child, signal.SIGKILL)
                code = ended(child)
            else:
                code = 0
        assert content(output.parent) == expected
print(runs)
"""


def run_killed(*arguments: object) -> int:
    paths = f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + KILLED, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.parametrize("mode", ["steps", "often"])
def test_killed_at_every_step(
    model: Path, texts: Path, output: Path, mode: str, measured: Callable[[str], None]
) -> None:
    runs = run_killed(mode, model, texts, output)
    assert runs > 3
    if mode == "steps":
        measured(f"{output.suffix}: killed at each of {runs - 1} steps and gone on with")


def test_killed_at_random_moments(
    model: Path, texts: Path, output: Path, measured: Callable[[str], None]
) -> None:
    runs = run_killed(len(output.suffix), model, texts, output, 8)
    measured(f"{output.suffix}: killed at {runs - 8} random moments and gone on with")
