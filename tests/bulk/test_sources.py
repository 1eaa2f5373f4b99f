"""Which files are read: folders, links, standard input."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from e5core.bulk.sources import Source


def test_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.jsonl", "a.txt", "_SUCCESS", ".hidden.txt", "_temporary/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    found = Source([tmp_path]).files
    assert found == [str(tmp_path / name) for name in ("a/c.jsonl", "a.txt", "b.txt")]
    (tmp_path / "notes.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.pdf is none of \.txt, "):
        Source([tmp_path])
    assert len(Source([tmp_path], format="txt").files) == 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is a folder without files"):
        Source([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("nowhere"), "is no file; take it out of the folder"),
        (lambda path: path.symlink_to(path.parent), "is a link to a folder, which is not followed"),
        (os.mkfifo, "is no file; take it out of the folder"),
    ],
)
def test_nothing_of_a_folder_is_left_out_silently(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    make(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=rf"b\.txt {message}"):
        Source([tmp_path])
    (tmp_path / "b.txt").rename(tmp_path / ".b.txt")
    assert Source([tmp_path]).files == [str(tmp_path / "a.txt")]


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a\n")
    scandir = os.scandir

    def closed(folder: Path) -> object:  # root may read any
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        Source([tmp_path])


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b\nc")))
    source = Source([tmp_path / "a.txt", "-"])
    assert source.total_bytes is None
    assert [row[2] for row in source.rows()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="-, is named twice"):
        Source(["-", "-"])
    with pytest.raises(ValueError, match="Parquet cannot be read from standard input"):
        Source(["-"], format="parquet")
