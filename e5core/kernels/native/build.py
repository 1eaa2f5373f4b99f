"""Compiles the C++ in src/: one library for each instruction set.

hatch_build.py loads this file by its path while e5core is installed, so it imports neither torch
nor the rest of e5core.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class InstructionSet:
    """The instructions that a library is compiled for.

    header  the file in src/isa/ that has them
    """

    name: str
    header: str
    machines: tuple[str, ...]
    options: tuple[str, ...]


X86, ARM = ("x86_64", "AMD64"), ("aarch64",)


# The best one first. All of a machine are compiled, whatever its CPU can do: library.py asks
# before each use.
INSTRUCTION_SETS = (
    InstructionSet(
        "avx512",
        "avx512.h",
        X86,
        ("-mfma", *(f"-mavx512{name}" for name in ("f", "bw", "dq", "vl", "bf16", "vnni"))),
    ),
    InstructionSet("avxvnni", "avx2.h", X86, ("-mavx2", "-mfma", "-mavxvnni")),
    InstructionSet("avx2", "avx2.h", X86, ("-mavx2", "-mfma")),
    InstructionSet("neonmm", "neon.h", ARM, ("-march=armv8.2-a+dotprod+i8mm",)),
    InstructionSet("neondot", "neon.h", ARM, ("-march=armv8.2-a+dotprod",)),
    InstructionSet("neon", "neon.h", ARM, ("-march=armv8-a",)),
)

MARK = b"e5core source "  # cpu.cpp has it in every library, before the checksum and a semicolon


def library(name: str, folder: Path = FOLDER) -> Path:
    """Where the library of an instruction set is."""
    return folder / f"libnative-{name}.so"


def source_checksum(folder: Path = FOLDER) -> int:
    """The checksum of all C++ in src/."""
    checksum = 0
    source = folder / "src"
    for file in sorted(f for f in source.rglob("*") if f.suffix in (".cpp", ".h")):
        checksum = zlib.crc32(file.read_bytes(), checksum)
    return checksum


def compiled_checksum(path: Path) -> int | None:
    """The checksum of the source that a library was compiled from; None if it is none of e5core.

    This reads the file and runs nothing of it.
    """
    if not path.is_file():
        return None
    checksum, end, _ = path.read_bytes().partition(MARK)[2].partition(b";")
    return int(checksum) if end and checksum.isdigit() else None


def build(folder: Path = FOLDER) -> list[Path]:
    """Compile all libraries for this machine. Returns those that there are now.

    Each is replaced in one step. If it cannot be compiled, one of the same source stays.
    """
    built = []
    for one in INSTRUCTION_SETS:
        path = library(one.name, folder)
        compiled = platform.machine() in one.machines and compile_library(one, path)
        if compiled or compiled_checksum(path) == source_checksum(folder):
            built.append(path)
        elif path.exists():
            path.unlink()
            complain(f"{path.name} was compiled from another source and is removed")
    return built


def complain(message: str) -> None:
    """Say what the installation lacks. pip shows it with --verbose, and e5core when it runs."""
    print(f"e5core: {message}", file=sys.stderr)


def compiler_command() -> list[str]:
    """The compiler and its first options: what CXX names, or g++."""
    return os.environ.get("CXX", "").split() or ["g++"]


def compile_library(instructions: InstructionSet, path: Path) -> bool:
    """Compile one library beside its place, and put it there if that succeeds."""
    compiler = compiler_command()
    if shutil.which(compiler[0]) is None:
        complain(f"{path.name} is not compiled: there is no {compiler[0]}; install it, or set CXX")
        return False
    if not os.access(path.parent, os.W_OK):
        complain(f"{path.name} is not compiled: {path.parent} cannot be written")
        return False
    source = path.parent / "src"
    checksum = MARK.decode() + str(source_checksum(path.parent))
    # Without OpenMP in the link it is PyTorch's, whose threads would be in the way of others.
    options = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-ffp-contract=off"]
    # The name ends in .so, so that git ignores what is left if this is killed.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="libnative-", suffix=".so") as parts:
        encoder, cpu, whole = f"{parts}/encoder.o", f"{parts}/cpu.o", f"{parts}/{path.name}"
        header = str(source / "isa" / instructions.header)
        for step in (
            [*options, *instructions.options, "-include", header,
             "-c", str(source / "encoder.cpp"), "-o", encoder],
            [*options, f"-DNEED={instructions.name}", f'-DE5CORE_SOURCE="{checksum};"',
             "-c", str(source / "cpu.cpp"), "-o", cpu],
            ["-shared", encoder, cpu, "-o", whole],
        ):  # fmt: skip
            try:
                done = subprocess.run([*compiler, *step], capture_output=True)
            except OSError as error:  # a file that is no program, for example
                complain(f"{path.name} is not compiled, {compiler[0]} does not run: {error}")
                return False
            if done.returncode:
                said = done.stderr.decode(errors="replace")
                complain(f"{path.name} is not compiled, {compiler[0]} failed:\n{said}")
                return False
        Path(whole).replace(path)
    return True
