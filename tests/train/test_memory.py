"""Memory does not grow with the batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.models import ROOT

PEAK = """
import sys
from pathlib import Path
import torch
from e5core import Encoder, EncoderConfig
from e5core.pipeline import Pipeline
from e5core.train import cached_rows, info_nce

torch.manual_seed(0)
encoder = Encoder(EncoderConfig("bert", 200, 128, 6, 4, 512, 64, 0, 2, 1e-12))
pipeline = Pipeline(encoder)
texts = int(sys.argv[1])
generator = torch.Generator().manual_seed(0)
ids = torch.randint(5, 200, (texts, 48), generator=generator).tolist()
sequences = [[0, *some, 2] for some in ids]
rows, order = cached_rows(pipeline, sequences, 1024)
half = texts // 2
info_nce(rows[:half], rows[half:], torch.arange(half), 0.05).mean().backward()
status = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in status if line.startswith("VmHWM")).split()[1])
"""


# glibc raises the size from which it maps memory on its own with each large block that is given
# back, and what it then takes from its heap leaves holes: 40 to 60 MB here, now more, now less.
# With the size held at its first value the peak is what was alive at once, give or take a megabyte.
LIVE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)}


def peak(texts: int) -> int:
    """The peak of a process's memory in KiB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | LIVE_MEMORY
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(texts)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell")
def test_peak_memory_is_flat_in_the_number_of_texts():
    """64 texts are three chunks; 1,024 texts would keep sixteen times as much without a cache."""
    few, many = peak(64), peak(1024)
    assert many < 1.1 * few
