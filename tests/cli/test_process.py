"""The command line as a program: pipes, interrupts and the bar on a terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
from support.models import ROOT

from e5core import E5
from e5core.parity.tolerances import UNIT_VECTOR_FLOAT32


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "e5core", *map(str, arguments)]


def embed_command(file: object, model: Path, output: Path, *options: object) -> list[str]:
    rest = ("--model", model, "--output", output, "--input-type", "query")
    return command("embed", file, *rest, *options)


def test_as_a_program(model: Path, output: Path) -> None:
    arguments = embed_command("-", model, output)
    done = subprocess.run(arguments, input=b"a\nb", capture_output=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")  # no bar in a pipe, no warnings
    assert done.stdout.startswith(f"{output}: 2 vectors of 24 numbers".encode())
    expected = E5.from_pretrained(model).embed(["a", "b"], input_type="query").vectors
    np.testing.assert_allclose(np.load(output), expected, rtol=0, atol=UNIT_VECTOR_FLOAT32)


def test_a_reader_that_has_enough_is_no_error(model: Path, texts: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as head does after its last line
    done = subprocess.run(
        command("search", "a", "--model", model, "--passages", texts),
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupt_and_progress_bar_on_a_terminal(
    model: Path, tmp_path: Path, output: Path
) -> None:
    file = tmp_path / "many.txt"
    file.write_text("the a query passage " * 20 + "\n" + "a\n" * 2_000_000, encoding="utf-8")
    output.write_bytes(b"old")
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a new one has no width
    process = subprocess.Popen(
        embed_command(file, model, output, "--max-tokens-per-batch", 64, "--kernels", "plain"),
        stdout=subprocess.PIPE,
        stderr=end,
        cwd=ROOT,
    )
    os.close(end)
    try:
        shown = read_until(terminal, rb"%\|.*\| [1-9][\d,]* rows, .* rows/s, .* tokens/s \[")
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        shown += read_until(terminal, None)
        assert process.wait(timeout=20) == 130
        assert time.monotonic() - sent < 10  # the whole file takes minutes
    finally:
        process.kill()
        process.communicate()
        os.close(terminal)
    partial = output.with_name(f"{output.name}.partial")
    left = f"what is done is in {partial}, the same command goes on from there"
    assert shown.decode().splitlines()[-1] == f"e5core: interrupted; {left}"
    assert b"Traceback" not in shown
    assert {*output.parent.iterdir()} == {output, partial}
    assert output.read_bytes() == b"old"


def read_until(terminal: int, expected: bytes | None, seconds: float = 60) -> bytes:
    """What a terminal shows until it matches `expected`, or until its process ends."""
    shown = b""
    deadline = time.monotonic() + seconds
    while expected is None or not re.search(expected, shown):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"waited {seconds} s for {expected!r}, saw {shown[-500:]!r}"
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux says so when the last writer is gone
            part = b""
        if not part:
            assert expected is None, f"ended before {expected!r}: {shown[-500:]!r}"
            break
        shown += part
    return shown
