"""A model, its input and places for its output."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bulk import TEXTS

SUFFIXES = [".npy", ".safetensors", ".parquet"]


@pytest.fixture
def model(make_tiny: Callable[..., Path]) -> Path:
    return make_tiny()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text, "id": f"t{i}"}) for i, text in enumerate(TEXTS)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(params=SUFFIXES)
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """In a folder of its own; comes in each form."""
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / f"vectors{request.param}"


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "vectors.npy"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More than a test waits for."""
    file = tmp_path / "many.txt"
    file.write_text("the a query passage\n" * 400_000)
    return file
