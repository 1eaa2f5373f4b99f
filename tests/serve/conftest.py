"""A server with tiny models that the tests share, and the models to compare with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.models import write_tiny_model, write_tiny_reranker

from e5core import E5, Reranker

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("orjson", reason="the extra serve is not installed")

from support.serving import Running, serving

from e5core.serve.app import App
from e5core.serve.models import Models, serve_embedder, serve_reranker
from e5core.serve.service import Service


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> E5:
    folder = write_tiny_model(tmp_path_factory.mktemp("serve") / "tiny-e5", "xlm-roberta")
    return E5.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = write_tiny_reranker(tmp_path_factory.mktemp("serve") / "ranker", "xlm-roberta")
    return Reranker.from_pretrained(folder)


@pytest.fixture(scope="session")
def make_service(tiny: E5, tiny_reranker: Reranker) -> Callable[..., Service]:
    """A service with the tiny models, called tiny-e5 and tiny-ranker."""

    def make(**options: object) -> Service:
        models = Models(
            [serve_embedder(tiny, "org/tiny-e5")], [serve_reranker(tiny_reranker, "tiny-ranker")]
        )
        return Service(models, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def server(make_service: Callable[..., Service]) -> Iterator[Running]:
    """A server without a key and without a default input type."""
    with serving(App(make_service())) as running:
        yield running


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of the tiny models, for servers that are processes."""
    return (
        write_tiny_model(tmp_path / "tiny-e5", "xlm-roberta"),
        write_tiny_reranker(tmp_path / "tiny-ranker", "xlm-roberta"),
    )
