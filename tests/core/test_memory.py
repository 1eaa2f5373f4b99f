"""Peaks of memory, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="reads Linux's /proc/self/status"
)

# What every measurement starts with; MB of 10⁶ bytes.
MEASURE = """
import json, sys
import torch
torch.set_num_threads(2)
from e5core import E5

def memory():
    lines = dict(l.split(":") for l in open("/proc/self/status").read().splitlines())
    return {n: int(lines[n].split()[0]) * 1024 / 1e6 for n in ("VmHWM", "RssAnon")}

before = memory()
model = E5.from_pretrained(sys.argv[1], dtype=sys.argv[2])
model.encode_passage(["a short text"] * 8)
loaded = memory()
"""


def measure(code: str, folder: Path, dtype: str = "float32") -> dict[str, dict[str, float]]:
    program = (
        MEASURE
        + code
        + "\nprint(json.dumps({'before': before, 'loaded': loaded, 'after': memory()}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(folder), dtype], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    figures: dict[str, dict[str, float]] = json.loads(result.stdout)
    return figures


# Of e5-small: 21.3 M weights in layers and 0.2 M others; the table has 96 M more, which stay in
# the file. What is above the layers is tokenizer, activations and the operators' own memory.
LAYERS = 85.0  # MB in float32
# Builds of torch for CUDA keep more of that: 2.6's took up to 105 MB, 2.13's build for CPUs 50.
BESIDES = 90.0 if torch.version.cuda is None else 120.0


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1), ("bfloat16", 0.5), ("int8", 0.25)])
def test_loading_keeps_one_copy_of_the_layers_and_none_of_the_table(
    real_folder, dtype, size, measured
):
    figures = measure("", real_folder, dtype)
    own = figures["loaded"]["RssAnon"] - figures["before"]["RssAnon"]
    peak = figures["loaded"]["VmHWM"]
    measured(f"loading e5-small in {dtype}: {own:.0f} MB of its own, peak {peak:.0f} MB")
    assert own <= size * LAYERS + BESIDES
    # The file's pages that were read count as well while they are mapped, one layer at a time.
    assert peak - figures["before"]["VmHWM"] <= size * LAYERS + BESIDES + 60


def test_a_stream_of_texts_costs_its_vectors(make_tiny, measured):
    """Ten times the texts: beyond the vectors, memory stays."""
    folder = make_tiny()
    few, many = (
        measure(
            f"model.embed((f'a {{i % 977}}' for i in range({texts})), input_type='query')", folder
        )["after"]["VmHWM"]
        for texts in (5_000, 50_000)
    )
    measured(f"45,000 more texts from a generator: {many - few:.0f} MB more")
    # 24 numbers a vector, held in parts and then together, and a count of tokens each.
    assert many - few <= 45_000 * (2 * 24 * 4 + 100) / 1e6 + 25


@pytest.mark.parametrize("text", ["'word ' * 200_000", "'x' * 1_000_000", "'語' * 1_000_000"])
def test_a_text_of_a_million_characters(real_folder, text, measured):
    figures = measure(f"model.embed([{text}], input_type='passage')", real_folder)
    more = figures["after"]["VmHWM"] - figures["loaded"]["VmHWM"]
    measured(f"one text, {text}: {more:.0f} MB more")
    assert more <= 200
