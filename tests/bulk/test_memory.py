"""Memory does not grow with the input."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PEAK = """
import sys
import e5core.bulk
e5core.bulk.embed_files(sys.argv[1], sys.argv[2], sys.argv[3], input_type="query")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0])  # ru_maxrss would begin at the peak of pytest
"""


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_memory_does_not_grow_with_the_input(
    model: Path, tmp_path: Path, suffix: str, measured: Callable[[str], None]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    peaks = []
    for rows in (5_000, 50_000):
        file = tmp_path / f"{rows}.txt"
        file.write_text("the a query passage\n" * rows)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, model, file, tmp_path / f"{rows}{suffix}"],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout) / 1024)
    measured(f"{suffix}: peak of 5,000 rows {peaks[0]:.0f} MB, of 50,000 {peaks[1]:.0f} MB")
    assert peaks[1] - peaks[0] < 20  # the vectors alone would be 4.3 MB more, the texts 0.9
