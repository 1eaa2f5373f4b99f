"""A job that was stopped goes on: nothing is done twice, and the journal stays small."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bulk import TEXTS, embed, interrupt
from support.models import CPU

from e5core import E5
from e5core.bulk import PartialOutputError, partial_folder
from e5core.kernels import BACKENDS


def test_rows_that_are_done_are_not_computed_again(
    model: Path, texts: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(model, texts, npy, after=3)
    embedded: list[str] = []
    original = E5.embed

    def spy(self: E5, texts: list[str], **options: Any) -> Any:
        embedded.extend(texts)
        return original(self, texts, **options)

    monkeypatch.setattr(E5, "embed", spy)
    assert embed(model, texts, npy).rows == 60
    assert embedded == TEXTS[21:]


def test_rows_added_at_the_end_are_taken_along(model: Path, texts: Path, npy: Path) -> None:
    interrupt(model, texts, npy)
    with texts.open("a") as file:
        file.write('{"text": "one more"}\n')
    assert embed(model, texts, npy).rows == 61


def test_a_journal_does_not_grow_with_the_files(model: Path, tmp_path: Path, npy: Path) -> None:
    sizes = []
    for count in (20, 200):
        folder = tmp_path / f"in{count:03}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:03}.txt").write_text("a\n")
        interrupt(model, folder, npy, after=2)
        journal = json.loads((partial_folder(npy) / "journal.json").read_text())
        journal["done"]["seconds"] = 0
        sizes.append(len(json.dumps(journal)))
        assert embed(model, folder, npy).rows == count
    assert sizes[0] == sizes[1]


def test_an_error_of_writing_the_journal_names_it(
    model: Path, texts: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def full(number: int) -> None:
        if Path(f"/proc/self/fd/{number}").resolve().name == "journal.json.temporary":
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*journal\.json\.temporary"):
        embed(model, texts, npy)


def test_int8_does_not_go_on_with_float32(model: Path, texts: Path, npy: Path) -> None:
    """The kernels of both have one name, and their hidden states one dtype."""
    interrupt(model, texts, npy, kernels="onednn", dtype="float32")
    with pytest.raises(PartialOutputError, match="dtype was 'float32', is 'int8'"):
        embed(model, texts, npy, kernels="onednn", dtype="int8")


def test_kernels_that_are_missing_are_named_with_the_reason(
    model: Path, texts: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that native began is not gone on with by others, and they say why they run."""
    if BACKENDS["native"].unavailable(CPU, torch.float32):
        pytest.skip("native cannot run here")
    assert embed(model, texts, npy.with_name("whole.npy")).kernels == "native"
    interrupt(model, texts, npy)
    reason = "they were not compiled"
    monkeypatch.setattr(BACKENDS["native"], "unavailable", lambda *_: reason)
    expected = rf"kernels was 'native', is 'onednn' \(native cannot be used: {reason}\)"
    with pytest.raises(PartialOutputError, match=expected):
        embed(model, texts, npy)
    done = embed(model, texts, npy.with_name("other.npy"))
    assert done.kernels == f"onednn (native cannot be used: {reason})"
