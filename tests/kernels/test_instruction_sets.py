"""Every instruction set without Python: Arm's in an emulator, x86's under sanitizers.

driver.cpp compares all operations in all shapes with sums in double.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.models import CPU, ROOT

from e5core.kernels import BY_NAME, why_not
from e5core.kernels.native import build

SOURCE = ROOT / "e5core/kernels/native/src"
DRIVER = Path(__file__).parent / "driver.cpp"
OPTIONS = ["-O1", "-g", "-std=c++17", "-fopenmp", "-ffp-contract=off"]
SETS = {one.name: one for one in build.INSTRUCTION_SETS}


def compile_driver(compiler: str, name: str, program: Path, *more: str) -> None:
    header = SOURCE / "isa" / SETS[name].header
    command = [compiler, *OPTIONS, *SETS[name].options, *more, "-include", header, DRIVER]
    done = subprocess.run([*command, "-o", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check(done: subprocess.CompletedProcess[str], name: str, measured) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{name}: ")
    assert int(done.stdout.split()[1]) > 600_000
    assert done.stderr == ""
    measured(done.stdout.strip())


@pytest.mark.parametrize("name", [one.name for one in SETS.values() if "aarch64" in one.machines])
def test_arm_in_an_emulator(name, tmp_path, measured):
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for program in (compiler, emulator):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    compile_driver(compiler, name, tmp_path / "driver", "-static")
    run = [emulator, "-cpu", "max", tmp_path / "driver"]
    check(subprocess.run(run, capture_output=True, text=True), name, measured)


@pytest.mark.exhaustive(sample=1)
@pytest.mark.parametrize(
    "name", [one.name for one in SETS.values() if platform.machine() in one.machines]
)
def test_this_machine_under_sanitizers(name, tmp_path, measured):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    compile_driver("g++", name, tmp_path / "driver", "-fsanitize=address,undefined")
    if reason := why_not(BY_NAME[f"native/{name}"], CPU, torch.float32):
        pytest.skip(reason)  # it compiles, at least
    # What OpenMP's threads keep for the next call is no leak.
    run = ["env", "ASAN_OPTIONS=detect_leaks=0", tmp_path / "driver"]
    check(subprocess.run(run, capture_output=True, text=True), name, measured)
