"""The application below another one's path, and paths with prefixes."""

from collections.abc import Callable
from typing import Any

import pytest
from support.serving import Running, same_bits, serving

from e5core import E5
from e5core.serve.app import App
from e5core.serve.keys import Keys
from e5core.serve.service import Service

MakeService = Callable[..., Service]
BODY = {"model": "tiny-e5-query", "input": "the query"}
KEY = {"authorization": "Bearer key"}


class Outer:
    """Hands everything to an application at /e5, as Starlette's and FastAPI's mount do."""

    def __init__(self, app: App) -> None:
        self.app, self.service = app, app.service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith("/e5")
            scope = {**scope, "root_path": "/e5"}
        await self.app(scope, receive, send)


def check(server: Running, prefix: str, tiny: E5) -> None:
    found = server.post(f"{prefix}/v1/embeddings", BODY, KEY).json
    assert same_bits(
        found["data"][0]["embedding"], tiny.embed("the query", input_type="query").vectors
    )
    assert server.get(f"{prefix}/readyz").status == 200
    assert server.get(f"{prefix}/").body.startswith(b"<!")
    assert server.get(f"{prefix}/models/tiny-e5", KEY).json["id"] == "tiny-e5"
    assert b"te_queue_size" in server.get(f"{prefix}/metrics", KEY).body
    assert server.get(f"{prefix}/v1/models").status == 401


def test_below_another_application(make_service: MakeService, tiny: E5) -> None:
    with serving(Outer(App(make_service(), Keys(["key"])))) as server:
        check(server, "/e5", tiny)


def test_below_the_root_path_of_uvicorn(make_service: MakeService, tiny: E5) -> None:
    with serving(App(make_service(), Keys(["key"])), root_path="/e5") as server:
        check(server, "", tiny)


@pytest.mark.parametrize("prefix", ["", "/tei", "/pinecone"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_the_version_of_a_path_with_a_prefix(server: Running, prefix: str, version: str) -> None:
    body = {"model": "tiny-e5", "texts": ["a"], "input_type": "search_query"}
    found = server.post(f"{prefix}/v{version}/embed", body).json
    assert found["meta"]["api_version"]["version"] == version
    assert found["response_type"] == f"embeddings_{ {'1': 'floats', '2': 'by_type'}[version] }"
