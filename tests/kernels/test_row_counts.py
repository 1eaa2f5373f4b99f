"""oneDNN meets few row counts: its memory is bounded, whatever the lengths of texts."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.models import CPU, ROOT, tiny_encoder

from e5core import pack
from e5core.kernels import BACKENDS, cpu_attention, onednn, onednn_int8, row_counts, why_not
from e5core.kernels.row_counts import fill_rows, row_count

DTYPES = BACKENDS["onednn"].dtypes


def test_row_counts_are_few_and_near() -> None:
    counts = [row_count(rows) for rows in range(1, 1025)]
    assert counts == sorted(counts)
    assert [row_count(count) for count in counts] == counts
    assert counts[:32] == list(range(1, 33))
    assert len(set(counts)) <= 112
    assert all(rows <= count <= rows * 17 / 16 for rows, count in enumerate(counts, 1))
    assert sum(counts[512:]) <= 1.022 * sum(range(513, 1025))
    assert len({row_count(rows) for rows in range(1, 8193)}) <= 160


def test_rows_of_zeros_are_put_behind() -> None:
    x = torch.randn(3, 2)
    assert torch.equal(fill_rows(x, 5), torch.cat([x, torch.zeros(2, 2)]))
    assert fill_rows(x, 3) is x


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_encoder_meets_these_counts_alone(
    dialect: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are filled up once: within the layers nothing is left to fill."""
    if reason := why_not(BACKENDS["onednn"], CPU, dtype):
        pytest.skip(reason)
    encoder = tiny_encoder(dialect).prepare_for_inference(dtype, "onednn")
    inside: list[tuple[int, int]] = []

    def noted(x: torch.Tensor, rows: int) -> torch.Tensor:
        inside.append((x.shape[0], rows))
        return fill_rows(x, rows)

    for module in (onednn, onednn_int8):
        monkeypatch.setattr(module, "fill_rows", noted)
    for texts in (1, 2, 3, 5):
        for length in (1, 7, 33, 41, 61):
            inside.clear()
            states = encoder(pack([[0] * length] * texts, encoder.config))
            assert states.shape[0] == texts * length
            first, *others = inside
            assert first == (texts * length, row_count(texts * length))
            assert all(row_count(rows) == rows for _, rows in inside)
            assert all(before == rows or before == 1 for before, rows in others)


def test_attention_in_bfloat16_meets_few_shapes() -> None:
    """Texts are taken by powers of two, so that there are few numbers of them."""
    for length in (60, 90, 120):
        for texts in range(1, 50):
            groups = cpu_attention.plan((length,) * texts, 12, torch.bfloat16)
            assert sum(group.texts for group in groups) == texts
            assert all(group.texts.bit_count() == 1 for group in groups)


MEMORY = """
import sys, torch
from e5core import Encoder, EncoderConfig, pack
torch.set_num_threads(1)
config = EncoderConfig("bert", 120, 64, 1, 2, 128, 512, 0, 2, 1e-12)
encoder = Encoder(config).prepare_for_inference(getattr(torch, sys.argv[1]), "onednn")
def kilobytes():
    return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
def run(lengths):
    with torch.inference_mode():
        for length in lengths:
            encoder(pack([[1] * length], config))
    return kilobytes()
run([512, 4])
before = run([])
print(run(range(4, 512)) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_is_bounded(dtype: torch.dtype, measured: Callable[[str], None]) -> None:
    """All lengths of 4 to 511; a primitive for each number of rows took 640 to 820 MB."""
    if reason := why_not(BACKENDS["onednn"], CPU, dtype):
        pytest.skip(reason)
    name = str(dtype).removeprefix("torch.")
    command = [sys.executable, "-c", MEMORY, name]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = int(run.stdout) / 1000
    measured(f"onednn in {name}: {grown:.0f} MB kept for all lengths")
    assert grown < 350


def test_nothing_is_timed_to_choose_kernels() -> None:
    """What runs must not depend on how busy the machine is: no file of kernels reads a clock."""
    for file in sorted(Path(row_counts.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert "time" not in [alias.name for alias in node.names], file
            assert not (isinstance(node, ast.ImportFrom) and node.module == "time"), file


SLOW = """
import time
def slow(real, calls=[0]):
    def clock():
        calls[0] += 1
        return real() + calls[0] ** 3  # each reading later than the last by far
    return clock
for name in ("perf_counter", "monotonic", "time", "process_time", "thread_time"):
    setattr(time, name, slow(getattr(time, name)))
import torch
from e5core.kernels import BACKENDS, why_not
print([why_not(BACKENDS["onednn"], torch.device("cpu"), dtype) for dtype in
    (torch.float32, torch.bfloat16, torch.int8)])
"""


def test_a_slow_clock_changes_nothing() -> None:
    command = [sys.executable, "-c", SLOW]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == str([why_not(BACKENDS["onednn"], CPU, d) for d in DTYPES])


@pytest.mark.parametrize(
    ("machine", "dtype", "reason"),
    [
        ("x86_64", torch.float32, "this CPU has no AVX2"),
        ("aarch64", torch.int8, "oneDNN multiplies int8 fast on x86 alone, and this CPU is aarch"),
        ("aarch64", torch.float32, "this torch was built without the Arm Compute Library"),
    ],
)
def test_machines_without_fast_products(
    machine: str, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_acl_available", lambda: False, raising=False)
    found = onednn._lacking(dtype)
    assert found is not None
    assert found.startswith(reason)
