"""What the tests of the conversions share."""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.models import ROOT

from e5core.cli import main
from e5core.cli.convert import CONVERSIONS
from e5core.convert.folder import replacing_folder

# What Bomb wants: io.open, which Python names _io.open from 3.13 on.
OPEN = f"{open.__module__}.open"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, none if it is not there."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_convert(name: str, *arguments: object) -> int:
    """The exit code of `e5core convert NAME …`."""
    return main(["convert", name, *map(str, arguments)])


def convert(name: str, *arguments: object) -> None:
    """A conversion that succeeds."""
    assert run_convert(name, *arguments) == 0


def refused(name: str, capsys: pytest.CaptureFixture[str], target: Path, *arguments: object) -> str:
    """A conversion that fails with one line and leaves all as it was; returns the line."""
    before = content(target.parent)
    capsys.readouterr()
    assert run_convert(name, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.match(rf"e5core convert {name}: ", printed.err)
    assert content(target.parent) == before
    return printed.err


def convert_in_process(
    name: str,
    *arguments: object,
    limit: int | None = None,
    wrapper: str = "",
) -> subprocess.CompletedProcess[str]:
    """A conversion in a process of its own.

    limit    bytes that a file of it may have
    wrapper  Python code that runs first
    """
    code = f"{wrapper}\nimport sys\nfrom e5core.cli import main\n"
    code += f"import e5core.convert.{CONVERSIONS[name].module}\n"
    if limit is not None:  # after the imports: some libraries try the temporary folder there
        code += f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += f"sys.exit(main(['convert', {name!r}, *sys.argv[1:]]))"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# Printed by a conversion run with this wrapper: its peak memory and what it had before it began.
MEMORY = """
import atexit, e5core, safetensors.torch, torch
def kilobytes(name):
    return int(open('/proc/self/status').read().split(name + ':')[1].split()[0])
before = kilobytes('VmRSS')
atexit.register(lambda: print('grown by', 1024 * (kilobytes('VmHWM') - before)))
"""


def hold(folder: Path, held: "multiprocessing.synchronize.Event") -> None:
    """The life of a process that writes a folder and comes to no end.

    It is here because a new process can import this module, and not that of a test.
    """
    with replacing_folder(folder, Path("/none"), force=False):
        held.set()
        multiprocessing.Event().wait()
