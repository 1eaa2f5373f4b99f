"""`e5core embed`: errors are one line, an interrupt ends at once, the same command goes on."""

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.bulk import command, embed, write_bad_rows
from support.conversions import content
from support.models import ROOT

from e5core.bulk import partial_folder


@contextmanager
def begin(output: Path, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that has stored a part of its work; it ends with the block."""
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not (partial_folder(output) / "journal.json").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_at_once(model: Path, many: Path, npy: Path, workers: int) -> None:
    with begin(npy, command(model, many, npy, "--workers", workers)) as process:
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        assert time.monotonic() - sent < 10  # the whole file takes minutes
    assert process.returncode == 130
    partial = partial_folder(npy)
    left = f"what is done is in {partial}, the same command goes on from there"
    assert error == f"e5core: interrupted; {left}\n"
    rows = json.loads((partial / "journal.json").read_text())["done"]["rows"]
    # Cut the input so that it can be waited for; what was done stays done.
    many.write_text("the a query passage\n" * (rows + 5))
    assert embed(model, many, npy, chunk_rows=7, shard_rows=65_536).rows == rows + 5


def test_a_worker_that_dies_is_one_line(model: Path, many: Path, npy: Path) -> None:
    with begin(npy, command(model, many, npy, "--workers", 2)) as process:
        children = subprocess.run(
            ["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True
        ).stdout.split("\n")[1:]
        parents = {int(p): int(q) for p, q in (line.split() for line in children if line)}

        def descendants(pid: int) -> list[int]:
            own = [child for child, parent in parents.items() if parent == pid]
            return own + [d for child in own for d in descendants(child)]

        # The last one is a worker that was forked off the process with the model.
        os.kill(descendants(process.pid)[-1], signal.SIGKILL)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert error.count("\n") == 1
    assert re.search(r"worker \d of 2 died; the system ends processes when memory runs out", error)
    assert "the same command goes on from there" in error
    assert partial_folder(npy).is_dir()


def test_a_full_disk_is_one_line_and_can_be_gone_on_from(
    model: Path, texts: Path, output: Path
) -> None:
    embed(model, texts, output)
    expected = content(output.parent)
    for file in sorted(output.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()

    def limit() -> None:  # of the size of a file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

    arguments = command(model, texts, output, "--shard-rows", 20)
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=ROOT, preexec_fn=limit, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert str(partial_folder(output)) in done.stderr
    assert not output.exists()
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert content(output.parent) == expected


def test_a_target_that_takes_no_files(model: Path, texts: Path) -> None:
    # Nobody, root included, can write there.
    done = subprocess.run(
        command(model, texts, Path("/proc/vectors.npy")), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "/proc/vectors.npy.partial" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "xml"], "--format"),
        (["--column", "body"], "there is no field 'body'"),
        (["--on-error", "ignore"], "--on-error"),
        (["--workers", "0"], "workers is 0, expected 1 or more"),
        (["--shard-rows", "0"], "shard_rows is 0, expected 1 or more"),
        (["--chunk-rows", "0"], "chunk_rows is 0, expected 1 or more"),
        (["--workers", "2", "--device", "meta"], "device is 'meta', which 2 workers cannot share"),
        (["--workers", "2", "--dtype", "float16", "--kernels", "onednn"], "cannot be used"),
    ],
)
def test_bad_options_are_one_line(
    model: Path, texts: Path, npy: Path, options: list[str], message: str
) -> None:
    done = subprocess.run(
        command(model, texts, npy, *options), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(npy.parent.iterdir())


def test_an_error_that_comes_back_does_not_advise_the_same_command(
    model: Path, texts: Path, npy: Path
) -> None:
    with texts.open("a") as file:
        file.write("{}\n")
    done = subprocess.run(command(model, texts, npy), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "line 61: there is no field 'text'" in done.stderr
    assert done.stderr.endswith(f"; what is done is in {partial_folder(npy)}\n")


def test_rejects_are_told(model: Path, tmp_path: Path, npy: Path) -> None:
    done = subprocess.run(
        command(model, write_bad_rows(tmp_path), npy, "--on-error", "skip"),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert f"1 rows rejected, see {npy}.rejects.jsonl; " in done.stdout
