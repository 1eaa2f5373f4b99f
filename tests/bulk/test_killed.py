"""Nothing lost, nothing doubled, the same bytes however often a job is killed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import ROOT

# Embeds in forked copies of itself. A step is a call that opens or changes a file; at the last one
# that a copy may take it is killed, in the middle of it if it writes. Prints what was found broken,
# or the number of copies.
KILLED = """
import io, mmap, os, pathlib, random, shutil, signal, struct, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import pytest
from support.conversions import content
from e5core import E5
from e5core.bulk import partial_folder
import pytest
from support.bulk import embed

mode, model, texts, output = sys.argv[1], *map(Path, sys.argv[2:5])
texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:25]))
options = {"id_column": "id", "shard_rows": 10}
E5.from_pretrained(model)  # what it tries once, the copies need not
os.fsync = lambda number: None  # a killed process leaves the system's memory as it is
NAMES = ("write", "fsync", "ftruncate", "mkdir", "rmdir", "replace", "rename", "unlink", "open",
         "close", "scandir")
STEPS = [(os, name) for name in NAMES] + [(io, "open")]
# The pathlib of Python 3.10 keeps functions of its own.
accessor = getattr(pathlib, "_NormalAccessor", None)
STEPS += [(accessor, name) for name in NAMES if hasattr(accessor, name)]

# Texts that all copies have embedded.
embedded = mmap.mmap(-1, 8)
count = lambda: struct.unpack("q", embedded[:])[0]
original_embed = E5.embed

def counted(self, texts, **options):
    result = original_embed(self, texts, **options)
    embedded[:] = struct.pack("q", count() + len(texts))
    return result

E5.embed = counted

def killed_after(steps, taken=None):
    left = [steps]

    def wrapped(module, name):
        original = getattr(module, name)

        def call(*arguments, **keywords):
            left[0] -= 1
            if taken is not None:
                taken[:] = struct.pack("q", steps - left[0])
            if not left[0]:
                if name == "write":
                    original(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        setattr(module, name, staticmethod(call) if module is accessor else call)

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

def steps_of_a_run():
    clear()
    taken = mmap.mmap(-1, 8)

    def note():
        killed_after(1 << 40, taken)

    assert ended(forked(note)) == 0
    return struct.unpack("q", taken[:])[0]

start = time.monotonic()
assert ended(forked()) == 0
seconds = time.monotonic() - start
expected = content(output.parent)
runs = 0

if mode == "steps":  # after some steps in turn, the last ones too, then to the end
    stride, step, code = int(sys.argv[5]), 0, None
    total = steps_of_a_run()
    clear()
    while code != 0:
        clear()
        runs += 1
        step += stride if step < total - 40 else 1
        code = ended(forked(lambda: killed_after(step)))
        assert code in (0, -signal.SIGKILL), code
        complete = output.exists()
        before = count()
        assert ended(forked()) == 0, f"after step {step} the work does not go on"
        assert not complete or count() == before, f"after step {step} all is computed anew"
        assert content(output.parent) == expected, f"after step {step} other bytes"
    # Of each copy that was killed, what it had not stored yet, a chunk, is done again.
    again = count() - 25 * (runs + 2)
    assert again <= 7 * runs, f"{again} texts were embedded twice in {runs} runs"
elif mode == "often":  # every run is killed a few steps on, until one has nothing left to do
    clear()
    code = None
    while code != 0:
        runs += 1
        code = ended(forked(lambda: killed_after(60 + runs % 5)))
        assert code in (0, -signal.SIGKILL), code
    assert content(output.parent) == expected
else:  # at random moments
    chance = random.Random(int(mode))
    for _ in range(int(sys.argv[5])):
        clear()
        code = None
        while code != 0:
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
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


# The steps of a job that are taken between two kills, but for its last forty, in a sample: a job
# has 150 to 160 steps.
STRIDE = 13


@pytest.mark.exhaustive(sample=1)
def test_killed_at_every_step(
    model: Path, texts: Path, output: Path, measured: Callable[[str], None], exhaustive: bool
) -> None:
    runs = run_killed("steps", model, texts, output, 1 if exhaustive else STRIDE)
    assert runs > 40
    measured(f"{output.suffix}: killed at {runs - 1} steps and gone on with")


def test_killed_again_and_again(model: Path, texts: Path, output: Path) -> None:
    assert run_killed("often", model, texts, output) > 3


def test_killed_at_random_moments(
    model: Path, texts: Path, output: Path, measured: Callable[[str], None]
) -> None:
    runs = run_killed(len(output.suffix), model, texts, output, 3)
    measured(f"{output.suffix}: killed at {runs - 3} random moments and gone on with")
