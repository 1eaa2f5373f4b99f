"""What an installation holds, and that a wheel brings the native kernels without a compiler."""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from support.models import CPU, ROOT, write_tiny_model

from e5core.kernels import why_not
from e5core.kernels.native import BY_INSTRUCTIONS, build

PACKAGE = ROOT / "e5core"
DATA = {
    "formats/data/nmt_nfkc.charsmap",
    "parity/data/queries.tsv",
    "parity/data/sentences.tsv",
    "py.typed",
    "serve/page.html",
}
OF_THIS_MACHINE = [one.name for one in build.INSTRUCTION_SETS if platform.machine() in one.machines]

# What runs in the new environment: which instruction set each name gets, or why none, and how far
# the vectors are from those of `plain`.
PROGRAM = """
import json, os, sys, warnings
warnings.simplefilter("error")  # loading without native says so
import e5core
folder, *names = sys.argv[1:]
texts, found = ["a text", "query: another text " * 3], {}
exact = e5core.E5.from_pretrained(folder, kernels="plain").encode(texts, input_type=None)
for name in names:
    for dtype in ("float32", "bfloat16", "int8"):
        try:
            model = e5core.E5.from_pretrained(folder, kernels=name, dtype=dtype)
        except ValueError as error:
            found[f"{name} {dtype}"] = [str(error), None]
            continue
        far = float(abs(model.encode(texts, input_type=None) - exact).max())
        found[f"{name} {dtype}"] = [model.encoder.kernels.instructions, far]
with open("/proc/self/maps") as maps:
    openmp = {line.split()[-1] for line in maps if "/libgomp" in line}
print(json.dumps({"package": e5core.__file__, "openmp": sorted(openmp), "found": found}))
"""
# How far a number of a unit vector may be from that of `plain` in float32, by dtype.
NEAR = {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.03}

only_on_linux = pytest.mark.skipif(
    not OF_THIS_MACHINE or not sys.platform.startswith("linux") or shutil.which("g++") is None,
    reason="a wheel for manylinux is made with g++ on Linux",
)


def test_the_wheel_holds_the_data() -> None:
    """By hatchling's own list of the files of a wheel; nothing is built."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    files = {
        Path(file.distribution_path).as_posix()
        for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    }
    assert {f"e5core/{name}" for name in DATA} <= files
    assert {file.split("/")[0] for file in files} == {"e5core"}
    modules = {f"e5core/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
    assert modules <= files


def run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the sdist of scripts/build_wheel.sh."""
    folder = tmp_path_factory.mktemp("dist")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": ""}
    run("bash", ROOT / "scripts/build_wheel.sh", folder, env=environment)
    return folder


# They take half a minute, most of it the compiler's.
@only_on_linux
@pytest.mark.exhaustive(sample=0)
def test_the_wheel_is_one_for_every_python_and_carries_no_openmp(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    python, abi, machine = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert all(tag.startswith("manylinux") for tag in machine.split("."))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = {name: archive.read(name) for name in names if ".so" in name}
    assert set(libraries) == {f"e5core/kernels/native/libnative-{n}.so" for n in OF_THIS_MACHINE}
    assert not [name for name, code in libraries.items() if b"libgomp" in code]


@only_on_linux
@pytest.mark.exhaustive(sample=0)
def test_native_runs_from_the_wheel_without_a_compiler(built: Path, tmp_path: Path) -> None:
    """In a new environment, in which torch and the rest are those of this one."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    python = home / "bin/python"
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)
    place = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    # The .pth files there are not read, by which e5core would be that of the checkout.
    (place / "others.pth").write_text(sysconfig.get_path("purelib"))
    (tmp_path / "empty").mkdir()
    names = ["native", *(f"native/{name}" for name in OF_THIS_MACHINE)]
    folder = write_tiny_model(tmp_path / "model", "xlm-roberta")
    printed = run(
        python, "-c", PROGRAM, folder, *names, cwd=tmp_path, env={"PATH": str(tmp_path / "empty")}
    )
    answer = json.loads(printed)
    assert Path(answer["package"]).is_relative_to(place)
    # sentencepiece brings one of its own too.
    assert not [path for path in answer["openmp"] if Path(path).is_relative_to(home)]
    assert [path for path in answer["openmp"] if "/torch/lib/" in path]
    for name in names:
        for dtype, near in NEAR.items():
            said, far = answer["found"][f"{name} {dtype}"]
            one = name.partition("/")[2]
            reason = one and why_not(BY_INSTRUCTIONS[one], CPU, getattr(torch, dtype))
            if reason:
                assert said == f"kernels {name!r} cannot be used: {reason}"
            else:
                assert said in ([one] if one else OF_THIS_MACHINE)
                assert far < near


@only_on_linux
@pytest.mark.exhaustive(sample=0)
def test_the_sdist_installs_without_a_compiler(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    (sdist,) = built.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", tmp_path, sdist, env=os.environ | {"CXX": "no-such-compiler"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
