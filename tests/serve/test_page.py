"""The page at GET /, in headless Chromium, and POST /search behind it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import PROGRAM, Browser, browsing
from support.models import ROOT
from support.serving import Running, serving, where_it_listens

from e5core import E5, Reranker
from e5core.bulk import embed_files
from e5core.bulk.queries import QueryOptions, query_model
from e5core.serve.app import App
from e5core.serve.keys import Keys
from e5core.serve.models import Models, serve_embedder, serve_reranker
from e5core.serve.page import page
from e5core.serve.searcher import Searcher
from e5core.serve.service import Service
from e5core.vectors.index import Index

# Languages as ids, and a text that would be markup if it were taken for it.
ROWS = [
    ("en", "the query"),
    ("ja", "日本"),
    ("de", "a passage: ß"),
    ("x 1", "<img src=x onerror=\"document.title='broken'\"><b>a</b>"),
]


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, tiny: E5, tiny_reranker: Reranker
) -> Iterator[Running]:
    """A server with an index of the rows, a reranker and a key."""
    from support.models import write_tiny_model

    folder = tmp_path_factory.mktemp("index")
    model = write_tiny_model(folder / "tiny-e5", "xlm-roberta")
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in ROWS), "utf-8"
    )
    path = folder / "index.npy"
    embed_files(model, [rows], path, input_type="passage", id_column="id", show_progress=False)
    index = Index.open(path)
    embedder, arguments = query_model(index, path, QueryOptions())
    served = serve_embedder(embedder, "tiny-e5")
    service = Service(Models([served], [serve_reranker(tiny_reranker, "tiny-ranker")]))
    app = App(service, Keys(["secret"]), searcher=Searcher(index, path, served, arguments))
    with serving(app) as running:
        yield running


def search(server: Running, **body: Any) -> Any:
    return server.post("/search", body, {"authorization": "Bearer secret"})


def test_search(searched: Running, tiny: E5, tiny_reranker: Reranker) -> None:
    texts = [text for _, text in ROWS]
    passages = tiny.embed(texts, input_type="passage").vectors
    query = tiny.embed("the query", input_type="query").vectors
    order = np.argsort(-(passages @ query), kind="stable")
    found = search(searched, query="the query", top_k=3).json["results"]
    assert [row["text"] for row in found] == [texts[place] for place in order[:3]]
    assert [row["id"] for row in found] == [ROWS[place][0] for place in order[:3]]
    scores = [row["score"] for row in found]
    np.testing.assert_allclose(scores, (passages @ query)[order[:3]], rtol=0, atol=1e-6)
    found = search(searched, query="the query", rerank=True).json["results"]
    best = tiny_reranker.rank("the query", texts, normalize=True)
    by_text = dict(zip([texts[i] for i in best.indices], best.scores, strict=True))
    assert len(found) == 4
    assert [row["score"] for row in found] == sorted(by_text.values(), reverse=True)
    assert all(np.float32(row["score"]) == by_text[row["text"]] for row in found)
    assert search(searched, query="").status == 400
    assert search(searched, query="a", top_k=1000).status == 400
    assert searched.post("/search", {"query": "a"}).status == 401


def test_without_an_index(server: Running) -> None:
    found = server.post("/search", {"query": "a"})
    assert (found.status, "--index" in found.json["error"]["message"]) == (404, True)
    assert server.get("/search").json["rows"] is None


def test_the_page_needs_nothing_from_elsewhere(searched: Running) -> None:
    found = searched.get("/")
    assert found.status == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in found.headers["content-security-policy"]
    text = found.body.decode()
    for outside in ("http:", "https:", "//", "<link", "src=", "@import", "innerHTML"):
        lines = [line for line in text.splitlines() if outside in line]
        assert not [line for line in lines if not line.strip().startswith("//")], outside
    assert b"".join(page().parts) == found.body


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("chromium is not installed")
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize(("width", "columns"), [(1200, 2), (380, 1)])
def test_in_a_browser(
    searched: Running, tiny: E5, browser: Browser, tmp_path: Path, width: int, columns: int
) -> None:
    browser.visit(searched.url, width)
    browser.until("document.readyState == 'complete'")
    browser.value("sessionStorage.clear()")
    browser.visit(searched.url + "/?again", width)
    # It asks for the key, says so when it is wrong, and goes on when it is right.
    browser.until(
        "document.getElementById('opening') && !document.getElementById('opening').hidden"
    )
    fill = "document.getElementById('{}').value = {}; document.getElementById('{}').requestSubmit()"
    browser.value(fill.format("key", "'wrong'", "opening"))
    browser.until("document.getElementById('error').textContent.includes('wrong')")
    browser.value(fill.format("key", "'secret'", "opening"))
    browser.until("document.getElementById('matrix').dataset.values")
    assert browser.value("document.getElementById('opening').hidden") is True
    assert browser.value("document.getElementById('error').textContent") == ""

    # The matrix is that of the vectors.
    texts = ["the query", "日本", "a passage: ß"]
    browser.value("delete document.getElementById('matrix').dataset.values")
    browser.value("document.getElementById('type').value = 'passage'")
    browser.value(fill.format("texts", json.dumps("\n".join(texts)), "compare"))
    browser.until("document.getElementById('matrix').dataset.values")
    found = json.loads(browser.value("document.getElementById('matrix').dataset.values"))
    vectors = tiny.embed(texts, input_type="passage").vectors
    np.testing.assert_allclose(found, vectors @ vectors.T, rtol=0, atol=1e-4)
    colours = browser.value(
        "new Set(new Uint32Array(document.getElementById('matrix').getContext('2d')"
        ".getImageData(0, 0, 640, 640).data.buffer)).size"
    )
    assert colours > 10  # something is drawn

    # Hits show score, language and text; what comes from texts is never markup.
    browser.value(fill.format("query", "'the query'", "search"))
    browser.until("document.querySelectorAll('#hits tbody tr').length == 4")
    rows = browser.value(
        "[...document.querySelectorAll('#hits tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert {(row[1], row[2]) for row in rows} == {
        ("English", ROWS[0][1]),
        ("Japanese", ROWS[1][1]),
        ("German", ROWS[2][1]),
        ROWS[3],
    }
    assert browser.value("document.querySelectorAll('#hits img, #hits b').length") == 0
    assert browser.value("document.title") == "e5core"

    # Narrow screens have one column, and nothing is wider than the screen.
    style = "getComputedStyle(document.querySelector('.two')).gridTemplateColumns.split(' ').length"
    assert browser.value(style) == columns
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert not [said for said in browser.complaints if "Content Security" in said]
    shots = Path(os.environ.get("E5CORE_SCREENSHOTS", tmp_path))
    browser.screenshot(shots / f"page-{width}.png")
    assert (shots / f"page-{width}.png").stat().st_size > 10_000


def test_the_quickstart_serves_the_collection(real_folder: Path, tmp_path: Path) -> None:
    """Its installation is skipped: the stamp says that nothing has changed."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    source = (ROOT / "scripts" / "environment.sh").read_text("utf-8")
    [want] = re.findall(r"^    want=\$\(\{\n(.*?)\n    \} \| cksum\)", source, re.M | re.S)
    done = subprocess.run(
        ["bash", "-c", f"{{ {want}\n}} | cksum"], capture_output=True, cwd=ROOT, check=True
    )
    (venv / "e5core[serve].stamp").write_bytes(done.stdout.rstrip(b"\n"))
    process = subprocess.Popen(
        ["bash", "scripts/quickstart.sh", "--serve", "--port", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "E5CORE_VENV": str(venv)},
    )
    try:
        port = where_it_listens(process)[1]
        query = {"query": "Wo ist der nächste Bahnhof?", "top_k": 5}
        found = Running(port, None).post("/search", query).json["results"]
        assert len(found) == 5
        assert all(row["text"] and len(row["id"]) == 2 for row in found)
        collection = (ROOT / "e5core/parity/data/sentences.tsv").read_text("utf-8")
        topics = {line.split("\t")[2]: line.split("\t")[1] for line in collection.splitlines()}
        assert topics[found[0]["text"]] == "train"
    finally:
        process.kill()
        process.communicate()
