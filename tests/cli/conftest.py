"""The fixtures of the command line's tests: a tiny model, texts, and where vectors go."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.cli import LINES


@pytest.fixture
def model(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(line + "\n" for line in LINES), encoding="utf-8")
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "vectors.npy"
