"""Compiles e5core/kernels/native while e5core is built or installed, where that is possible.

Without a compiler, or for another CPU, e5core is complete all the same.
"""

import os
import platform
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "e5core/kernels/native"
LIBRARY = f"{SOURCE}/libnative.so"
INSTRUCTIONS = ("f", "bw", "dq", "vl", "bf16", "vnni")  # of AVX-512; asked for before each use


class NativeBuildHook(BuildHookInterface):  # type: ignore[misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if build(Path(self.root)):
            build_data["artifacts"].append(LIBRARY)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"


def build(root: Path) -> bool:
    """Compile the library anew; whether there is one now."""
    source, library = root / SOURCE, root / LIBRARY
    library.unlink(missing_ok=True)
    checksum = 0  # as kernels/native/__init__.py computes it, which needs torch
    for file in sorted([*source.glob("*.cpp"), *source.glob("*.h")]):
        checksum = zlib.crc32(file.read_bytes(), checksum)
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None or platform.machine() not in ("x86_64", "AMD64"):
        return False
    # Not linked with OpenMP, so that it is PyTorch's, whose threads would be in the way of others.
    options = [
        "-O3", "-std=c++17", "-fPIC", "-fopenmp", "-mfma", "-ffp-contract=off",
        *(f"-mavx512{name}" for name in INSTRUCTIONS),
        f"-DE5CORE_SOURCE={checksum}u",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        compiled = f"{folder}/native.o"
        for step in (
            [*options, "-c", str(source / "native.cpp"), "-o", compiled],
            ["-shared", compiled, "-o", str(library)],
        ):
            done = subprocess.run([*compiler, *step], capture_output=True, text=True)
            if done.returncode:
                print(f"{SOURCE} was left out, {compiler[0]} failed:\n{done.stderr}")
                return False
    return True


def platform_tag() -> str:
    from sysconfig import get_platform

    return get_platform().replace("-", "_").replace(".", "_")
