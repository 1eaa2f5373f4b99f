"""Fixtures: folders with config.json and weights, and nothing else."""

from pathlib import Path

import pytest
from support.models import tiny_encoder

from e5core import save_checkpoint


@pytest.fixture
def folder(tmp_path: Path, dialect: str) -> Path:
    save_checkpoint(tiny_encoder(dialect), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def make_folder(tmp_path: Path) -> Path:
    """One dialect, where the other would take the same path."""
    save_checkpoint(tiny_encoder("bert"), tmp_path / "tiny")
    return tmp_path / "tiny"
