"""What the tests of training share."""

from pathlib import Path

import pytest
from support.models import write_tiny_model
from support.training import make_rows, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model."""
    return write_tiny_model(tmp_path / "model", "bert")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Rows with two negatives and a teacher's scores each."""
    return write_rows(tmp_path / "pairs.jsonl", make_rows(9, scores=True))
