"""Several processes: the same bytes as one, and a way out where they cannot start."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.bulk import embed, interrupt
from support.conversions import content

from e5core.bulk import partial_folder


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_write_the_same_bytes(model: Path, texts: Path, output: Path, workers: int) -> None:
    embed(model, texts, output)
    expected = content(output.parent)
    for file in sorted(output.parent.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    embed(model, texts, output, workers=workers)
    assert content(output.parent) == expected


def test_workers_go_on_with_what_one_process_began(model: Path, texts: Path, npy: Path) -> None:
    embed(model, texts, npy)
    expected = content(npy.parent)
    for file in npy.parent.iterdir():
        file.unlink()
    interrupt(model, texts, npy)
    embed(model, texts, npy, workers=2)
    assert content(npy.parent) == expected


def test_a_script_that_workers_cannot_import(
    model: Path, texts: Path, npy: Path, tmp_path: Path
) -> None:
    call = f"embed_files({str(model)!r}, {str(texts)!r}, {str(npy)!r}, input_type=None, workers=2)"
    (tmp_path / "script.py").write_text(f"from e5core.bulk import embed_files\n{call}\n")
    for arguments, code in (["script.py"], ""), (["-"], (tmp_path / "script.py").read_text()):
        done = subprocess.run(
            [sys.executable, *arguments], input=code, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ChildProcessError: worker 1 of 2 ended with an error, which stands")
        assert 'needs its if __name__ == "__main__":' in last
        assert not partial_folder(npy).exists()
