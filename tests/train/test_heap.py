"""Free memory goes back to the system, and only where there is much of it."""

import subprocess
import sys

import pytest

from e5core.train import heap

# A process of its own, whose heap nobody else has a part in. The last block keeps the others from
# being the end of the heap, which glibc gives back by itself.
PROGRAM = """
from pathlib import Path
from e5core.train.heap import give_back

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024

blocks = [bytearray(b"x") * 60_000 for _ in range(3_000)]
last = blocks.pop()
full = resident()
del blocks
give_back(1 << 40)
kept = resident()
give_back(100 << 20)
print(full, kept, resident())
"""


@pytest.mark.skipif(heap._glibc() is None, reason="the C library does not tell what is free")
def test_what_is_free_goes_back_if_it_is_enough():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    full, kept, after = map(int, done.stdout.split())
    assert kept > full - 20  # megabytes
    assert after < full - 120


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    heap.give_back()
