"""A command's second model has a revision, prompts and limits of its own."""

from pathlib import Path

import pytest
from support.models import write_tiny_model

from e5core import E5, Reranker
from e5core.checkpoint.options import LoadOptions
from e5core.cli import main

OF_THE_FIRST = [
    "--revision",
    "abc",
    "--prompts",
    "none",
    "--max-length",
    "30",
    "--dtype",
    "float32",
]


class StopError(Exception):
    """Instead of a model."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, LoadOptions]:
    """The options that each class of model was asked for with; rerankers end the command."""
    found: dict[str, LoadOptions] = {}
    first = E5.from_pretrained

    def embedder(model: str, **options: object) -> E5:
        found["E5"] = LoadOptions(**options)
        return first(model, **{**options, "revision": None})

    def reranker(model: str, **options: object) -> Reranker:
        found["Reranker"] = LoadOptions(**options)
        raise StopError

    monkeypatch.setattr(E5, "from_pretrained", embedder)
    monkeypatch.setattr(Reranker, "from_pretrained", reranker)
    return found


def of_its_own(options: LoadOptions) -> bool:
    return options == LoadOptions(dtype="float32")


def test_search(tmp_path: Path, asked: dict[str, LoadOptions]) -> None:
    (tmp_path / "passages.txt").write_text("a\nb\n")
    command = ["search", "a query", "--passages", str(tmp_path / "passages.txt"), *OF_THE_FIRST]
    with pytest.raises(StopError):
        main([*command, "--model", "org/model", "--reranker", "org/reranker"])
    assert of_its_own(asked["Reranker"])


def test_serve(tmp_path: Path, asked: dict[str, LoadOptions]) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    pytest.importorskip("orjson", reason="the extra serve is not installed")
    model = write_tiny_model(tmp_path / "model", "bert")
    with pytest.raises(StopError):
        main(["serve", "--model", str(model), "--reranker", "org/reranker", *OF_THE_FIRST])
    assert asked["E5"].revision == "abc"
    assert of_its_own(asked["Reranker"])
