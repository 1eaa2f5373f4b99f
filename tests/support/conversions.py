"""What the tests of the conversion scripts share."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.models import ROOT


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, none if it is not there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def convert(script: ModuleType, *arguments: str | Path) -> None:
    """A conversion that succeeds."""
    assert script.main([str(argument) for argument in arguments]) == 0


def refused(
    script: ModuleType, capsys: pytest.CaptureFixture[str], target: Path, *arguments: str | Path
) -> str:
    """A conversion that fails with one line and leaves all as it was; returns the line."""
    before = content(target.parent)
    capsys.readouterr()
    assert script.main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.match(r"(convert|trim)_\w+: ", printed.err)
    assert content(target.parent) == before
    return printed.err


def run_script(
    name: str,
    *arguments: str | Path,
    limit: int | None = None,
    wrapper: str = "",
) -> subprocess.CompletedProcess[str]:
    """A conversion in a process of its own.

    limit    bytes that a file of it may have
    wrapper  Python code that runs first
    """
    code = f"{wrapper}\nimport sys\nfrom e5core.convert import {name}\n"
    if limit is not None:  # after the imports: some libraries try the temporary folder there
        code += f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += f"sys.exit({name}.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# Printed by a script run with this wrapper: its peak memory and what it had before it began.
MEMORY = """
import atexit, e5core, safetensors.torch, torch
def kilobytes(name):
    return int(open('/proc/self/status').read().split(name + ':')[1].split()[0])
before = kilobytes('VmRSS')
atexit.register(lambda: print('grown by', 1024 * (kilobytes('VmHWM') - before)))
"""
