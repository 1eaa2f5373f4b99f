"""Models in processes as people set them up: forked, spawned, nested, pickled."""

import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import set_ups
from support.models import write_tiny_model

FORKS = "fork" in multiprocessing.get_all_start_methods()
needs_fork = pytest.mark.skipif(not FORKS, reason="this system cannot fork")


def answers(name: str, folder: Path) -> dict[str, Any]:
    """What the set-ups of one kind found, in a process of their own."""
    program = set_ups.__file__
    run = subprocess.run([sys.executable, program, name, folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = pickle.loads((folder / "answers").read_bytes())
    return found


# One process for all set-ups of a kind: most of its time is the import of torch.


@needs_fork
def test_a_process_forked_after_torch_was_used(tmp_path: Path) -> None:
    """On one thread, with the parent's bits, wherever the model was loaded; nothing hangs."""
    found = answers("forked", write_tiny_model(tmp_path / "tiny", "bert"))
    bits, threads = found.pop("parent")
    assert threads == 2
    assert found.pop("parent again") == (bits, 2)
    assert found.pop("while another embeds") == {(bits, 1)}
    assert found.pop("workers in a child") == "3 rows"
    refusal = found.pop("workers in a Pool")
    assert refusal.startswith("workers is 2, but this process is daemonic")
    assert refusal.endswith("pass workers=1 (--workers 1)")
    assert found.pop("warnings") == found.pop("nested warnings") == 1
    assert found.pop("training") == 1
    assert found.pop("converting") == 0
    assert len(found) >= 13
    assert {name: answer for name, answer in found.items() if answer != (bits, 1)} == {}


@needs_fork
def test_e5core_imported_after_the_fork(tmp_path: Path) -> None:
    found = answers("late", write_tiny_model(tmp_path / "tiny", "bert"))
    assert {threads for _, threads in found.values()} == {1}
    assert len({bits for bits, _ in found.values()}) == 1


def test_a_model_travels(tmp_path: Path) -> None:
    found = answers("pickled", write_tiny_model(tmp_path / "tiny", "bert"))
    bits, _ = found.pop("parent")
    assert {name: answer for name, answer in found.items() if answer != bits} == {}
